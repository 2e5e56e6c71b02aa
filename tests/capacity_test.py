import pytest

from fedjax_tune import config
from fedjax_tune.costs import capacity

_SIZES = {
  'embed': 384, 'layer': 12, 'heads': 6, 'token': 17, 'key': 17, 'patch': 588,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _small(monkeypatch):
  """A machine of a gibibyte."""
  monkeypatch.setattr(capacity, 'machine_memory', lambda: 2**30)


def _experiment(**local):
  return config.Experiment(local=config.Local(**local))


def test_usual_sizes_fit():
  e = _experiment()
  capacity.check_model(e, _SIZES)
  capacity.check_round(e, 6, 8, _SIZES)
  capacity.check_shots(config.Clients(partition='k_shot', count=100))


def test_adapters_must_fit():
  e = config.Experiment(lora=config.Lora(rank=10**6))
  with pytest.raises(
    ValueError, match=r'lora.rank=1000000: the adapters would'
  ):
    capacity.check_model(e, _SIZES)


def test_attention_must_fit():
  e = _experiment(batch_size=32)
  sizes = _SIZES | {'token': 4097, 'key': 4097}
  with pytest.raises(ValueError, match='batch_size=32 with 4097 tokens'):
    capacity.check_model(e, sizes)


def test_examples_of_two_rounds_must_fit():
  e = _experiment(batch_size=32)
  e.data.image_size = 56
  example = 56**2 * 3
  most = 2**30 // (2 * 6 * 32 * example)
  capacity.check_round(e, 6, most, _SIZES)
  with pytest.raises(
    ValueError, match=rf'{most + 1} local steps and 6 clients'
  ):
    capacity.check_round(e, 6, most + 1, _SIZES)


def test_dealt_examples_must_fit():
  cfg = config.Clients(partition='k_shot', shots=10**6, count=10**6)
  with pytest.raises(ValueError, match=r'clients.shots=1000000 and'):
    capacity.check_shots(cfg)


def test_a_program_must_fit():
  capacity.check_program('6 layers', 2**30, memory=2**30)
  with pytest.raises(ValueError, match=r'6 layers does not fit: .* 2 GiB'):
    capacity.check_program('6 layers', 2**31, memory=2**30)

"""Checkpoints come back bit for bit, and survive a killed process."""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from fedjax_tune import checkpoint, config


class _State(NamedTuple):
  theta: dict[str, Any]
  opt: optax.OptState
  spent: np.int64


def _state(seed: int) -> dict[str, Any]:
  rng = np.random.default_rng(seed)
  theta = {
    'attn.proj/a': jnp.asarray(rng.normal(size=(2, 3)), jnp.bfloat16),
    'nested': {'b': jnp.asarray(rng.normal(size=4), jnp.float32), 'none': None},
    'empty': jnp.zeros((0, 3)),
  }
  ema = np.float32(rng.normal())
  return {
    'state': _State(theta, optax.adam(1e-3).init(theta), np.int64(seed)),
    'host': [rng.normal(size=3), np.array(ema), ema, np.bool_(seed % 2)],
    'plain': (seed, rng.normal(), bool(seed % 2)),
    'edge': np.array([np.nan, -0.0, np.inf], ml_dtypes.bfloat16),
  }


def _assert_same_bits(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert type(x) is type(y)
    assert np.asarray(x).dtype == np.asarray(y).dtype
    assert np.shape(x) == np.shape(y)
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def _saved(workdir, rounds, every=1):
  with checkpoint.Checkpoints(workdir, every) as saved:
    for rnd in rounds:
      saved.save(rnd, _state(rnd))


def test_roundtrip_is_bit_exact(tmp_path):
  _saved(tmp_path, [7])
  with checkpoint.Checkpoints(tmp_path, 1) as saved:
    assert saved.latest_round() == 7
    _assert_same_bits(saved.restore(_state(1)), _state(7))


def test_placement_follows_the_template(tmp_path):
  device = jax.devices()[1]
  template = {'x': jax.device_put(jnp.zeros(3), device)}
  with checkpoint.Checkpoints(tmp_path, 1) as saved:
    saved.save(1, {'x': jnp.arange(3.0)})
    assert saved.restore(template)['x'].devices() == {device}


def test_state_may_change_right_after_save(tmp_path):
  grow = jax.jit(lambda x: x + 1, donate_argnums=0)
  on_host, on_device = np.zeros(1000), jnp.zeros(1000)
  with checkpoint.Checkpoints(tmp_path, 1) as saved:
    saved.save(1, (on_host, on_device))
    on_host += 1
    on_device = grow(on_device)
    host, device = saved.restore((on_host, on_device))
  assert not host.any()
  assert not device.any()


def test_every_kth_round_and_the_newest_two_are_kept(tmp_path):
  with checkpoint.Checkpoints(tmp_path, 2) as saved:
    for rnd in range(1, 8):
      saved.save(rnd, {'x': np.full(2, rnd)}, force=rnd == 7)
  names = {path.name for path in (tmp_path / 'checkpoints').iterdir()}
  assert names == {'6', '7'}


def test_saving_a_round_again_is_no_error(tmp_path):
  with checkpoint.Checkpoints(tmp_path, 1) as saved:
    saved.save(1, {'x': np.zeros(2)})
    saved.save(1, {'x': np.zeros(2)}, force=True)
    assert saved.latest_round() == 1


@pytest.mark.parametrize('name', ['9', '9.orbax-checkpoint-tmp'])
def test_half_written_checkpoint_is_ignored(tmp_path, name):
  _saved(tmp_path, [1, 2])
  torn = tmp_path / 'checkpoints' / name / 'default'
  torn.mkdir(parents=True)
  (torn / 'manifest.ocdbt').write_bytes(b'half')
  with checkpoint.Checkpoints(tmp_path, 1) as saved:
    assert saved.latest_round() == 2
    _assert_same_bits(saved.restore(_state(0)), _state(2))
    saved.save(9, _state(9))
    _assert_same_bits(saved.restore(_state(0)), _state(9))


_SAVE_FOREVER = """
import itertools, sys
import numpy as np
from fedjax_tune import checkpoint
with checkpoint.Checkpoints(sys.argv[1], 1) as saved:
  for rnd in itertools.count(1):
    saved.save(rnd, [np.full(100_000, rnd) for _ in range(8)])
    print(rnd, flush=True)
"""


def test_killed_process_costs_nothing(tmp_path):
  with subprocess.Popen(
    [sys.executable, '-c', _SAVE_FOREVER, str(tmp_path)],
    stdout=subprocess.PIPE,
    text=True,
    cwd=pathlib.Path(__file__).parents[1],
  ) as process:
    assert process.stdout
    started = next(int(line) for line in process.stdout if int(line) == 4)
    process.send_signal(signal.SIGKILL)
    process.wait()
  with checkpoint.Checkpoints(tmp_path, 1) as saved:
    rounds = saved.latest_round()
    # Save n begins after save n-1 has finished.
    assert rounds is not None
    assert rounds >= started - 1
    state = saved.restore([np.zeros(100_000, int) for _ in range(8)])
  for leaf in state:
    np.testing.assert_array_equal(leaf, rounds)


def test_nothing_to_restore(tmp_path):
  with checkpoint.Checkpoints(tmp_path, 1) as saved:
    assert saved.latest_round() is None
    with pytest.raises(FileNotFoundError, match='No checkpoint'):
      saved.restore(_state(0))


@pytest.mark.parametrize(
  'template',
  [
    {'x': np.zeros(3)},
    {'x': np.zeros(2, np.float32)},
    {'y': np.zeros(2)},
    {'x': np.zeros(2), 'y': 1},
    {},
  ],
)
def test_template_must_fit(tmp_path, template):
  with checkpoint.Checkpoints(tmp_path, 1) as saved:
    saved.save(1, {'x': np.zeros(2)})
    with pytest.raises(ValueError, match=r'Checkpoint 1 .* which must be'):
      saved.restore(template)


def test_every_is_checked(tmp_path):
  with pytest.raises(ValueError, match='checkpoint_every=0 must be at least 1'):
    checkpoint.Checkpoints(tmp_path, 0)


def _guard(workdir, resume=False, **changes):
  experiment = dataclasses.replace(config.Experiment(), **changes)
  fields = dataclasses.asdict(experiment)
  checkpoint.experiment_guard(workdir, fields, resume)


def test_guard_takes_a_new_folder_with_or_without_resume(tmp_path):
  _guard(tmp_path / 'a' / 'b')
  assert '"rank": 8' in (tmp_path / 'a' / 'b' / 'config.json').read_text()
  _guard(tmp_path / 'c', resume=True)


def test_guard_resumes_the_same_experiment(tmp_path):
  _guard(tmp_path)
  with pytest.raises(ValueError, match='pass --resume'):
    _guard(tmp_path)
  _guard(tmp_path, resume=True)


def test_guard_lets_only_rounds_grow(tmp_path):
  _guard(tmp_path, rounds=10)
  _guard(tmp_path, resume=True, rounds=20)
  with pytest.raises(ValueError, match='rounds: 20 there, 10 here'):
    _guard(tmp_path, resume=True, rounds=10)
  with pytest.raises(ValueError, match='rounds: 20 there, 30 here'):
    _guard(tmp_path, rounds=30)
  with pytest.raises(ValueError, match='seed: 0 there, 1 here'):
    _guard(tmp_path, resume=True, rounds=30, seed=1)


@pytest.mark.parametrize('resume', [False, True])
def test_guard_lists_each_difference_and_changes_nothing(tmp_path, resume):
  _guard(tmp_path)
  before = (tmp_path / 'config.json').read_bytes()
  with pytest.raises(ValueError, match='of another experiment') as caught:
    _guard(
      tmp_path,
      resume=resume,
      method='depthfl',
      lora=config.Lora(rank=4, targets=('attn.q',)),
    )
  assert str(caught.value).splitlines()[1:] == [
    "  method: 'fedra' there, 'depthfl' here",
    '  lora.rank: 8 there, 4 here',
    "  lora.targets: ['attn.proj', 'mlp.fc2'] there, ['attn.q'] here",
  ]
  assert (tmp_path / 'config.json').read_bytes() == before


@pytest.mark.parametrize('text', ['{"method', '[]'])
def test_guard_names_a_broken_config(tmp_path, text):
  (tmp_path / 'config.json').write_text(text)
  with pytest.raises(ValueError, match=r'config\.json must hold an experiment'):
    _guard(tmp_path, resume=True)


@pytest.mark.parametrize('name', ['file', 'file/below'])
def test_guard_refuses_a_file(tmp_path, name):
  (tmp_path / 'file').write_text('')
  with pytest.raises(OSError, match=r'workdir=.* must be a folder'):
    _guard(tmp_path / name)


def test_guard_refuses_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
  # root may write anywhere, so the answer of the system is replaced.
  monkeypatch.setattr(os, 'access', lambda *_: False)
  with pytest.raises(PermissionError, match='must be writable'):
    _guard(tmp_path)

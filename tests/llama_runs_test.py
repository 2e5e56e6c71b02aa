"""Federated runs of a Llama on made-up texts, and what is refused."""

from typing import Any

from flax import nnx
import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
import tiny_folders

from fedjax_tune import config
from fedjax_tune.methods.raffm import salience, spaces
from fedjax_tune.models import backbone, export, foundation, pretrained, sizes
from fedjax_tune.training import build, loop

_MAPS = ('attn.q', 'attn.v', 'mlp.gate', 'mlp.down')


@pytest.fixture(scope='module', name='llama')
def _llama(tmp_path_factory):
  """A folder of a tiny Llama with its tokenizer."""
  return tiny_folders.write_llama(tmp_path_factory.mktemp('llama'))


def _experiment(weights: str, method: str = 'fedra', **sections: Any) -> Any:
  e = config.Experiment(
    method=method,
    rounds=2,
    eval_every=2,
    model=config.Model(weights=weights),
    lora=config.Lora(rank=2, targets=_MAPS),
    data=config.Data(name='ag_news_subset', lengths=(32,), test_examples=8),
    clients=config.Clients(
      partition='iid', count=4, budgets=(3, 2, 2, 2), min_examples=1,
      cohort='uniform', cohort_size=4,
    ),
    local=config.Local(lr=0.1, steps=2, batch_size=4),
  )  # fmt: skip
  for section, fields in sections.items():
    for field, value in fields.items():
      setattr(getattr(e, section), field, value)
  return e


@pytest.mark.parametrize(
  'task', [pytest.param('', marks=pytest.mark.slow), 'next_token']
)
def test_fedra_trains_a_llama(llama, tmp_path, task):
  experiment = _experiment(llama, data={'task': task})
  with tfds.testing.mock_data(num_examples=40):
    summary = loop.train(experiment, str(tmp_path))
  assert summary['metric'] == 'accuracy'
  assert set(summary['other_metrics']) == ({'perplexity'} if task else set())
  assert 0 < summary['train_loss'] < 10
  if task:
    assert summary['other_metrics']['perplexity'] > 1


@pytest.mark.slow
@pytest.mark.parametrize(
  ('tune', 'method', 'task'),
  [('prompt', 'fedra', 'next_token'), ('prefix', 'heterofl', '')],
)
def test_a_llama_trains_tokens(llama, tmp_path, tune, method, task):
  experiment = _experiment(
    llama,
    method,
    model={'tune': tune, 'prompt_tokens': 2},
    data={'task': task, 'lengths': (8, 16)},
    width={'rates': (1.0, 0.5), 'axes': ('heads', 'v_dim', 'ffn')},
  )
  if method == 'heterofl':
    experiment.clients.budgets = ()
  with tfds.testing.mock_data(num_examples=40):
    summary = loop.train(experiment, str(tmp_path / 'run'))
    assert np.isfinite(summary['train_loss'])
    experiment.data.lengths = (31,)
    with pytest.raises(
      ValueError, match=r'lengths=\(31,\) must be at most 30: .* behind its'
    ):
      build.build(experiment)


@pytest.mark.parametrize(
  'method', ['raffm', pytest.param('heterofl', marks=pytest.mark.slow)]
)
def test_narrower_llamas_train(llama, tmp_path, method):
  """Without a head of their own, too: the word table predicts."""
  experiment = _experiment(
    llama,
    method,
    model={'tune': 'full'},
    width={'rates': (1.0, 0.5), 'axes': ('embed', 'heads', 'v_dim', 'ffn')},
    raffm={
      'priority': 'none',
      'space': 'custom',
      'heads': (1.0, 0.5),
    },
    data={'task': 'next_token'},
  )
  with tfds.testing.mock_data(num_examples=40):
    summary = loop.train(experiment, str(tmp_path))
  assert summary['compiles'] == 2
  assert np.isfinite(summary['train_loss'])


def test_random_preset():
  loaded = pretrained.load_pretrained('random:llama_test', '', 0)
  cfg = loaded.config
  assert isinstance(cfg, sizes.DecoderConfig)
  assert (cfg.heads, cfg.group, cfg.head_dim) == (2, 2, 4)
  assert 'lm_head' not in loaded.params
  assert loaded.params['blocks']['attn']['q']['kernel'].shape == (
    4, 16, 2, 2, 4,
  )  # fmt: skip
  np.testing.assert_array_equal(loaded.params['norm']['scale'], np.ones(16))


@pytest.mark.parametrize(
  ('method', 'sections', 'message'),
  [
    (
      'fedra',
      {'lora': {'targets': ('attn.proj', 'mlp.fc2')}},
      r"lora.targets\[1\]='mlp.fc2' must be one of attn.k, .*mlp.up, the linear",
    ),
    ('raffm', {}, r"priority='qk' must be 'none'.*rotary"),
    (
      'raffm',
      {'raffm': {'priority': 'none', 'mode': 'mask', 'space': 'paper_bert'}},
      r"raffm.mode='mask' does not serve a decoder",
    ),
    ('heterofl', {}, r"width.axes=.*'qk_dim' must be one of embed, heads, v_dim"),
    ('prism', {'model': {'tune': 'full'}}, "method='prism' does not serve a dec"),
    ('fedra', {'model': {'tune': 'bitfit'}}, "tune='bitfit' must be another for a dec"),
    ('fedra', {'data': {'name': 'squad'}}, r"family 'llama' has no head for spa"),
  ],
)  # fmt: skip
def test_what_a_llama_cannot_is_refused(llama, method, sections, message):
  experiment = _experiment(llama, method, **sections)
  with (
    tfds.testing.mock_data(num_examples=40),
    pytest.raises(ValueError, match=message),
  ):
    build.build(experiment)


def test_next_tokens_need_a_decoder_with_its_head(tmp_path):
  want = r"data.task='next_token' needs a decoder.*text_test' has none"
  e = _experiment('random:text_test', data={'task': 'next_token'})
  e.lora.targets = ('attn.q',)
  with tfds.testing.mock_data(), pytest.raises(ValueError, match=want):
    build.build(e)
  # A classifier's folder whose head was not tied to the word table.
  cfg = sizes.DecoderConfig(
    2, 8, 1, 8, vocab=20, positions=32, group=1, head_dim=4, tied=False,
    num_classes=2, full=True,
  )  # fmt: skip
  rngs = nnx.Rngs(0)
  split = foundation.split(backbone.build_model(cfg, rngs=rngs), 2)
  theta = jax.tree.map(lambda leaf: leaf + 0.1, split.theta)
  export.save_huggingface(tmp_path, cfg, theta, ['a', 'b'])
  e.model.weights = str(tmp_path)
  with tfds.testing.mock_data(), pytest.raises(ValueError, match='has none'):
    build.build(e)


def test_salience_never_reorders_rotary_channels():
  axes = {'attn': {'q': {'kernel': ('layer', 'embed', 'heads', 'rotary')}}}
  for scope in ('qk', 'qk+vo', 'qk+vo+ffn'):
    with pytest.raises(
      ValueError, match=f'{scope}.*rotary'.replace('+', r'\+')
    ):
      salience.rank({}, axes, scope)
  assert salience.rank({}, axes, 'none') == {}


def test_subnetworks_keep_the_width_of_rotary_heads():
  cfg = sizes.DecoderConfig(4, 16, 4, 32, 64, 32, group=2, head_dim=4)
  axes = sizes.axis_sizes(cfg)
  row = spaces.row_of((1.0, 0.5, 0.5, 1.0, 0.5), axes)
  assert row == {'layer': 2, 'heads': 2, 'ffn': 16}
  with pytest.raises(ValueError, match=r'head_dim=0.5 must be 1'):
    spaces.row_of((0.5, 1.0, 1.0, 1.0, 1.0), axes)

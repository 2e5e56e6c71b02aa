"""RaFFM's experiment files, end to end on made-up data."""

import importlib
import math

from flax import nnx
import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
import tiny
import tiny_folders

from fedjax_tune import config, selection
from fedjax_tune.methods.raffm import spaces
from fedjax_tune.models import backbone, foundation, sizes
from fedjax_tune.training import loop

_AUTHORS = importlib.import_module('experiments.raffm_authors')
_METRICS = {
  'cola': 'matthews',
  'stsb': 'pearson',
  'squad1': 'f1',
  'squad2': 'f1',
}
_OTHERS = (
  'mnli',
  'stsb',
  'sst2',
  'mrpc',
  'qqp',
  'qnli',
  'rte',
  'cola',
  'squad2',
)


@pytest.fixture(scope='module')
def bert(tmp_path_factory):
  """A folder of a tiny BERT with its tokenizer."""
  return tiny_folders.write_bert(tmp_path_factory.mktemp('bert'))


def _shrink(experiment):
  """Keeps the setting; two clients take one step of a tiny model."""
  experiment.rounds = 1
  experiment.data.lengths = (32,)
  experiment.data.image_size = 16
  experiment.data.test_examples = 10
  experiment.clients.count = 4
  experiment.clients.cohort_size = 2
  experiment.clients.shots = 1
  experiment.clients.min_examples = 1
  experiment.local.batch_size = 4
  experiment.local.epochs = 2
  return experiment


@pytest.mark.parametrize('name', ['squad1', *tiny.slow(*_OTHERS)])
def test_text_runs_a_round(name, bert, tmp_path):
  experiment = _shrink(_AUTHORS.get_config(name))
  experiment.model.weights = bert
  with tfds.testing.mock_data(num_examples=40):
    summary = loop.train(experiment, str(tmp_path))
  assert summary['metric'] == _METRICS.get(name, 'accuracy')
  # Masks are data, and all clients compute with the full model.
  assert summary['compiles'] == 1
  assert np.isfinite(summary['train_loss'])
  assert set(summary['other_accuracies']) == {'smallest'}


@pytest.mark.parametrize(
  'name', ['cifar10', *tiny.slow('cifar100', 'flowers102')]
)
def test_images_run_a_round(name, tmp_path):
  experiment = _shrink(_AUTHORS.get_config(name))
  experiment.model.weights = 'random:vit_test'
  with tfds.testing.mock_data(num_examples=60):
    summary = loop.train(experiment, str(tmp_path))
  assert summary['compiles'] == 1
  assert np.isfinite(summary['train_loss'])


def test_every_set_is_the_authors():
  for name in ('sst2', 'mrpc', 'mnli', 'qqp', 'qnli', 'stsb', 'rte', 'cola'):
    e = _AUTHORS.get_config(name)
    assert e.data.name == f'glue/{name}'
    assert (e.local.optimizer, e.local.lr, e.local.epochs) == ('adamw', 2e-5, 3)
    assert (e.local.weight_decay, e.local.batch_size) == (0.01, 24)
    assert e.rounds == 50
    assert (e.local.schedule, e.local.decay_mask) == ('linear', 'no_bias_norm')
    assert (e.model.dropout, e.local.clip_norm) == (0.1, 1.0)
    assert e.raffm == config.Raffm(mode='mask', space='paper_bert')
  e = _AUTHORS.get_config('cifar100')
  assert (e.local.optimizer, e.local.lr, e.local.epochs) == ('adam', 3e-5, 5)
  assert (e.clients.partition, e.clients.shots) == ('k_shot', 12)
  assert (e.local.schedule, e.local.gamma) == ('exponential', 0.95)
  assert (e.model.dropout, e.local.weight_decay) == (0.0, 0.0)
  assert e.raffm == config.Raffm(mode='mask', space='paper_vit')
  for name in ('rte', 'squad2', 'flowers102'):
    e = _AUTHORS.get_config(name)
    assert (e.clients.count, e.clients.cohort_size) == (100, 10)
    assert (e.local.decay, e.local.decay_every) == (0.98, 5)
    stops = (5, False) if name == 'flowers102' else (10, True)
    assert (e.patience, e.keep_best) == stops
    # Without a smallest client: masks know none.
    assert e.raffm.mode == 'mask'
  with pytest.raises(ValueError, match=r"SET='imdb' must be one of sst2, "):
    _AUTHORS.get_config('imdb')


_MINILM = sizes.TextConfig(6, 384, 12, 1536, 30522, 512, 'bert', full=True)
_DINOV2 = sizes.ViTConfig(12, 384, 6, 1536, 14, 42, layer_scale=True, full=True)


@pytest.mark.parametrize(
  ('name', 'cfg'), [('raffm_reviews', _MINILM), ('raffm_emoji', _DINOV2)]
)
def test_baselines_hold_as_much_as_raffm(name, cfg):
  experiment = importlib.import_module(f'experiments.{name}').get_config()
  model = nnx.eval_shape(lambda: backbone.build_model(cfg, rngs=nnx.Rngs(0)))
  split = foundation.split(model, cfg.depth)
  axes = dict(sizes.Axes.of(cfg))

  def params(row):
    cut = lambda theta: selection.select(theta, split.axes, row)
    return foundation.num_params(jax.eval_shape(cut, split.theta))

  shares = spaces.SPACES['released'].ffn
  rates = experiment.width.rates
  assert len(rates) == len(shares)
  for share, rate in zip(shares, rates, strict=True):
    slim = {a: math.ceil(rate * axes[a]) for a in experiment.width.axes}
    want = params({'ffn': round(share * axes['ffn'])})
    assert params(slim) == pytest.approx(want, rel=0.03)

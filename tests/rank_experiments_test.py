"""The experiment of ranks, end to end on made-up data."""

import importlib
import json

import numpy as np
import pytest
import tensorflow_datasets as tfds
import tiny
import tiny_folders

from fedjax_tune.deploy import deployment, finished
from fedjax_tune.training import loop

_OTHERS = (
  'hetlora', 'ffa_lora', 'all_large', 'fedit', 'rbla', 'flexlora', 'fedex_lora',
)  # fmt: skip


@pytest.fixture(scope='module')
def bert(tmp_path_factory):
  """A folder of a tiny BERT with its tokenizer."""
  return tiny_folders.write_bert(tmp_path_factory.mktemp('bert'))


def _shrink(method, bert):
  """Keeps the setting; four clients of two ranks take a step of a tiny model."""
  e = importlib.import_module('experiments.rank_reviews').get_config()
  e.method, e.rounds, e.eval_every = method, 2, 1
  e.model.weights, e.data.name = bert, 'glue/sst2'
  e.data.lengths, e.data.test_examples = (32,), 10
  e.clients.count, e.clients.cohort_size, e.clients.min_examples = 4, 2, 1
  e.local.batch_size, e.local.steps, e.engine.slab = 4, 1, 2
  e.lora.rank, e.lora.alpha, e.rank.ranks = 3, 6.0, (3, 2)
  return e


@pytest.mark.parametrize('method', ['flora', *tiny.slow(*_OTHERS)])
def test_runs_and_deploys(method, bert, tmp_path):
  experiment = _shrink(method, bert)
  with tfds.testing.mock_data(num_examples=40):
    summary = loop.train(experiment, str(tmp_path))
    trained = finished.load(tmp_path)
    rows = {'full': trained.sizes}
    scores = deployment.build_evaluate(trained, rows)(trained.params)
  assert np.isfinite(summary['train_loss'])
  # What a run evaluates is what is deployed, frozen weights included.
  assert deployment.score(scores['full']) == pytest.approx(summary['accuracy'])
  old = trained.setup.algorithm.model.base['blocks']['attn']
  new = trained.params['blocks']['attn']
  for name in ('q', 'v'):
    assert np.abs(new[name]['kernel'] - old[name]['kernel']).max() > 1e-5
  costs = json.loads((tmp_path / 'costs.json').read_text())
  up, down = summary['uplink_bytes'], summary['downlink_bytes']
  assert up < down if method in ('flora', 'fedex_lora') else up == down
  if method != 'all_large':
    assert {row['name'] for row in costs} <= {
      '2 layers, 32 tok',
      '2 layers, rank 2, 32 tok',
    }


@pytest.mark.slow
def test_resumed_is_bit_for_bit(bert, tmp_path):
  """Also what the server has added to frozen weights."""
  whole, halves = tmp_path / 'whole', tmp_path / 'halves'
  with tfds.testing.mock_data(num_examples=40):
    experiment = _shrink('flora', bert)
    want = loop.train(experiment, str(whole))
    experiment.checkpoint_every = 1
    experiment.rounds = 1
    loop.train(experiment, str(halves))
    experiment.rounds = 2
    got = loop.train(experiment, str(halves), resume=True)
  for name in ('accuracy', 'train_loss', 'downlink_bytes'):
    assert got[name] == want[name]

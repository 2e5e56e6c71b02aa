"""PruneFL: what is pruned, when, and that the rest is FedAvg."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from fedjax_tune.methods import METHODS
from fedjax_tune.methods.raffm import prunefl

_MODEL = {'model': {'tune': 'full'}}
_SIZES = {'layer': tiny.DEPTH}


@functools.cache
def _vit():
  return tiny.vit_foundation(targets=(), full=True)


def _algorithm(**options):
  e = tiny.experiment('prunefl', **_MODEL, prunefl=options)
  return tiny.build(e, _vit())


def _reordered(algorithm, theta):
  """Returns what clients get of theta in the next round."""
  assert algorithm.reorder is not None
  move = algorithm.reorder(theta, algorithm.model.axes)
  assert move is not None
  return move(theta)


def _pruned(found, **options):
  return _reordered(_algorithm(**options), found.theta)


def _twin(kernel, keep):
  """Zeroes the smallest weights of one matrix, one after another."""
  pruned = np.array(kernel).ravel()
  count = pruned.size - int(pruned.size * keep)
  pruned[np.argsort(np.abs(pruned), kind='stable')[:count]] = 0
  return pruned.reshape(kernel.shape)


def test_dense_maps_keep_the_largest_of_each_layer():
  found = _vit()
  got = _pruned(found, keep=0.8, threshold=0.05)['blocks']
  for module, name in (('attn', 'proj'), ('mlp', 'fc1'), ('mlp', 'fc2')):
    before = found.theta['blocks'][module][name]['kernel']
    after = np.asarray(got[module][name]['kernel'])
    want = [_twin(np.asarray(layer), 0.8) for layer in before]
    np.testing.assert_array_equal(after, want)
    size = after[0].size
    assert np.sum(after[0] == 0) == size - int(0.8 * size)


def test_other_maps_keep_what_exceeds_the_threshold():
  found = _vit()
  got = _pruned(found, threshold=0.05)
  pairs = [
    (got['blocks']['attn'][name], found.theta['blocks']['attn'][name])
    for name in 'qkv'
  ]
  for after, before in [*pairs, (got['head'], found.theta['head'])]:
    kernel = np.asarray(before['kernel'])
    want = np.where(np.abs(kernel) > 0.05, kernel, 0)
    assert 0 < np.sum(want == 0) < want.size
    np.testing.assert_array_equal(after['kernel'], want)


def test_biases_norms_and_embeddings_stay():
  found = _vit()
  got = _pruned(found, threshold=9.0)
  tiny.assert_equal(got['embed'], found.theta['embed'])
  tiny.assert_equal(got['norm'], found.theta['norm'])
  for part in ('norm1', 'norm2'):
    tiny.assert_equal(got['blocks'][part], found.theta['blocks'][part])
  np.testing.assert_array_equal(
    got['head']['bias'], found.theta['head']['bias']
  )


def test_a_pooler_is_one_matrix():
  found = tiny.text_foundation(full=True)
  mask = prunefl.mask(found.theta, found.axes, 0.5, 0.0)
  kept = mask['pooler']['kernel']
  assert kept.shape == found.theta['pooler']['kernel'].shape
  assert np.sum(kept) == kept.size // 2


def test_equal_magnitudes_go_together():
  weights = jnp.array([[1.0, -1.0, 2.0, 3.0], [0.0, 0.0, 0.0, 4.0]])
  np.testing.assert_array_equal(
    prunefl.largest(weights, 0.75), [[0, 0, 1, 1], [0, 0, 0, 1]]
  )


@functools.cache
def _run(method, keep, lr=0.1):
  e = tiny.experiment(
    method,
    model={'tune': 'full'},
    prunefl={'keep': keep, 'threshold': 0.0},
    clients={'budgets': (tiny.DEPTH,) * 2, 'count': 2, 'cohort_size': 2},
    local={'steps': 1, 'lr': lr, 'clip_norm': 0.0},
  )
  return tiny.run(e, _vit())


def test_keeping_all_is_fedavg():
  want = _run('all_large', 1.0).rounds(2).theta
  tiny.assert_close(_run('prunefl', 1.0).rounds(2).theta, want, atol=1e-6)


def test_pruned_weights_train_and_come_back():
  run = _run('prunefl', 0.8, lr=3.0)
  start = run.engine.init().theta
  end = run.rounds(1).theta
  # The model is pruned before the first round and after each.
  for theta in (start, end):
    tiny.assert_equal(_reordered(run.algorithm, theta), theta)
  masks = [prunefl.mask(theta, run.axes, 0.8, 0.0) for theta in (start, end)]
  before, after = (
    np.asarray(m['blocks']['mlp']['fc1']['kernel']) for m in masks
  )
  assert np.any(after & ~before)


def test_it_is_about_weights_that_train():
  e = tiny.experiment('prunefl', model={'tune': 'lora'})
  with pytest.raises(ValueError, match=r"model\.tune='lora' must be 'full'"):
    METHODS['prunefl'].check(e, _SIZES, tiny.BUDGETS)


def test_everyone_holds_the_full_model():
  rows = _algorithm().rule.draw(0, [0, 1, 2, 3])
  assert rows == [{'layer': tiny.DEPTH}] * 4

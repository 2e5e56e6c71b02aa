"""What nobody trains costs no gradient, and may run once per example."""

import jax
import numpy as np
import pytest
import tiny

import fedjax_tune as ft
from fedjax_tune.costs import flops
from fedjax_tune.data.tasks import Task
from fedjax_tune.training import build
from fedjax_tune.training.run import Run

_BATCH, _WIDTH, _SIDE = 5, 16, 8
_LAYERS = np.arange(tiny.DEPTH)


def _backward(found, size):
  """Counts the FLOPs of a gradient, without those of the loss."""
  task, batch = Task('classification', tiny.CLASSES), tiny.batch(size, _BATCH)

  def loss(theta, base):
    outputs = found.merge(base, theta)(batch.inputs, _LAYERS)
    return task.loss(outputs, batch)[0]

  forward = flops.count_flops(loss, found.theta, found.base)
  both = flops.count_flops(jax.grad(loss), found.theta, found.base)
  return both - forward, forward


def test_a_head_alone_has_no_gradient_below():
  found = tiny.vit_foundation(targets=())
  assert set(found.theta) == {'head'}
  backward, forward = _backward(found, tiny.VIT_SIZE)
  assert backward == 2 * _BATCH * _WIDTH * tiny.CLASSES
  assert forward > 1000 * backward


def test_a_frozen_embedding_has_no_gradient():
  """It is four times as large in the second model, of as many tokens."""
  small = tiny.vit_foundation(targets=('attn.q',))
  large = tiny.vit_foundation(targets=('attn.q',), patch=16, image_size=32)
  (one, first), (four, second) = (
    _backward(small, tiny.VIT_SIZE),
    _backward(large, 32),
  )
  assert one == four
  assert second > first


def _images(count, seed):
  rng = np.random.default_rng(seed)
  labels = rng.integers(3, size=count)
  images = rng.integers(0, 100, (count, _SIDE, _SIDE, 3))
  return (images + 60 * labels[:, None, None, None]).astype(np.uint8), labels


_DATA = ft.from_arrays(*_images(48, 0), *_images(21, 1))


def _experiment(cached, method='all_large'):
  e = ft.Experiment(method=method, rounds=2, eval_every=1)
  e.model.weights, e.data.image_size = 'random:vit_test', _SIDE
  e.model.tune = 'head'
  e.clients.partition, e.clients.count, e.clients.budgets = 'iid', 3, ()
  e.clients.cohort, e.clients.cohort_size = 'uniform', 3
  e.local.batch_size, e.local.steps, e.local.lr = 4, 2, 0.1
  e.clients.min_examples = 1
  e.engine.compilation_cache, e.engine.cache_frozen = False, cached
  return e


def test_cached_features_train_the_same_head():
  found = {}
  for cached in (False, True):
    run = Run(build.build(_experiment(cached), data=_DATA))
    found[cached] = run, *_trained(run)
  (plain, theta, before), (run, same, after) = found[False], found[True]
  tiny.assert_close(same, theta, rtol=1e-4, atol=1e-6)
  assert before.keys() == after.keys()
  for name, value in before.items():
    np.testing.assert_allclose(after[name], value, rtol=1e-5)
  (sig,) = run.costs
  width, classes = theta['head']['kernel'].shape
  assert run.costs[sig].flops == 2 * 2 * 4 * width * classes
  assert plain.costs[sig].flops > 100 * run.costs[sig].flops
  for name in ('base_params', 'theta_params', 'theta_bytes'):
    assert getattr(run.costs[sig], name) == getattr(plain.costs[sig], name)
  (note,) = [n for n in run.setup.notes if 'frozen' in n]
  assert note.startswith('The frozen model ran once over 69 examples')
  assert [split.inputs.shape for split in run.setup.features] == [
    (48, width),
    (21, width),
  ]


def _trained(run):
  """Returns what two rounds train, and how good that is."""
  state = run.engine.init()
  for rnd in range(2):
    plan = run.setup.planner.plan(rnd)
    state, _ = run.engine.round(state, plan, jax.random.key(0), 0.1)
  return state.theta, run.evaluate(state, 1)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (
      lambda e: setattr(e.model, 'tune', 'lora'),
      'head alone must train',
    ),
    (lambda e: setattr(e.model, 'dropout', 0.1), 'model.dropout=0.1 must be 0'),
    (
      lambda e: (
        setattr(e, 'method', 'fedra'),
        setattr(e.clients, 'budgets', (4, 2, 2)),
      ),
      "method='fedra' must give every client the same blocks",
    ),
  ],
)
def test_what_cannot_be_cached_is_refused(change, message):
  e = _experiment(cached=True)
  change(e)
  with pytest.raises(ValueError, match=message):
    build.build(e, data=_DATA)

"""DepthFL: where classifiers stand, what they learn from each other."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_depth
from tiny_depth import found

from fedjax_tune import config, selection
from fedjax_tune.costs import flops
from fedjax_tune.engine.algorithm import Algorithm
from fedjax_tune.engine.evaluate import build_predict
from fedjax_tune.methods.depth import depthfl

_BUDGETS = (4, 3, 2, 3)


class _Made(NamedTuple):
  """The method, where its classifiers are, and until when they ramp up."""

  algorithm: Algorithm
  exits: depthfl.Exits
  ramp_rounds: int


def _build(budgets, depth, seed=0, **options):
  e = config.Experiment(method='depthfl', seed=seed)
  for name, value in options.items():
    setattr(e.depthfl, name, value)
  return tiny.build(e, found, budgets, widths={'layer': depth})


def _published(budgets=_BUDGETS, depth=4, **options):
  algorithm = _build(budgets, depth, **options)
  return _Made(algorithm, depthfl.at_budgets(budgets), 300)


def _port(budgets=_BUDGETS, depth=4, **options):
  algorithm = _build(budgets, depth, variant='fedra_port', **options)
  return _Made(algorithm, depthfl.every_third(depth), 500)


def _exits(method, client):
  return method.exits.of(tiny.signature(method.algorithm, client)['layer'])


def _exit_logits(theta, row, depth):
  """Logits of the plain model cut after a block, under one classifier."""
  head = jax.tree.map(lambda x: x[row], theta['head'])
  return tiny_depth.logits({**found.theta, 'head': head}, depth)


def _scores(method, client):
  """Logits of each of a client's classifiers."""
  rows = tiny_depth.row(method.algorithm, client)['exit']
  return [
    _exit_logits(method.algorithm.model.theta, row, exit_ + 1)
    for exit_, row in zip(_exits(method, client), rows, strict=True)
  ]


def _softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def _slow_loss(scores, label, weight):
  """The authors' double loop over classifiers, batch mean, in float64."""
  probs = [_softmax(np.asarray(s, np.float64)) for s in scores]
  total = 0.0
  for i, p in enumerate(probs):
    total += np.mean(-np.log(p[np.arange(len(label)), label]))
    for j, q in enumerate(probs):
      if j != i:
        kl = np.mean(np.sum(q * (np.log(q) - np.log(p)), -1))
        total += weight * kl / (len(probs) - 1)
  return total


def test_published_exits_by_hand():
  method = _published((12, 10, 8, 6, 4, 3), depth=12)
  assert _exits(method, 0) == (2, 3, 5, 7, 9, 11)
  assert _exits(method, 2) == (2, 3, 5, 7)
  assert _exits(method, 5) == (2,)


@pytest.mark.parametrize(
  ('depth', 'exits', 'rows'),
  [
    (12, (3, 6, 9, 11), [0, 1, 2, 3]),
    (10, (3, 6, 9, 9), [0, 1, 2, 3]),
    (8, (3, 6, 7), [0, 1, 3]),
    (6, (3, 5), [0, 3]),
    (4, (3, 3), [0, 3]),
    (3, (2,), [3]),
  ],
)
def test_port_exits_are_those_of_fedras_code(depth, exits, rows):
  method = _port((depth,), depth=12)
  assert _exits(method, 0) == exits
  (row,) = method.algorithm.rule.draw(0, [0])
  np.testing.assert_array_equal(row['exit'], rows)


@pytest.mark.parametrize('make', [_published, _port])
@pytest.mark.parametrize('budgets', [(4, 3, 2), (1, 2), (3, 3), (4, 1, 2, 3)])
def test_allocation_is_a_nested_prefix(make, budgets):
  method = make(budgets)
  rows = method.algorithm.rule.draw(3, range(len(budgets)))
  for k, row in enumerate(rows):
    sig = tiny.signature(method.algorithm, k)
    np.testing.assert_array_equal(row['layer'], np.arange(budgets[k]))
    for axis, amount in sig.amounts:
      assert len(row[axis]) == amount
    exits = _exits(method, k)
    assert len(exits) == sig['exit']
    assert exits[-1] == budgets[k] - 1
    assert np.all(np.diff(row['exit']) > 0)
    assert row['exit'][-1] < method.exits.num


def test_ramp_by_hand():
  got = [float(depthfl.ramp(jnp.int32(t), 300)) for t in (0, 150, 300, 900)]
  np.testing.assert_allclose(got, [np.exp(-5), np.exp(-1.25), 1, 1], rtol=1e-6)


def test_distillation_by_hand():
  # softmax: (1/2, 1/2) and (1/4, 3/4); the padded example counts for nothing.
  scores = jnp.log(jnp.asarray([[[1.0, 1.0], [9, 1]], [[1, 3], [1, 9]]]))
  got = depthfl.distillation(scores, jnp.asarray([True, False]))
  down = 0.5 * np.log(2) + 0.5 * np.log(2 / 3)
  up = 0.25 * np.log(1 / 2) + 0.75 * np.log(3 / 2)
  np.testing.assert_allclose(got, down + up, rtol=1e-5)


def test_teachers_get_no_gradient():
  """d/ds_i = 1/(E-1) sum_j (softmax(s_i) - softmax(s_j)), students only."""
  scores = np.random.default_rng(0).normal(size=(3, 1, 4)).astype(np.float32)
  grad = jax.grad(depthfl.distillation)(jnp.asarray(scores), jnp.ones(1, bool))
  probs = _softmax(scores)
  want = (3 * probs - probs.sum(0)) / 2
  np.testing.assert_allclose(grad, want, rtol=1e-4, atol=1e-6)


def test_one_classifier_has_nothing_to_distill():
  scores = jnp.asarray(np.random.default_rng(0).normal(size=(1, 5, 3)))
  assert depthfl.distillation(scores, jnp.ones(5, bool)) == 0


@pytest.mark.parametrize('make', [_published, _port])
@pytest.mark.parametrize('client', [0, 2])
def test_loss_is_its_slow_twin(make, client):
  method = make()
  batch = tiny_depth.batch()
  (loss, metrics), grads = tiny_depth.loss(method.algorithm, client)
  scores = _scores(method, client)
  weight = np.exp(-5 * (1 - 200 / method.ramp_rounds) ** 2)
  # The last example is padding.
  real = [s[:3] for s in scores]
  want = _slow_loss(real, np.asarray(batch.label)[:3], weight)
  np.testing.assert_allclose(loss, want, rtol=1e-4)
  _, deepest = method.algorithm.task.loss(scores[-1], batch)
  for name, value in deepest.items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-4)
  assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))
  assert all(np.any(g) for g in jax.tree.leaves(grads['head']))


def test_classifiers_start_apart_and_the_last_is_the_models():
  model = _published().algorithm.model
  theta, axes = model.theta, model.axes
  kernel = theta['head']['kernel']
  assert axes['head']['kernel'] == ('exit', 'embed', 'class')
  assert axes['head']['bias'] == ('exit', 'class')
  np.testing.assert_array_equal(kernel[-1], found.theta['head']['kernel'])
  assert not np.any(kernel[0] == kernel[1])
  assert np.max(np.abs(kernel[:-1])) <= 1 / np.sqrt(6)
  other = _published(seed=1).algorithm.model.theta
  assert np.any(other['head']['kernel'][0] != kernel[0])


def test_one_level_is_fedavg():
  algorithm = _published((4, 4)).algorithm
  batch = tiny_depth.batch()
  (got, metrics), _ = tiny_depth.loss(algorithm, 0)
  logits = tiny_depth.logits(found.theta, 4)
  want, sums = algorithm.task.loss(logits, batch)
  np.testing.assert_allclose(got, want, rtol=1e-4)
  np.testing.assert_allclose(metrics['loss'], sums['loss'], rtol=1e-4)


@pytest.mark.parametrize('make', [_published, _port])
def test_merge_averages_each_classifier_over_its_holders(make):
  method = make()
  theta = {'head': {'kernel': jnp.zeros((2, 1)), 'bias': jnp.zeros(1)}}
  names = {'head': {'kernel': ('embed', 'class'), 'bias': ('class',)}}
  small = dataclasses.replace(found, theta=theta, axes=names)
  model = depthfl.with_exits(small, method.exits.num, seed=0)
  theta, axes = model.theta, model.axes
  group_sum = jax.jit(lambda *args: selection.group_sum(theta, axes, *args))
  parts, num, den = [], *np.zeros((2, method.exits.num))
  for k, weight in ((0, 1.0), (2, 3.0)):
    row = tiny_depth.row(method.algorithm, k)
    num[row['exit']] += weight * (k + 1)
    den[row['exit']] += weight
    local = selection.select_within(theta, axes, row)
    fill = lambda x, k=k: jnp.full((1, *x.shape), k + 1.0)
    alloc = jax.tree.map(lambda x: x[None], selection.within(row, axes))
    delta = jax.tree.map(fill, local)
    parts.append(group_sum(alloc, delta, jnp.asarray([weight])))
  total = jax.tree.map(lambda *xs: sum(xs), *parts)
  merge = method.algorithm.aggregator.merge
  update, _ = merge(theta, {'all': total}, ())
  want = np.where(den > 0, num / np.maximum(den, 1), 0)
  np.testing.assert_allclose(update.delta['head']['bias'][:, 0], want)
  np.testing.assert_array_equal(
    np.ravel(update.covered['head']['bias']), den > 0
  )


def test_evaluations():
  algorithm = _published().algorithm
  names = lambda method: list(method.algorithm.evaluation.models)
  assert names(_published()) == ['ensemble', 'last']
  assert names(_published(evaluate='last')) == ['last', 'ensemble']
  scores = {
    name: tiny_depth.predict(algorithm, name) for name in ('ensemble', 'last')
  }
  theta = algorithm.model.theta
  each = [
    _exit_logits(theta, row, depth) for row, depth in enumerate((2, 3, 4))
  ]
  np.testing.assert_allclose(scores['last'], each[-1], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(
    scores['ensemble'], np.mean(each, 0), rtol=1e-4, atol=1e-5
  )


def test_evaluations_run_the_model_once():
  algorithm, batch = _published().algorithm, tiny_depth.batch()
  model = algorithm.model
  predict = build_predict(model, algorithm.evaluation)

  def count(*names):
    program = lambda base, theta: predict(names, base, theta, batch)
    return flops.count_flops(program, model.base, model.theta)

  exits, width, classes = model.theta['head']['kernel'].shape
  heads = 2 * exits * len(batch.label) * width * classes
  assert count('ensemble', 'last') == count('last') + heads
  assert count('last') > 2 * heads


def test_evaluated_depth_when_nobody_holds_all():
  layers = lambda m: len(m.algorithm.evaluation.models['last']['layer'])
  assert layers(_published((3, 2))) == 3
  assert layers(_port((3, 2))) == 4


def test_build():
  """What is not set is the variant's; rounds of the ramp are tested above."""
  assert config.Experiment().depthfl.variant == 'published'
  names = lambda method: list(method.algorithm.evaluation.models)
  assert names(_published()) == ['ensemble', 'last']
  assert names(_port()) == ['last', 'ensemble']
  method = _port(evaluate='ensemble', ramp_rounds=7)
  assert names(method) == ['ensemble', 'last']
  (loss, _), _ = tiny_depth.loss(method.algorithm, 0, rnd=3)
  real = [s[:3] for s in _scores(method, 0)]
  weight = np.exp(-5 * (1 - 3 / 7) ** 2)
  want = _slow_loss(real, np.asarray(tiny_depth.batch().label)[:3], weight)
  np.testing.assert_allclose(loss, want, rtol=1e-4)

"""DepthFL: where classifiers stand, what they learn from each other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_depth
from tiny_depth import found

from fedjax_tune import config, selection
from fedjax_tune.methods import depthfl

_BUDGETS = (4, 3, 2, 3)


def _published(budgets=_BUDGETS, depth=4, evaluate='ensemble'):
  return depthfl.DepthFL(
    depth, budgets, seed=0, ramp_rounds=300, evaluate=evaluate
  )


def _port(budgets=_BUDGETS, depth=4):
  return depthfl.FedraPort(
    depth, budgets, seed=0, ramp_rounds=500, evaluate='last'
  )


def _exits(method, client):
  return method.exits(tiny.signature(method, client)['layer'])


def _exit_logits(theta, row, depth):
  """Logits of the plain model cut after a block, under one classifier."""
  head = jax.tree.map(lambda x: x[row], theta['head'])
  return tiny_depth.logits({**found.theta, 'head': head}, depth)


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
  np.testing.assert_array_equal(method.allocate(0, [0])[0]['exit'], rows)


@pytest.mark.parametrize('make', [_published, _port])
@pytest.mark.parametrize('budgets', [(4, 3, 2), (1, 2), (3, 3), (4, 1, 2, 3)])
def test_allocation_is_a_nested_prefix(make, budgets):
  method = make(budgets)
  for k, row in enumerate(method.allocate(3, range(len(budgets)))):
    sig = tiny.signature(method, k)
    np.testing.assert_array_equal(row['layer'], np.arange(budgets[k]))
    for axis, amount in sig.amounts:
      assert len(row[axis]) == amount
    exits = _exits(method, k)
    assert len(exits) == sig['exit']
    assert exits[-1] == budgets[k] - 1
    assert np.all(np.diff(row['exit']) > 0)
    assert row['exit'][-1] < method.num_exits


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
  theta, axes = method.init(found.theta, found.axes)
  batch = tiny_depth.batch()
  (loss, metrics), grads = tiny_depth.loss(method, theta, axes, client)
  scores = [
    _exit_logits(theta, row, exit_ + 1)
    for exit_, row in zip(
      _exits(method, client),
      tiny_depth.row(method, client)['exit'],
      strict=True,
    )
  ]
  weight = np.exp(-5 * (1 - 200 / method.ramp_rounds) ** 2)
  # The last example is padding.
  real = [s[:3] for s in scores]
  want = _slow_loss(real, np.asarray(batch.label)[:3], weight)
  np.testing.assert_allclose(loss, want, rtol=1e-4)
  _, deepest = method.task.loss(scores[-1], batch)
  for name, value in deepest.items():
    np.testing.assert_allclose(metrics[name], value, rtol=1e-4)
  assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))
  assert all(np.any(g) for g in jax.tree.leaves(grads['head']))


def test_classifiers_start_apart_and_the_last_is_the_models():
  method = _published()
  theta, axes = method.init(found.theta, found.axes)
  kernel = theta['head']['kernel']
  assert axes['head']['kernel'] == ('exit', 'embed', 'class')
  assert axes['head']['bias'] == ('exit', 'class')
  np.testing.assert_array_equal(kernel[-1], found.theta['head']['kernel'])
  assert not np.any(kernel[0] == kernel[1])
  assert np.max(np.abs(kernel[:-1])) <= 1 / np.sqrt(6)
  other, _ = dataclasses.replace(method, seed=1).init(found.theta, found.axes)
  assert np.any(other['head']['kernel'][0] != kernel[0])


def test_one_level_is_fedavg():
  method = _published((4, 4))
  theta, axes = method.init(found.theta, found.axes)
  batch = tiny_depth.batch()
  (got, metrics), _ = tiny_depth.loss(method, theta, axes, 0)
  logits = tiny_depth.logits(found.theta, 4)
  want, sums = method.task.loss(logits, batch)
  np.testing.assert_allclose(got, want, rtol=1e-4)
  np.testing.assert_allclose(metrics['loss'], sums['loss'], rtol=1e-4)


@pytest.mark.parametrize('make', [_published, _port])
def test_merge_averages_each_classifier_over_its_holders(make):
  method = make()
  theta = {'head': {'kernel': jnp.zeros((2, 1)), 'bias': jnp.zeros(1)}}
  names = {'head': {'kernel': ('embed', 'class'), 'bias': ('class',)}}
  theta, axes = method.init(theta, names)
  group_sum = jax.jit(lambda *args: selection.group_sum(theta, axes, *args))
  parts, num, den = [], *np.zeros((2, method.num_exits))
  for k, weight in ((0, 1.0), (2, 3.0)):
    row = tiny_depth.row(method, k)
    num[row['exit']] += weight * (k + 1)
    den[row['exit']] += weight
    local = selection.select_within(theta, axes, row)
    fill = lambda x, k=k: jnp.full((1, *x.shape), k + 1.0)
    alloc = jax.tree.map(lambda x: x[None], selection.within(row, axes))
    delta = jax.tree.map(fill, local)
    parts.append(group_sum(alloc, delta, jnp.asarray([weight])))
  total = jax.tree.map(lambda *xs: sum(xs), *parts)
  update, _ = method.merge(theta, {'all': total}, ())
  want = np.where(den > 0, num / np.maximum(den, 1), 0)
  np.testing.assert_allclose(update.delta['head']['bias'][:, 0], want)
  np.testing.assert_array_equal(
    np.ravel(update.covered['head']['bias']), den > 0
  )


def test_evaluations():
  method = _published()
  assert list(method.evaluations()) == ['ensemble', 'last']
  assert list(_published(evaluate='last').evaluations()) == ['last', 'ensemble']
  theta, axes = method.init(found.theta, found.axes)
  scores = {
    name: tiny_depth.predict(method, theta, axes, name)
    for name in ('ensemble', 'last')
  }
  each = [
    _exit_logits(theta, row, depth) for row, depth in enumerate((2, 3, 4))
  ]
  np.testing.assert_allclose(scores['last'], each[-1], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(
    scores['ensemble'], np.mean(each, 0), rtol=1e-4, atol=1e-5
  )


def test_evaluated_depth_when_nobody_holds_all():
  layers = lambda m: len(m.evaluations()['last']['layer'])
  assert layers(_published((3, 2))) == 3
  assert layers(_port((3, 2))) == 4


def test_build():
  experiment = config.Experiment()
  assert depthfl.build(experiment, {'layer': 4}, _BUDGETS) == _published()
  experiment.depthfl.variant = 'fedra_port'
  assert depthfl.build(experiment, {'layer': 4}, _BUDGETS) == _port()
  experiment.depthfl.evaluate = 'ensemble'
  experiment.depthfl.ramp_rounds = 7
  built = depthfl.build(experiment, {'layer': 4}, _BUDGETS)
  assert (built.evaluate, built.ramp_rounds) == ('ensemble', 7)

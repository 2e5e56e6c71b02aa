"""InclusiveFL: which rows a size holds, and how the server merges them."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_depth
from tiny_depth import found

from fedjax_tune import config, selection
from fedjax_tune.engine.algorithm import Aggregator, Algorithm, Client
from fedjax_tune.methods.depth import inclusivefl, layers
from fedjax_tune.typing import Axes, Tree

_BUDGETS = (4, 3, 2, 3)
_BETA = 0.2


def _algorithm(budgets=_BUDGETS, **options):
  e = config.Experiment(method='inclusivefl')
  for name, value in ({'beta': _BETA} | options).items():
    setattr(e.inclusivefl, name, value)
  return tiny.build(e, found, budgets)


def test_slots_by_hand():
  sizes = inclusivefl.Sizes(4, _BUDGETS)
  np.testing.assert_array_equal(sizes.slots(2), [0, 4])
  np.testing.assert_array_equal(sizes.slots(3), [0, 1, 5])
  np.testing.assert_array_equal(sizes.slots(4), [0, 1, 2, 3])


@pytest.mark.parametrize('budgets', [(4, 3, 2), (1, 2), (3, 3), (4, 1, 2, 3)])
def test_allocation_is_a_prefix_with_an_own_top_and_head(budgets):
  algorithm = _algorithm(budgets)
  rows: Any = algorithm.rule.draw(5, range(len(budgets)))
  tops = {}
  for k, row in enumerate(rows):
    c = budgets[k]
    np.testing.assert_array_equal(row['layer'], np.arange(c))
    np.testing.assert_array_equal(row['slot'][:-1], np.arange(c - 1))
    for axis, amount in tiny.signature(algorithm, k).amounts:
      assert len(row[axis]) == amount
    tops.setdefault(c, set()).add(
      (int(row['slot'][-1]), int(row['classifier'][0]))
    )
  assert all(len(own) == 1 for own in tops.values())
  own_slots, own_classifiers = zip(
    *(min(own) for own in tops.values()), strict=True
  )
  assert len(set(own_slots)) == len(own_slots)
  assert sorted(own_classifiers) == list(range(len(tops)))


def test_loss_is_the_plain_prefix_models():
  client, batch = 1, tiny_depth.batch()
  (loss, metrics), grads = tiny_depth.loss(_algorithm(), client)
  depth = _BUDGETS[client]
  logits = tiny_depth.logits(found.theta, depth)
  # The last example is padding.
  logits = np.asarray(logits, np.float64)[:3]
  chosen = logits[np.arange(3), np.asarray(batch.label)[:3]]
  want = np.mean(np.log(np.sum(np.exp(logits), -1)) - chosen)
  np.testing.assert_allclose(loss, want, rtol=1e-4)
  np.testing.assert_allclose(metrics['loss'], 3 * want, rtol=1e-4)
  assert metrics['count'] == 3
  assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))


class _Toy(NamedTuple):
  """The method on scalar rows."""

  algorithm: Algorithm
  budgets: tuple[int, ...]
  theta: Tree
  axes: Axes


def _toy(budgets=_BUDGETS, beta=_BETA):
  """Block l starts at l, the head at 0, embed is shared."""
  theta = {
    'blocks': {'a': jnp.arange(4.0)[:, None]},
    'embed': {'b': jnp.zeros(1)},
    'head': {'kernel': jnp.zeros((1, 1))},
  }
  axes = {
    'blocks': {'a': ('layer', 'rank')},
    'embed': {'b': ('rank',)},
    'head': {'kernel': ('embed', 'class')},
  }
  small = dataclasses.replace(found, theta=theta, axes=axes)
  grown = inclusivefl.Sizes(4, budgets).grow(small)
  return _Toy(_algorithm(budgets, beta=beta), budgets, grown.theta, grown.axes)


def _totals(toy, deltas):
  """Sums as the engine does, {client: (delta rows, weight)}, rest zeros."""
  totals = {}
  algorithm, theta, axes = toy.algorithm, toy.theta, toy.axes
  for k in range(len(toy.budgets)):
    sig = tiny.signature(algorithm, k)
    group = algorithm.aggregator.group(sig)
    selected = [axis for axis, _ in sig.amounts]
    zero = selection.zero_sum(theta, axes, selected)
    totals[group] = totals.get(group, zero)
    if k not in deltas:
      continue
    rows, weight = deltas[k]
    row = jax.tree.map(lambda x: x[None], algorithm.rule.draw(0, [k])[0])
    delta = {
      'blocks': {'a': jnp.asarray(rows, jnp.float32)[None, :, None]},
      'embed': {'b': jnp.full((1, 1), rows[0], jnp.float32)},
      'head': {'kernel': jnp.full((1, 1, 1, 1), rows[-1], jnp.float32)},
    }
    held = selection.within(row, axes)
    part = selection.group_sum(
      theta, axes, held, delta, jnp.asarray([weight], jnp.float32)
    )
    totals[group] = jax.tree.map(jnp.add, totals[group], part)
  return totals


def _merge(toy, deltas, memory):
  totals = _totals(toy, deltas)
  return jax.jit(toy.algorithm.aggregator.merge)(toy.theta, totals, memory)


def _memory(toy):
  return toy.algorithm.aggregator.init(toy.theta)


def _rows(update):
  return np.asarray(update.delta['blocks']['a'])[:, 0]


# One client of each size; slots 0..3 are blocks, 4 and 5 tops of sizes 2, 3.
_DELTAS = {0: ([1, 2, 3, 4], 1.0), 1: ([5, 6, 7], 1.0), 2: ([9, 10], 2.0)}


def test_tops_and_heads_start_as_copies():
  _, _, theta, axes = _toy()
  np.testing.assert_array_equal(theta['blocks']['a'][:, 0], [0, 1, 2, 3, 1, 2])
  assert theta['head']['kernel'].shape == (3, 1, 1)
  assert axes['blocks']['a'] == ('slot', 'rank')
  assert axes['head']['kernel'] == ('classifier', 'embed', 'class')
  assert axes['embed']['b'] == ('rank',)


def test_two_rounds_by_hand():
  toy = _toy()
  first, memory = _merge(toy, _DELTAS, _memory(toy))
  # Block 0: (1 + 5 + 2*9) / 4; block 1: (2 + 6) / 2, the tops' owners apart.
  shared = [6, 4, 3, 4]
  np.testing.assert_allclose(_rows(first), [*shared, 0.8 * 10, 0.8 * 7])
  np.testing.assert_allclose(first.delta['embed']['b'], [6])
  # Tiers ascend with size.
  np.testing.assert_allclose(
    np.ravel(first.delta['head']['kernel']), [10, 7, 4]
  )
  # Size 2 remembers size 3's blocks 1..2, size 3 remembers size 4's 2..3.
  np.testing.assert_allclose(memory['a'][:, 0], [6.5, 3.5])
  second, _ = _merge(toy, _DELTAS, memory)
  np.testing.assert_allclose(
    _rows(second), [*shared, 0.8 * 10 + 0.2 * 6.5, 0.8 * 7 + 0.2 * 3.5]
  )


def test_absent_size_keeps_its_memory_and_its_top_stays():
  toy = _toy()
  _, memory = _merge(toy, _DELTAS, _memory(toy))
  # Only size 4 comes: memory of size 3 is renewed, that of size 2 kept.
  update, memory = _merge(toy, {0: ([1, 1, 1, 7], 1.0)}, memory)
  covered = np.broadcast_to(update.covered['blocks']['a'], (6, 1))[:, 0]
  np.testing.assert_array_equal(covered, [True] * 4 + [False] * 2)
  np.testing.assert_array_equal(
    np.ravel(update.covered['head']['kernel']), [False, False, True]
  )
  np.testing.assert_allclose(memory['a'][:, 0], [6.5, 4])


def test_a_size_that_no_round_draws_is_as_one_that_is_absent():
  toy = _toy()
  _, memory = _merge(toy, _DELTAS, _memory(toy))
  only = {1: _DELTAS[1]}
  want = _merge(toy, only, memory)
  drawn = {3: _totals(toy, only)[3]}
  merge = jax.jit(toy.algorithm.aggregator.merge)
  tiny.assert_close(merge(toy.theta, drawn, memory), want, rtol=1e-6)


def test_merge_is_its_slow_twin():
  toy = _toy(beta=0.3)
  rng = np.random.default_rng(0)
  memory = _memory(toy)
  twin = {2: 0.0, 3: 0.0}
  for cohort in ([0, 1, 2, 3], [1, 2], [0, 3, 2], [0, 2]):
    deltas = {
      k: (rng.normal(size=_BUDGETS[k]), rng.uniform(1, 3)) for k in cohort
    }
    update, memory = _merge(toy, deltas, memory)
    want, twin = _slow_merge(deltas, twin, beta=0.3)
    np.testing.assert_allclose(_rows(update), want, rtol=1e-5, atol=1e-6)


def _slow_merge(deltas, memory, beta):
  """Size by size and block by block; blocks of a size are its own list."""
  sums, weights, means = np.zeros(6), np.zeros(6), {}
  for size in (2, 3, 4):
    mine = [d for k, d in deltas.items() if _BUDGETS[k] == size]
    for rows, weight in mine:
      for block in range(size):
        top = block == size - 1 and size < 4
        slot = {2: 4, 3: 5}[size] if top else block
        sums[slot] += weight * rows[block]
        weights[slot] += weight
    if mine:
      total = sum(w for _, w in mine)
      means[size] = sum(w * np.asarray(r) for r, w in mine) / total
  moved = np.where(weights > 0, sums / np.maximum(weights, 1e-9), 0)
  for size, slot in ((2, 4), (3, 5)):
    moved[slot] = (1 - beta) * moved[slot] + beta * memory[size]
  new = {
    size: np.mean(means[size + 1][size - 1 :])
    if size + 1 in means
    else memory[size]
    for size in (2, 3)
  }
  return moved, new


def test_one_size_is_fedavg():
  toy = _toy((4, 4))
  deltas = {0: ([1, 2, 3, 4], 1.0), 1: ([5, 6, 7, 8], 3.0)}
  update, memory = _merge(toy, deltas, _memory(toy))
  totals = _totals(toy, deltas)
  want, _ = Aggregator().merge(toy.theta, totals, ())
  assert len(totals) == 1
  np.testing.assert_allclose(_rows(update), [4, 5, 6, 7])
  jax.tree.map(np.testing.assert_array_equal, update, want)
  assert all(x.shape[0] == 0 for x in jax.tree.leaves(memory))


def test_evaluates_the_largest_first_then_each_size():
  algorithm = _algorithm()
  assert list(algorithm.evaluation.models) == ['full', 'depth2', 'depth3']
  for name, depth in {'full': 4, 'depth2': 2, 'depth3': 3}.items():
    got = tiny_depth.predict(algorithm, name)
    want = tiny_depth.logits(found.theta, depth)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_build():
  default = config.Experiment().inclusivefl
  assert default.variant == 'published'
  # The tests above are of the share that is the default.
  assert default.beta == _BETA
  ported = _algorithm(variant='fedra_port')
  assert ported.model is found
  assert ported.rule == layers.Prefix(_BUDGETS)
  assert ported.client == Client(ported.client.loss, by_example=True)
  assert ported.aggregator == Aggregator()
  ((name, held),) = ported.evaluation.models.items()
  assert (name, dict(held)) == ('full', {'layer': 4})
  # The loss is that of the plain model, here of its three first blocks.
  (got, _), _ = tiny_depth.loss(ported, 1)
  logits = tiny_depth.logits(found.theta, 3)
  want, _ = ported.task.loss(logits, tiny_depth.batch())
  np.testing.assert_allclose(got, want, rtol=1e-4)


def test_published_needs_block_adapters():
  experiment = config.Experiment()
  experiment.lora.targets = ()
  with pytest.raises(ValueError, match=r'lora\.targets'):
    inclusivefl.check(experiment, {'layer': 4}, _BUDGETS)

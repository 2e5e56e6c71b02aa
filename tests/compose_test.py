"""Parts of methods, put together."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from fedjax_tune.engine.algorithm import Aggregator, Update
from fedjax_tune.methods import compose
from fedjax_tune.methods.raffm import raffm
from fedjax_tune.selection import GroupSum


def _sums(run, groups=('all',)):
  """Returns random sums like a run's, of which some coordinates nobody holds."""
  found = {}
  for seed, group in enumerate(groups):
    num = tiny.noise(jax.tree.map(jnp.zeros_like, run.theta), seed)
    hold = lambda x, seed=seed: jnp.round(jnp.abs(x) * 10) % (2 + seed)
    den = jax.tree.map(hold, num)
    num = jax.tree.map(lambda n, d: jnp.where(d > 0, n, 0), num, den)
    found[group] = GroupSum(num, den)
  return found


def test_parts_are_merged_as_their_own_aggregators_do():
  run = tiny.run(tiny.experiment('all_large'))
  sums, theta = _sums(run), run.theta
  rule_p = Aggregator(raffm.participant_mean)
  both = compose.partition({'blocks': rule_p}, Aggregator())
  memory = both.init(theta)
  update, memory = both.merge(theta, sums, memory)
  mean, _ = Aggregator().merge(theta, sums, ())
  (total,) = sums.values()
  part = GroupSum(total.num['blocks'], total.den['blocks'])
  blocks, _ = rule_p.merge(theta['blocks'], {'all': part}, ())
  tiny.assert_equal(update.delta['blocks'], blocks.delta)
  tiny.assert_equal(update.covered['blocks'], blocks.covered)
  for name in set(theta) - {'blocks'}:
    tiny.assert_equal(update.delta[name], mean.delta[name])
    tiny.assert_equal(update.covered[name], mean.covered[name])
  assert not jax.tree.leaves(memory)


def test_each_part_has_its_memory():
  def merge(theta, sums, memory):
    del sums
    none = jax.tree.map(jnp.zeros_like, theta)
    return Update(none, none), memory + 1

  counting = Aggregator(merge, init=lambda _: jnp.zeros(()))
  both = compose.partition({'head': counting}, counting)
  run = tiny.run(tiny.experiment('all_large'))
  memory = both.init(run.theta)
  for _ in range(3):
    _, memory = both.merge(run.theta, _sums(run), memory)
  assert [float(x) for x in jax.tree.leaves(memory)] == [3, 3]


def test_what_is_private_is_neither_sent_nor_moved():
  run = tiny.run(tiny.experiment('all_large'))
  own = compose.partition({'head': compose.PRIVATE}, Aggregator())
  shapes, axes = own.spec(run.theta, run.axes)
  assert 'head' not in shapes
  assert 'head' not in axes
  (total,) = _sums(run).values()
  without = lambda tree: {k: v for k, v in tree.items() if k != 'head'}
  sums = {'all': GroupSum(*map(without, total))}
  update, _ = own.merge(run.theta, sums, own.init(run.theta))
  assert not any(x.any() for x in jax.tree.leaves(update.covered['head']))
  assert set(update.delta) == set(run.theta)


def test_groups_are_kept_apart():
  run = tiny.run(tiny.experiment('all_large'))
  apart = compose.by_group(lambda sig: sig['layer'], run.algorithm.aggregator)
  assert apart.group(tiny.signature(run.algorithm, 0)) == tiny.DEPTH
  algorithm = dataclasses.replace(run.algorithm, aggregator=apart)
  planner = dataclasses.replace(run.planner, algorithm=algorithm)
  other = dataclasses.replace(run, algorithm=algorithm, planner=planner)
  # The mean of all is the same.
  tiny.assert_close(other.rounds(1).theta, run.rounds(1).theta, rtol=1e-6)


def test_weights_depend_on_what_is_sent():
  """Clients that change more count more: sum |d|^8 d / sum |d|^8."""
  plain = tiny.run(tiny.experiment('all_large', engine={'slab': 1}))
  # To the 8th power, for the clients change about as much.
  norm = lambda tree: jnp.asarray(
    (10 * sum(jnp.sum(x**2) for x in jax.tree.leaves(tree))) ** 4
  )
  client = compose.weighted_by(norm, plain.algorithm.client)
  algorithm = dataclasses.replace(plain.algorithm, client=client)
  planner = dataclasses.replace(plain.planner, algorithm=algorithm)
  weighted = dataclasses.replace(plain, algorithm=algorithm, planner=planner)
  got = weighted.rounds(1).theta
  deltas = []
  planned = plain.planner.plan(0)
  for work in planned.works:
    alone = planned._replace(works=[work])
    state, _ = plain.engine.round(
      plain.engine.init(), alone, jax.random.key(1), 0.1
    )
    deltas.append(jax.tree.map(jnp.subtract, state.theta, plain.theta))
  norms = np.array([float(norm(d)) for d in deltas])
  want = jax.tree.map(
    lambda w, *ds: (
      w + sum(n * d for n, d in zip(norms, ds, strict=True)) / norms.sum()
    ),
    plain.theta,
    *deltas,
  )
  tiny.assert_close(got, want, rtol=1e-3, atol=1e-5)

"""HeteroTune: what tiers share, what they keep, and who joins when."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from fedjax_tune import selection
from fedjax_tune.costs import cost
from fedjax_tune.methods import METHODS
from fedjax_tune.methods.heterotune import (
  alternating,
  cmga,
  heterotune,
  membership,
)
from fedjax_tune.models import bottleneck, federation

_WIDE = bottleneck.Bottleneck(3, 2)
_NARROW = bottleneck.Bottleneck(3, 1)
_TURNS = {'projections': 'alternating', 'placement': 'parallel'}
_ROUNDING = {'rtol': 1e-3, 'atol': 5e-6}


def _experiment(**options):
  sections = {'heterotune': options.pop('heterotune', {}), **options}
  return tiny.experiment('heterotune', **sections)


def _moved(run, state):
  """Says of each leaf whether it moved."""
  differs = lambda a, b: bool(np.any(np.asarray(a != b)))
  return jax.tree.map(differs, state.theta, run.theta)


def test_one_tier_and_one_branch_is_fedavg_of_adapters():
  tier = tiny.federated_stacks((4, _NARROW))
  e = _experiment(tiers={'weights': ('large',)})
  run = tiny.run(e, tier)
  got = run.rounds(2).theta
  plain = dataclasses.replace(e, method='all_large')
  alone = tiny.run(plain, tier.tiers['large'])
  want = alone.rounds(2).theta
  extra = want['blocks']['extra']
  for name in bottleneck.CORES:
    core = got['shared']['blocks']['extra'][name]
    tiny.assert_close(core, extra.pop(name), **_ROUNDING)
  tiny.assert_close(
    jax.tree.map(lambda x: x[0], got['large']), want, **_ROUNDING
  )


def test_the_first_tier_has_one_branch_more():
  run = tiny.run(_experiment())
  clients = range(4)
  rows = run.algorithm.rule.draw(0, clients)
  assert [row['branch'] for row in rows] == [2, 1, 2, 1]
  assert [row['layer'] for row in rows] == [4, 2, 4, 2]
  found = run.algorithm.evaluation
  assert found.weights == {'large': 0.5, 'small': 0.5}
  assert found.models == {'large': rows[0], 'small': rows[1]}


def test_a_tier_without_clients_stays_as_it_was():
  run = tiny.run(_experiment(tiers={'joins': (0, 2)}))
  state, key = run.engine.init(), jax.random.key(1)
  for rnd in range(3):
    planned = run.planner.plan(rnd)
    before = state
    state, _ = run.engine.round(state, planned, key, 0.1)
    small = any(m.client % 2 for m in planned.members)
    assert small == (rnd == 2)
    gap = jax.tree.map(
      lambda a, b: float(np.abs(a - b).max()), before.theta, state.theta
    )
    assert (max(jax.tree.leaves(gap['small'])) > 0) == small
    assert min(jax.tree.leaves(gap['large'])) > 0
    assert min(jax.tree.leaves(gap['shared'])) > 0


def test_tiers_apart_share_nothing():
  apart = tiny.federated_stacks((4, _WIDE), (2, _NARROW), shared=False)
  e = _experiment(heterotune={'share': False})
  both = tiny.run(e, apart).rounds(2).theta
  late = _experiment(heterotune={'share': False}, tiers={'joins': (0, 9)})
  alone = tiny.run(late, apart).rounds(2).theta
  assert set(both) == {'large', 'small'}
  tiny.assert_close(both['large'], alone['large'], **_ROUNDING)
  assert 'core_in' in both['large']['blocks']['extra']


def test_the_deepest_tier_has_the_most_branches():
  e = _experiment(tiers={'weights': ('a', 'b', 'c', 'd')})
  depths = {'a': 2, 'b': 4, 'c': 2, 'd': 3}
  sizes = {federation.tier_axis(n): d for n, d in depths.items()}
  METHODS['heterotune'].check(e, sizes, (4, 4, 4, 4))
  rows = membership.make_tiers(e, sizes, 4).draw(0, range(4))
  assert [row['branch'] for row in rows] == [2, 4, 1, 3]


def _own_branches(foreign, joins=()):
  """Returns the cores before and after a round of two tiers, and the run."""
  stacks = tiny.federated_stacks((4, _WIDE), (2, _WIDE))
  options = {'reading': 'own', 'foreign': foreign}
  run = tiny.run(
    _experiment(heterotune=options, tiers={'joins': joins}), stacks
  )
  part = lambda theta: theta['shared']['blocks']['extra']['core_in']
  return part(run.theta), part(run.rounds(1).theta), run


def _traffic(run):
  """Returns what the first client moves in a round."""
  sig = tiny.signature(run.algorithm, 0)
  held = functools.partial(cost.held_shapes, run.theta, run.axes)
  return run.algorithm.traffic(sig, [sig], held)


def test_own_branches_learn_from_their_tier_alone():
  """Weight decay, too, leaves other tiers' branches alone."""
  old, both, run = _own_branches('frozen')
  _, large, _ = _own_branches('frozen', joins=(0, 9))
  np.testing.assert_array_equal(large[:, 1], old[:, 1])
  assert np.all(np.abs(large[:, 0] - old[:, 0]).max((-1, -2)) > 0)
  # Who has its branch frozen does not dilute what its own tier sends.
  tiny.assert_close(both[:, 0], large[:, 0], **_ROUNDING)
  assert np.all(np.abs(both[:, 1] - old[:, 1]).max((-1, -2)) > 0)
  traffic = _traffic(run)
  cores = 2 * (2 * 2 * 3 * 3) * 4
  assert traffic.downlink - traffic.uplink == cores / 2


def test_foreign_branches_may_train():
  old, large, run = _own_branches('trained', joins=(0, 9))
  assert np.all(np.abs(large - old).max((-1, -2)) > 0)
  _, both, _ = _own_branches('trained')
  assert np.abs(both[:, 0] - large[:, 0]).max() > 1e-3
  assert (
    run.algorithm.aggregator.group(tiny.signature(run.algorithm, 0)) == 'all'
  )
  traffic = _traffic(run)
  assert traffic.downlink == traffic.uplink


def test_the_width_reading_shares_the_first_columns():
  wide, narrow = bottleneck.Bottleneck(4), bottleneck.Bottleneck(2)
  stacks = tiny.federated_stacks((4, wide), (2, narrow))
  e = _experiment(
    heterotune={'reading': 'width'},
    fedadapter={'rank': 4},
    tiers={'joins': (9, 0)},
  )
  # Somebody takes part in the first round, else nothing runs.
  run = tiny.run(e, stacks)
  rule: Any = run.algorithm.rule
  assert [rule.adapters[n].rank for n in ('large', 'small')] == [4, 2]
  state = run.rounds(1)
  core = state.theta['shared']['blocks']['extra']['core_in']
  old = run.theta['shared']['blocks']['extra']['core_in']
  moved = np.asarray(core != old)
  assert moved[..., :2, :2].all()
  assert not moved[..., 2:, :].any()
  assert not moved[..., :, 2:].any()


def test_blocks_of_one_index_share_a_core():
  """And the last two of the deeper tier have theirs alone."""
  whole = tiny.federated_stacks((4, _WIDE), (2, _NARROW))
  found = federation.federate(whole.tiers, bottleneck.CORES, by_index=True)
  core = found.theta['shared']['blocks']['extra']['core_in']
  assert core.shape == (4, 2, 3, 3)
  e = _experiment(heterotune={'mapping': 'index'}, tiers={'joins': (9, 0)})
  run = tiny.run(e, whole)
  assert tiny.signature(run.algorithm, 0)['site'] == 4
  assert tiny.signature(run.algorithm, 1)['site'] == 2
  state = run.rounds(1)
  moved = np.any(
    state.theta['shared']['blocks']['extra']['core_in'] != core, (-1, -2)
  )
  np.testing.assert_array_equal(
    moved, [[True, False], [True, False], [False, False], [False, False]]
  )


@pytest.mark.parametrize('mapping', ['depth', 'index'])
def test_a_tier_runs_with_the_cores_of_its_blocks(mapping):
  whole = tiny.federated_stacks((4, _WIDE), (2, _NARROW))
  found = federation.federate(
    whole.tiers, bottleneck.CORES, by_index=mapping == 'index'
  )
  e = _experiment(heterotune={'mapping': mapping})
  row = tiny.build(e, whole).evaluation.models['small']
  local = selection.select_within(found.theta, found.axes, row)
  images, layers = tiny.batch(tiny.STACK_SIZE, 3).inputs, np.arange(2)
  got = found.assemble(found.base, local, row)(images, layers)
  small = found.tiers['small']
  theta = jax.tree.map(np.array, small.theta)
  for name in bottleneck.CORES:
    core = found.theta['shared']['blocks']['extra'][name]
    theta['blocks']['extra'][name] = core[:2, :1]
  want = small.merge(small.base, theta)(images, layers)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_only_its_own_branch_of_biases_and_cores():
  run = _own_branches('frozen')[2]
  rule: Any = run.algorithm.rule
  for shape in ((2, 2, 3, 3), (2, 2, 3)):
    ones, zeros = np.ones(shape), np.zeros(shape)
    own = np.asarray(rule.only_own('small', ones, zeros))
    assert not own[:, 0].any()
    assert own[:, 1].all()


def test_clients_keep_what_is_their_tiers_own():
  """With one client a tier, nothing else comes of it than of averaging."""
  two = {'count': 2, 'cohort_size': 2}
  e = _experiment(clients=two, engine={'slab': 1})
  averaged = tiny.run(e).rounds(2).theta
  e = _experiment(
    heterotune={'personal': True}, clients=two, engine={'slab': 1}
  )
  run = tiny.run(e)
  state = run.rounds(2)
  tiny.assert_close(state.theta['shared'], averaged['shared'], **_ROUNDING)
  make: Any = run.algorithm.evaluation.personal
  for client, name in enumerate(('large', 'small')):
    # The server has no part in it.
    tiny.assert_equal(state.theta[name], run.theta[name])
    own = make(name, state.theta, state.clients[client])
    tiny.assert_close(own[name], averaged[name], **_ROUNDING)
  alone = run.algorithm.alone(state.theta, state.clients)
  assert {k: one.tier for k, one in alone.items()} == {
    'client0': 'large',
    'client1': 'small',
  }
  end = jax.tree.map(lambda x: x[0], averaged['large'])
  tiny.assert_close(alone['client0'].theta['head'], end['head'], **_ROUNDING)
  cores = 2 * 2 * (2 * 3 * 3) * 4
  assert [_traffic(run).uplink, _traffic(run).downlink] == [cores, cores]


def test_clients_of_one_tier_keep_parts_of_their_own():
  run = tiny.run(_experiment(heterotune={'personal': True}))
  found = run.rounds(1).clients
  assert np.abs(found[0] - found[2]).max() > 1e-3
  assert found[0].shape == found[1].shape


def test_parts_take_turns():
  """Each with an optimizer of its own, to which nothing else is known."""
  rng = np.random.default_rng(0)
  draw = lambda: {
    'shared': {'w': jnp.asarray(rng.normal(size=3), jnp.float32)},
    'a': {'w': jnp.asarray(rng.normal(size=2), jnp.float32)},
  }
  start, grads = draw(), [draw() for _ in range(4)]
  params: Any
  alone: dict[str, Any]
  plain = optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.5, 0.9))
  both = alternating.in_turn(plain)
  params, state = start, both.init(start)
  alone = {name: (part, plain.init(part)) for name, part in start.items()}
  for step, grad in enumerate(grads):
    updates, state = both.update(grad, state, params)
    params = optax.apply_updates(params, updates)
    name = ('shared', 'a')[step % 2]
    part, own = alone[name]
    updates, own = plain.update(grad[name], own, part)
    alone[name] = optax.apply_updates(part, updates), own
    for part in alone:
      np.testing.assert_array_equal(params[part]['w'], alone[part][0]['w'])


@pytest.mark.parametrize('steps', [1, pytest.param(2, marks=pytest.mark.slow)])
def test_clients_train_what_is_shared_first(steps):
  run = tiny.run(_experiment(local={'steps': steps}))
  each: Any = run.algorithm.rule
  client = heterotune.client(
    run.algorithm.task, each, own_branches=False, alternating=True
  )
  algorithm = dataclasses.replace(run.algorithm, client=client)
  run = dataclasses.replace(run, algorithm=algorithm)
  moved = _moved(run, run.rounds(1))
  assert all(jax.tree.leaves(moved['shared']))
  for name in ('large', 'small'):
    assert all(jax.tree.leaves(moved[name])) == (steps == 2)
    assert any(jax.tree.leaves(moved[name])) == (steps == 2)


def _opposed():
  """Returns tiers of which the smaller wants of the cores the opposite."""
  tiers = tiny.federated_stacks((4, _WIDE), (2, _NARROW)).tiers
  small = tiers['small']
  blocks = small.theta['blocks']
  extra = {**blocks['extra'], 'up': -3 * blocks['extra']['up']}
  theta = {**small.theta, 'blocks': {**blocks, 'extra': extra}}
  small = dataclasses.replace(small, theta=theta)
  return federation.federate({**tiers, 'small': small}, bottleneck.CORES)


@pytest.mark.parametrize(
  'align', ['pairwise', pytest.param('mean', marks=pytest.mark.slow)]
)
def test_alignment_touches_the_cores_alone(align):
  found, runs = _opposed(), []
  for choice, joins in (
    (align, ()),
    ('off', ()),
    ('off', (0, 9)),
    ('off', (9, 0)),
  ):
    # Decay would be most of what changes, and the same for all.
    e = _experiment(
      heterotune={'cmga': choice},
      tiers={'joins': joins},
      local={'weight_decay': 0.0},
    )
    runs.append(tiny.run(e, found))
  assert {
    runs[0].algorithm.aggregator.group(s) for s in runs[0].planner.widths
  } == {
    'large',
    'small',
  }
  got, want, *alone = (run.rounds(1).theta for run in runs)
  tiny.assert_close(got['large'], want['large'], **_ROUNDING)
  tiny.assert_close(got['small'], want['small'], **_ROUNDING)
  core = lambda theta: theta['shared']['blocks']['extra']['core_in']
  # The large tier alone has the second branch.
  tiny.assert_close(core(got)[:, 1], core(want)[:, 1], **_ROUNDING)
  # Of the first, what the tiers change is aligned.
  start = core(runs[0].theta)[:, 0]
  deltas = np.stack([core(theta)[:, 0] - start for theta in alone])
  shares = np.full((2, 1, 1, 1), 0.5, np.float32)
  aligned = getattr(cmga, align)(deltas, shares).mean(0)
  tiny.assert_close(core(got)[:, 0] - start, aligned, **_ROUNDING)
  assert np.abs(aligned - deltas.mean(0)).max() > 1e-4


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'tiers': {'weights': ()}}, r'tiers\.weights=\(\)'),
    ({'model': {'tune': 'lora'}}, r"model\.tune='lora' must be 'adapter'"),
    (
      {'model': {'tune': 'head'}},
      r"'head' with tiers\.head='common'; tiers\.head='own'",
    ),
    (
      {'fedadapter': {'projections': 'aligned'}},
      r"fedadapter\.placement='sequential' must be 'parallel' with fedadapter"
      r"\.projections='aligned'",
    ),
    (
      {'tiers': {'head': 'common'}},
      r"tiers\.head='common' must be 'own' with fedadapter\.projections='free'",
    ),
    (
      {'fedadapter': _TURNS, 'heterotune': {'share': False}},
      r'heterotune\.share=False must be True with fedadapter',
    ),
    (
      {'fedadapter': _TURNS, 'local': {'steps': 1}},
      r'local\.steps=1 must be at least 2',
    ),
    (
      {'clients': {'budgets': (4,) * 4}},
      r'clients\.budgets=.* or the blocks of each tier',
    ),
    (
      {'heterotune': {'personal': True, 'share': False}},
      r'personal=True must be False with heterotune\.share=False',
    ),
    (
      {'heterotune': {'branches': (2,)}},
      r'heterotune\.branches=\(2,\) must have 2 numbers',
    ),
    (
      {'heterotune': {'branches': (1, 2)}, 'tiers': {'weights': ('x', 'x')}},
      r'must be alike',
    ),
    (
      {'heterotune': {'reading': 'width', 'branches': (3, 2)}},
      r'fedadapter\.rank=4 must be a multiple of 3',
    ),
    (
      {'heterotune': {'share': False, 'cmga': 'mean'}},
      r"share=False leaves nothing for heterotune\.cmga='mean'",
    ),
    (
      {'heterotune': {'reading': 'own', 'branches': (2, 2)}},
      r'heterotune\.branches=\(2, 2\) must be \(\)',
    ),
    (
      {'heterotune': {'reading': 'own', 'cmga': 'mean'}},
      r"heterotune\.cmga='mean' must be 'off'",
    ),
    (
      {'heterotune': {'foreign': 'trained'}},
      r"heterotune\.foreign='trained' must be 'frozen'",
    ),
    (
      {'tiers': {'weights': ('large', 'small', 'x', 'y', 'z')}},
      r'tiers\.weights=.* must be at most 4, the number of clients',
    ),
    (
      {'heterotune': {'mapping': 'index', 'sites': 1}},
      r'heterotune\.sites=1 and every_block=True must be 0 and True',
    ),
    ({'tiers': {'joins': (2, 1)}}, r'tiers\.joins=\(2, 1\) must have a 0'),
    ({'tiers': {'depth': (2,)}}, r'tiers\.depth=\(2,\) must have 2 values'),
  ],
)
def test_contradictions(changes, message):
  e = _experiment(fedadapter={'rank': 4})
  for section, fields in changes.items():
    for field, value in fields.items():
      setattr(getattr(e, section), field, value)
  sizes = {'layer': 4} | {
    federation.tier_axis(name): 2 for name in ('large', 'small', *'xyz')
  }
  with pytest.raises(ValueError, match=message):
    METHODS['heterotune'].check(e, sizes, (4,) * 4)


def test_other_methods_have_one_model():
  e = tiny.experiment('all_large')
  assert tiny.build(e, tiny.stack()).tier(0) == ''

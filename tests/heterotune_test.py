"""HeteroTune: what tiers share, what they keep, and who joins when."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from fedjax_tune import federation
from fedjax_tune.methods import BUILDERS, base
from fedjax_tune.models import adapter

_WIDE = adapter.Bottleneck(3, 2)
_NARROW = adapter.Bottleneck(3, 1)
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
  for name in adapter.CORES:
    core = got['shared']['blocks']['extra'][name]
    tiny.assert_close(core, extra.pop(name), **_ROUNDING)
  tiny.assert_close(
    jax.tree.map(lambda x: x[0], got['large']), want, **_ROUNDING
  )


def test_a_branch_is_averaged_over_those_who_have_it():
  run = tiny.run(_experiment())
  clients = range(4)
  rows = run.method.allocate(0, clients)
  assert [row['branch'] for row in rows] == [2, 1, 2, 1]
  assert [row['layer'] for row in rows] == [4, 2, 4, 2]
  assert run.method.headline() == {'large': 0.5, 'small': 0.5}
  assert run.method.evaluations() == {'large': rows[0], 'small': rows[1]}


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
  assert both['shared'] == {}
  tiny.assert_close(both['large'], alone['large'], **_ROUNDING)
  assert 'core_in' in both['large']['blocks']['extra']


def test_own_branches_learn_from_their_tier_alone():
  stacks = tiny.federated_stacks((4, _WIDE), (2, _WIDE))
  options = {'reading': 'own', 'foreign': 'frozen'}
  e = _experiment(
    heterotune=options, tiers={'joins': (0, 9)}, local={'weight_decay': 0.0}
  )
  run = tiny.run(e, stacks)
  state = run.rounds(1)
  for name in adapter.CORES:
    new = state.theta['shared']['blocks']['extra'][name]
    old = run.theta['shared']['blocks']['extra'][name]
    np.testing.assert_array_equal(new[:, 1], old[:, 1])
    assert np.all(np.abs(new[:, 0] - old[:, 0]).max((-1, -2)) > 0)
  trained = dataclasses.replace(run.method, own_branches=False)
  assert trained.bucket(tiny.signature(run.method, 0)) == 'all'


def test_the_width_reading_shares_the_first_columns():
  wide, narrow = adapter.Bottleneck(4), adapter.Bottleneck(2)
  stacks = tiny.federated_stacks((4, wide), (2, narrow))
  e = _experiment(
    heterotune={'reading': 'width'},
    fedadapter={'rank': 4},
    tiers={'joins': (9, 0)},
  )
  # Somebody takes part in the first round, else nothing runs.
  run = tiny.run(e, stacks)
  assert [run.method.adapters[n].rank for n in ('large', 'small')] == [4, 2]
  state = run.rounds(1)
  core = state.theta['shared']['blocks']['extra']['core_in']
  old = run.theta['shared']['blocks']['extra']['core_in']
  moved = np.asarray(core != old)
  assert moved[..., :2, :2].all()
  assert not moved[..., 2:, :].any()
  assert not moved[..., :, 2:].any()


@pytest.mark.parametrize('align', ['pairwise', 'mean'])
def test_alignment_touches_the_cores_alone(align):
  plain = tiny.run(_experiment())
  run = tiny.run(_experiment(heterotune={'cmga': align}))
  assert {run.method.bucket(s) for s in run.planner.widths} == {
    'large',
    'small',
  }
  got, want = run.rounds(1).theta, plain.rounds(1).theta
  tiny.assert_close(got['large'], want['large'], **_ROUNDING)
  tiny.assert_close(got['small'], want['small'], **_ROUNDING)
  core = lambda theta: theta['shared']['blocks']['extra']['core_in']
  # The large tier alone has the second branch.
  tiny.assert_close(core(got)[:, 1], core(want)[:, 1], **_ROUNDING)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'tiers': {'weights': ()}}, r'tiers\.weights=\(\)'),
    ({'model': {'tune': 'lora'}}, r"model\.tune='lora' must be 'adapter'"),
    (
      {'clients': {'budgets': (4,) * 4}},
      r'clients\.budgets=.* or the blocks of each tier',
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
    federation.tier_axis(name): 2 for name in ('large', 'small', 'x')
  }
  with pytest.raises(ValueError, match=message):
    BUILDERS['heterotune'](e, sizes, (4,) * 4)


def test_other_methods_have_one_model():
  assert base.Method(4, (4,), 0).tier(0) == ''

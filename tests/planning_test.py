"""Laws of planning that every method of the registry keeps."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from fedjax_tune.engine import slabs


@pytest.fixture(scope='module', params=tiny.CASES)
def case(request):
  return request.param


@pytest.fixture(scope='module')
def run(case):
  return tiny.run(tiny.experiment(case, rounds=5))


def _by_client(planned):
  """What each client of a plan holds, is told and trains on."""
  return {
    int(k): jax.tree.map(
      lambda x, i=i: x[i], (work.slab.held, work.slab.info, work.own.batches)
    )
    for work in planned.works
    for i, k in enumerate(work.slab.ids)
    if k >= 0
  }


def _assert_same(case, got, want):
  """Compares what a client holds; RaFFM deals out sizes among a cohort."""
  tiny.assert_equal(got.indices, want.indices)
  assert 'raffm' in case or got.prefix == want.prefix


def test_a_plan_depends_on_seed_round_and_client_only(case, run):
  small = dataclasses.replace(
    run.planner,
    experiment=tiny.experiment(case, rounds=5, clients={'cohort_size': 2}),
  )
  for rnd in (4, 0, 4):
    everyone = _by_client(run.planner.plan(rnd))
    some = _by_client(small.plan(rnd))
    assert set(some) <= set(everyone)
    for client, (held, *rest) in some.items():
      _assert_same(case, held, everyone[client][0])
      tiny.assert_equal(tuple(rest), everyone[client][1:])
  reverse = [3, 1, 0, 2]
  algorithm = run.algorithm
  rows = dict(zip(reverse, algorithm.rule.draw(4, reverse), strict=True))
  infos = dict(zip(reverse, algorithm.client.tell(4, reverse), strict=True))
  for client, (held, info, _) in everyone.items():
    _assert_same(case, rows[client], held)
    tiny.assert_equal(infos[client], info)


def test_another_round_or_seed_is_another_plan(case, run):
  other = tiny.run(tiny.experiment(case, seed=2))
  images = [
    _by_client(planner.plan(rnd))[0][2].inputs
    for planner, rnd in ((run.planner, 0), (run.planner, 1), (other.planner, 0))
  ]
  assert np.any(images[0] != images[1])
  assert np.any(images[0] != images[2])


def test_a_plan_is_numpy(run, monkeypatch):
  placed = []
  with monkeypatch.context() as patch:
    patch.setattr(jax, 'device_put', lambda x: placed.append(x) or x)
    run.planner.plan(0)
  leaves = jax.tree.leaves(placed)
  assert leaves
  assert all(type(x) is np.ndarray for x in leaves)


def test_hosts_share_a_round_out():
  planner = tiny.run(tiny.experiment('fedra')).planner
  whole = planner.plan(0)
  plans = [
    dataclasses.replace(planner, host=host, hosts=2).plan(0) for host in (0, 1)
  ]
  own = [[w.slab.ids for w in plan.works] for plan in plans]
  assert all(own)
  ids = np.concatenate([ids for each in own for ids in each])
  assert sorted(ids[ids >= 0]) == sorted(m.client for m in whole.members)
  # Each knows whose the others' are.
  for host, plan in enumerate(plans):
    assert plan.members == whole.members
    assert [s.host for s in plan.slabs] == [s.host for s in plans[0].slabs]
    mine = [s.ids for s in plan.slabs if s.host == host]
    jax.tree.map(np.testing.assert_array_equal, mine, own[host])


def test_who_has_least_gets_the_next_slab():
  planned = tiny.run(tiny.experiment('fedra')).planner.plan(0)
  dealt = slabs.deal(planned.slabs[:1] * 4, [1, 5, 3, 3], 2)
  assert [slab.host for slab in dealt] == [0, 0, 1, 1]


@pytest.mark.parametrize('cohort_size', [1, 2, 4])
def test_holders_are_all_clients_of_the_federation(cohort_size):
  e = tiny.experiment('fedra', clients={'cohort_size': cohort_size}, rounds=1)
  holders = tiny.run(e).planner.holders
  assert {sig['layer']: n for sig, n in holders.items()} == {4: 1, 3: 1, 2: 2}


def test_holders_are_those_that_may_take_part():
  planner = tiny.run(tiny.experiment('fedra', rounds=2)).planner
  able = dataclasses.replace(
    planner.algorithm, eligible=lambda rnd: np.array([1, 1, 0, rnd], bool)
  )
  holders = dataclasses.replace(planner, algorithm=able).holders
  assert {sig['layer']: n for sig, n in holders.items()} == {4: 1, 3: 1, 2: 1}


def test_holders_that_draw_anew_count_by_their_share_of_rounds(case, run):
  holders = run.planner.holders
  able = run.algorithm.able(4, 4).sum()
  assert sum(holders.values()) == pytest.approx(able)
  seen = [m.sig for members in run.planner.rounds for m in members]
  assert set(holders) == set(seen)
  for sig, count in holders.items():
    # All of these take part in each round.
    assert count == pytest.approx(seen.count(sig) * able / len(seen)), case

"""Laws of planning that every method of the registry keeps."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from fedjax_tune import selection


@pytest.fixture(scope='module', params=tiny.CASES)
def case(request):
  return request.param


@pytest.fixture(scope='module')
def run(case):
  return tiny.run(tiny.experiment(case))


def _by_client(planned):
  """What each client of a plan holds and trains on."""
  return {
    int(k): jax.tree.map(lambda x, i=i: x[i], (work.slab.alloc, work.batches))
    for work in planned.works
    for i, k in enumerate(work.slab.ids)
    if k >= 0
  }


def test_a_plan_depends_on_seed_round_and_client_only(case, run):
  small = dataclasses.replace(
    run.planner,
    experiment=tiny.experiment(case, clients={'cohort_size': 2}),
  )
  for rnd in (4, 0, 4):
    everyone = _by_client(run.planner.plan(rnd))
    some = _by_client(small.plan(rnd))
    assert set(some) <= set(everyone)
    for client, part in some.items():
      tiny.assert_equal(part, everyone[client])
  reverse = [3, 1, 0, 2]
  rows = dict(zip(reverse, run.method.allocate(4, reverse), strict=True))
  for client, (alloc, _) in everyone.items():
    own, _ = selection.split_allocation(rows[client])
    tiny.assert_equal(own, alloc)


def test_another_round_or_seed_is_another_plan(case, run):
  other = tiny.run(tiny.experiment(case, seed=2))
  images = [
    _by_client(planner.plan(rnd))[0][1].inputs
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

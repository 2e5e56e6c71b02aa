"""A round costs its cohort, whatever the number of clients and of rounds."""

import collections
from collections.abc import Sequence
import dataclasses
import tracemalloc

import jax
import numpy as np
import pytest
import tiny

from fedjax_tune.data import corpus, tasks
from fedjax_tune.data.shares import Shares
from fedjax_tune.engine import feed, plan, server_optimizer
from fedjax_tune.engine import round as round_lib
from fedjax_tune.engine.slabs import Signature
from fedjax_tune.methods.depth import layers
from fedjax_tune.selection import Selection

_MILLION = 10**6


@dataclasses.dataclass
class _Counting:
  """Random blocks, and who was asked for."""

  rule: layers.Random
  asked: list[int]

  @property
  def axes(self) -> frozenset[str]:
    return self.rule.axes

  def draw(self, rnd: int, cohort: Sequence[int]) -> list[Selection]:
    self.asked += cohort
    return self.rule.draw(rnd, cohort)


def _million(monkeypatch) -> tuple[plan.Planner, list[int]]:
  """Returns a planner of a million rounds of a million clients, and a log."""
  monkeypatch.setattr(plan, '_FORESEEN', 60)
  size = (2 * _MILLION, tiny.STACK_SIZE, tiny.STACK_SIZE, 3)
  data = corpus.Corpus(
    labels=np.broadcast_to(np.int32(1), size[0]),
    domains=np.broadcast_to(np.int32(0), size[0]),
    groups=None,
    domain_names=('a',),
    class_names=tuple('xyz'),
    # One picture, seen two million times.
    inputs=np.broadcast_to(np.uint8(7), size),
    task=tasks.Task('classification', 3),
  )
  small = tiny.run(tiny.experiment())
  budgets = tuple(np.resize([4, 3, 2, 2], _MILLION).tolist())
  rule = _Counting(layers.Random(tiny.DEPTH, budgets, seed=1), [])
  e = tiny.experiment(rounds=_MILLION, clients={'cohort_size': 20})
  shares = Shares(np.arange(2 * _MILLION), 2 * np.arange(_MILLION + 1))
  planner = dataclasses.replace(
    small.planner,
    experiment=e,
    algorithm=dataclasses.replace(small.algorithm, rule=rule),
    examples=data,
    indices=shares,
    domains=np.full(_MILLION, -1, np.int32),
  )
  return planner, rule.asked


def test_a_million_clients_for_a_million_rounds(monkeypatch):
  planner, asked = _million(monkeypatch)
  first = planner.plan(0)
  assert len(planner.rounds) == 3
  assert len(asked) == (3 + 1) * 20
  asked.clear()
  tracemalloc.start()
  last = planner.plan(_MILLION - 1)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  # A byte for each client would be a million already.
  assert peak < _MILLION / 2
  members = [m.client for m in last.members]
  assert asked == members
  assert len(set(members)) == 20
  assert max(members) > 1000
  assert members != [m.client for m in first.members]


def test_the_population_is_drawn_from_as_ever(monkeypatch):
  planner, _ = _million(monkeypatch)
  everyone = dataclasses.replace(
    planner.algorithm, eligible=lambda _: np.ones(_MILLION, bool)
  )
  asked = dataclasses.replace(planner, algorithm=everyone)
  assert planner.plan(5).members == asked.plan(5).members


def test_all_rounds_of_a_small_run_are_foreseen():
  run = tiny.run(
    tiny.experiment(clients={'cohort_size': 2}, engine={'slab': 0}, rounds=30)
  )
  drawn = [run.planner.plan(rnd).members for rnd in range(30)]
  assert run.planner.rounds == drawn
  counts = [collections.Counter(m.sig for m in members) for members in drawn]
  want = {
    sig: round(np.mean([count[sig] for count in counts if sig in count]))
    for sig in set().union(*counts)
  }
  assert run.planner.widths == want


@pytest.mark.parametrize(('slab', 'width'), [(0, 1), (2, 2)])
def test_what_was_not_foreseen_is_planned_all_the_same(
  monkeypatch, slab, width
):
  monkeypatch.setattr(plan, '_FORESEEN', 4)
  e = tiny.experiment(
    clients={'cohort_size': 1}, engine={'slab': slab}, rounds=40
  )
  planner = tiny.run(e).planner
  # The first of each tenth, spread evenly.
  assert planner.rounds == [
    planner.plan(rnd).members for rnd in range(0, 40, 10)
  ]
  rare = [
    work
    for rnd in range(40)
    for work in planner.plan(rnd).works
    if work.slab.sig not in planner.widths
  ]
  assert rare
  assert {len(work.slab.ids) for work in rare} == {width}


def _with_axes(held) -> tiny.Run:
  """Returns a run whose clients hold blocks, and some a part of an axis."""
  run = tiny.run(tiny.experiment('all_large'))
  rule = layers.ByBudget(tiny.BUDGETS, held)
  algorithm = dataclasses.replace(run.algorithm, rule=rule)
  planner = dataclasses.replace(run.planner, algorithm=algorithm)
  return dataclasses.replace(run, algorithm=algorithm, planner=planner)


def test_the_first_who_selects_along_an_axis_may_come_late():
  held = {n: Selection.of({'layer': n}) for n in (4, 3)}
  held[2] = Selection.of({'layer': 2, 'embed': 3})
  run = _with_axes(held)
  want, got = (
    run.engine,
    round_lib.Engine(
      run.algorithm,
      run.local_opt,
      server_optimizer.build(run.experiment.server),
    ),
  )
  planned, key = run.planner.plan(0), jax.random.key(0)
  widths = dict(run.planner.widths)
  late = Signature.of(held[2])
  some = {sig: n for sig, n in widths.items() if sig != late}
  batches = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype),
    planned.works[0].own.batches,
  )
  got.compile(some, lambda _: batches, run.planner.info_shapes)
  before = dict(got.programs.compiled)
  assert set(before) == set(some)
  got.extend({late: widths[late]})
  assert set(got.programs.compiled) == set(want.programs.compiled)
  # The sums are of another shape now.
  assert not any(got.programs.compiled[sig] is before[sig] for sig in some)
  states = [e.round(e.init(), planned, key, 0.1)[0] for e in (got, want)]
  tiny.assert_equal(*[state.theta for state in states])


def test_batches_of_pictures_are_not_drawn_before_their_round(monkeypatch):
  monkeypatch.delattr(feed, 'host_rng')
  run = tiny.run(tiny.experiment(rounds=3))
  assert [len(members) for members in run.planner.rounds] == [4] * 3
  with pytest.raises(NameError):
    run.planner.plan(0)

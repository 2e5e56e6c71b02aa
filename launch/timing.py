"""How long a run will take on this machine, by a trial of each program."""

import collections
import time
from typing import NamedTuple

import jax

from fedjax_tune.engine import local_optimizer
from fedjax_tune.engine.plan import RoundPlan
from fedjax_tune.engine.server import ServerState
from fedjax_tune.engine.slabs import Signature
from fedjax_tune.training.run import Run


class Times(NamedTuple):
  """Seconds of a run on this machine.

  Attributes:
    warm_up: Seconds of the trial's first calls, which compile what is left.
    training: Seconds of all rounds.
    rounds: Number of rounds.
    evaluation: Seconds of one evaluation.
    evaluations: Number of evaluations.
  """

  warm_up: float
  training: float
  rounds: int
  evaluation: float
  evaluations: int

  def describe(self, start: float) -> str:
    """Describes the times in one line.

    Args:
      start: Seconds until the trial: reading data, compiling.
    """
    start += self.warm_up
    total = start + self.training + self.evaluation * self.evaluations
    each = self.training / max(self.rounds, 1)
    return (
      f'about {_span(total)} on this machine, as busy as it was just now:'
      f' {_span(start)} to start, {_span(each)} a round, evaluation'
      f' {_span(self.evaluation)} x {self.evaluations}'
    )


def measure(run: Run) -> Times:
  """Times one slab of each class of clients, and an evaluation.

  Each runs twice, on data that the run will draw, and the second time counts.
  Planning is left out, because a run plans a round while it computes the one
  before.
  """
  planner, e = run.setup.planner, run.setup.experiment
  state, _, _ = run.start(None)
  trials = _trials(run)
  begin = time.perf_counter()
  for plan in trials.values():
    _round(run, state, plan)
  run.evaluate(state, e.rounds - 1)
  warm_up = time.perf_counter() - begin
  seconds = {}
  for sig, plan in trials.items():
    begin = time.perf_counter()
    _round(run, state, plan)
    seconds[sig] = time.perf_counter() - begin
  begin = time.perf_counter()
  run.evaluate(state, e.rounds - 1)
  evaluation = time.perf_counter() - begin
  slabs: collections.Counter[Signature] = collections.Counter()
  for members in planner.rounds:
    for sig, count in collections.Counter(m.sig for m in members).items():
      slabs[sig] += -(-count // run.widths[sig])
  training = sum(seconds[sig] * count for sig, count in slabs.items())
  training *= e.rounds / len(planner.rounds)  # It may know some of them.
  evaluations = -(-e.rounds // e.eval_every) + e.eval_start
  return Times(warm_up, training, e.rounds, evaluation, evaluations)


def _trials(run: Run) -> dict[Signature, RoundPlan]:
  """Returns for each class a round with one slab of its clients."""
  planner, found = run.setup.planner, {}
  for rnd, members in zip(planner.foreseen, planner.rounds, strict=True):
    if found.keys() >= {m.sig for m in members}:
      continue
    plan = planner.plan(rnd)
    for work in plan.works:
      found.setdefault(work.slab.sig, plan._replace(works=[work]))
  return found


def _round(run: Run, state: ServerState, plan: RoundPlan) -> None:
  e = run.setup.experiment
  lr = local_optimizer.learning_rate(e.local, plan.rnd, e.rounds)
  key = jax.random.key(e.seed)
  jax.block_until_ready(run.engine.round(state, plan, key, lr))


def _span(seconds: float) -> str:
  """Formats seconds for people: '0.42 s', '35 s', '12 min', '3.1 h'."""
  if seconds < 60:
    return f'{seconds:.2g} s' if seconds < 9.5 else f'{seconds:.0f} s'
  minutes = seconds / 60
  return f'{minutes:.0f} min' if minutes < 99 else f'{minutes / 60:.1f} h'

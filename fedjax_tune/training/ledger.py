"""Reads, judges, writes and saves the results of each round of a run."""

from collections.abc import Sequence
import dataclasses
import math
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_tune.engine import hosts
from fedjax_tune.engine.plan import RoundPlan
from fedjax_tune.engine.server import ServerState
from fedjax_tune.report import writer as reporting
from fedjax_tune.report import writers
from fedjax_tune.report.progress import RoundProgress
from fedjax_tune.training import (
  checkpoint,
  clock,
  health,
  interrupts,
  stopping,
)
from fedjax_tune.training import workdir as folder
from fedjax_tune.training.run import Run
from fedjax_tune.typing import Tree


class Begun(NamedTuple):
  """A round that the device may still be computing.

  Attributes:
    plan: Its plan.
    state: The server's state after it.
    sums: The clients' metrics, as `Engine.round` returns them.
    start: When it began, by `time.perf_counter`.
  """

  plan: RoundPlan
  state: ServerState
  sums: Tree
  start: float


class Outputs(NamedTuple):
  """Where the results of a round go.

  Attributes:
    claim: The claim on the run's folder; None if another host writes.
    saved: The checkpoints; None if another host writes.
    writer: Writes the metrics.
    progress: The progress bar.
    watch: The clock that adds times to each round's row.
    others: Other writers, called when the run's own metrics are written.
  """

  claim: folder.Claim | None
  saved: checkpoint.Checkpoints | None
  writer: reporting.Rows
  progress: RoundProgress
  watch: clock.Clock
  others: Sequence[writers.Writer] = ()


@dataclasses.dataclass
class Ledger:
  """The state of a run after its settled rounds.

  Rounds are settled in order, one by one, while the device may already compute
  the next. What is written and saved for a round depends only on this round and
  those before it.

  Attributes:
    run: The run.
    signals: The signals that ask to stop.
    outputs: Where results go.
    last: Number of rounds of the run.
    done: Number of settled rounds.
    meter: What these rounds moved and computed.
    now: The run's standing among its evaluations, see `stopping.py`.
    best: The state of the best evaluation.
    state: The state after the last settled round.
    settled: When that round was settled, by `time.perf_counter`.
  """

  run: Run
  signals: interrupts.Interrupts
  outputs: Outputs
  last: int
  done: int
  meter: dict[str, Any]
  now: stopping.Standing
  best: ServerState
  state: ServerState
  settled: float = -math.inf

  @property
  def kept(self) -> tuple[ServerState, int]:
    """The state by which the run is finally judged, and the round after it."""
    if self.run.setup.experiment.keep_best and self.now.rnd >= 0:
      return self.best, self.now.rnd + 1
    return self.state, self.done

  @property
  def over(self) -> bool:
    """Whether the run ends early because evaluations got no better."""
    return self.now.over(self.run.setup.experiment.patience)

  def settle(self, begun: Begun) -> bool:
    """Waits for a round, judges it, writes and saves it.

    Returns:
      Whether the run ends with it.

    Raises:
      StorageError: The folder can no longer be written.
      Diverged: Something is not finite, see `health.py`.
    """
    plan, rnd, state, out = (
      begun.plan,
      begun.plan.rnd,
      begun.state,
      self.outputs,
    )
    with out.watch.section('training'):
      sums = jax.device_get(begun.sums)
    if not sums['finite']:
      health.check_state(state, f'round {rnd + 1}')
    # It began when the device was done with the one before.
    begin, self.settled = max(begun.start, self.settled), time.perf_counter()
    self.meter = self.run.charge(self.meter, plan.members)
    record = round_record(plan, sums, self.meter, self.settled - begin)
    with out.watch.section('evaluation'):
      record |= self.run.evaluate(state, rnd)
    self.done, self.state = rnd + 1, state
    if out.claim:
      out.claim.check()
    record |= out.watch.lap()
    out.writer.write(rnd, record)
    for other in out.others:
      other.write(rnd, record)
    self.now = self.now.after(rnd, stopping.score(record))
    self.best = state if self.now.rnd == rnd else self.best
    asked = hosts.anywhere(bool(self.signals.asked))
    ends = asked or self.over or self.done == self.last
    if not record['train/clients']:
      setup = self.run.setup
      able = setup.algorithm.able(rnd, len(setup.budgets))
      health.check_progress(
        out.writer.rows, np.flatnonzero(able), over=self.done == self.last
      )
    if out.saved:
      memory = self.run.memory(state, self.meter, self.best)
      with out.watch.section('checkpoint'):
        out.saved.save(self.done, memory, out.writer.rows, force=ends)
    out.progress.advance(
      loss=record['train/loss'],
      client_steps_per_s=record['time/client_steps_per_s'],
      score=record.get('eval/accuracy'),
      rejected=record['train/rejected_clients'],
    )
    return ends


def round_record(
  plan: RoundPlan,
  sums: dict[str, Any],
  meter: dict[str, Any],
  seconds: float,
) -> dict[str, Any]:
  """Returns what is written about a round."""
  # Without examples there is no mean.
  count = float(sums['count']) or math.nan
  rejected, owners = health.rejected(plan, sums['rejected'])
  return {
    'train/loss': float(sums['loss']) / count,
    'train/accuracy': float(sums['correct']) / count,
    'train/clients': len(plan.members) - len(rejected),
    'train/rejected': len(rejected),
    'train/rejected_clients': rejected,
    'time/round_s': seconds,
    'time/client_steps_per_s': plan.client_steps / seconds,
    'cost/uplink_bytes': int(meter['uplink']),
    'cost/downlink_bytes': int(meter['downlink']),
    'cost/train_flops': int(meter['flops']),
    'time/simulated_s': int(meter['simulated_us']) / 1e6,
    'coverage/layers': owners,
  }

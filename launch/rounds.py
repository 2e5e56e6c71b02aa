"""Times rounds of an engine, for every workload of the benchmark."""

from collections.abc import Callable, Mapping
import dataclasses
import time

import jax
import numpy as np

from fedjax_tune import config
from fedjax_tune.data import arrays
from fedjax_tune.engine.plan import RoundPlan
from fedjax_tune.engine.round import Engine
from fedjax_tune.training import build
from fedjax_tune.training.run import Run


@dataclasses.dataclass(frozen=True)
class Side:
  """One side of a comparison: the workload, or what it is compared with.

  Attributes:
    engine: The engine, compiled.
    plan: Plans a round; the timing moves to the device what the plan leaves on
      the host.
    lr: The clients' learning rate.
    compile_s: Seconds that it took to trace, count and compile the programs.
    uplink: Bytes that a client sends, mean over the round's clients.
    flops: FLOPs of a client-step, mean over the round; 0 if not counted.
  """

  engine: Engine
  plan: Callable[[int], RoundPlan]
  lr: float
  compile_s: float
  uplink: int
  flops: float = 0.0


@dataclasses.dataclass
class Timing:
  """The times of the rounds of one side.

  Attributes:
    round_s: Seconds of each round.
    plan_s: Seconds in which the host planned each; a run hides them behind the
      round before if a core is free.
    losses: Mean loss over the local steps of each round.
    steps: Client-steps of a round.
  """

  round_s: list[float] = dataclasses.field(default_factory=list)
  plan_s: list[float] = dataclasses.field(default_factory=list)
  losses: list[float] = dataclasses.field(default_factory=list)
  steps: int = 0

  @property
  def steady_s(self) -> float:
    """Median seconds of the rounds after the first, if there are any."""
    return float(np.median(self.round_s[1:] or self.round_s))

  @property
  def client_steps_per_s(self) -> float:
    """Client-steps per second of the steady rounds."""
    return self.steps / self.steady_s


def prepare(
  experiment: config.Experiment,
  data: arrays.Arrays | None,
  parts: list[np.ndarray] | None,
) -> Side:
  """Builds and compiles an experiment, as a run does."""
  setup = build.build(experiment, data=data, parts=parts)
  begin = time.perf_counter()
  run = Run(setup)
  compile_s = time.perf_counter() - begin
  members = setup.planner.rounds[0]
  clients = [m.client for m in members]
  moved = run.traffic(members)
  return Side(
    run.engine,
    setup.planner.plan,
    experiment.local.lr,
    compile_s,
    round(np.mean([moved[m.sig].uplink for m in members])),
    sum(map(run.work, members)) / int(setup.planner.feed.steps[clients].sum()),
  )


def time_rounds(
  sides: Mapping[str, Side], rounds: int, seed: int = 0
) -> dict[str, Timing]:
  """Runs the sides round by round in turn, so that all see the same machine."""
  key = jax.random.key(seed)
  states = {name: side.engine.init() for name, side in sides.items()}
  timings = {name: Timing() for name in sides}
  for rnd in range(rounds):
    for name, side in sides.items():
      begin = time.perf_counter()
      planned = side.plan(rnd)
      ready = time.perf_counter()
      works = [w._replace(own=jax.device_put(w.own)) for w in planned.works]
      states[name], sums = side.engine.round(
        states[name], planned._replace(works=works), key, side.lr
      )
      jax.block_until_ready(states[name])
      timing = timings[name]
      timing.round_s.append(time.perf_counter() - ready)
      timing.plan_s.append(ready - begin)
      timing.losses.append(float(sums['loss'] / sums['count']))
      timing.steps = planned.client_steps
  return timings


def describe(side: Side, timing: Timing) -> dict[str, object]:
  """Returns a side's part of the printed line."""
  return {
    'client_steps_per_s': timing.client_steps_per_s,
    'round_s': timing.round_s,
    'first_round_s': timing.round_s[0],
    'plan_s': timing.plan_s,
    'compile_s': side.compile_s,
    'compiles': len(side.engine.programs.compiled),
    'uplink_bytes': side.uplink,
    'losses': timing.losses,
  }

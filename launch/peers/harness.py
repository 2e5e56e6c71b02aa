"""What all peers share: arguments, clock and printed line."""

import argparse
from collections.abc import Callable, Sequence
import dataclasses
from importlib import metadata
import json
import pathlib
import re
import resource
import sys
import time

import numpy as np

from .. import fixed_workload as fixed

# Trains the clients of a round, from data [clients, steps, batch, ...], and
# returns the mean loss over their steps.
RunRound = Callable[[np.ndarray, np.ndarray], float]


@dataclasses.dataclass(frozen=True)
class Options:
  """What a peer is asked to run.

  Attributes:
    work: The workload.
    init: Its initial weights, under peft's names.
    rounds: Number of rounds.
    autocast: Whether torch multiplies in bfloat16.
  """

  work: fixed.Workload
  init: dict[str, np.ndarray]
  rounds: int
  autocast: bool


def parse(arguments: Sequence[str] | None = None) -> Options:
  """Reads a peer's arguments, by default those of this process."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--workload', choices=fixed.WORKLOADS, required=True)
  parser.add_argument('--init', required=True, help='initial weights, .npz')
  parser.add_argument('--rounds', type=int, required=True)
  parser.add_argument('--autocast', action='store_true')
  given = parser.parse_args(arguments)
  work = fixed.WORKLOADS[given.workload]
  init = dict(np.load(given.init))
  return Options(work, init, given.rounds, given.autocast)


def time_rounds(
  options: Options, run_round: RunRound
) -> tuple[list[float], list[float]]:
  """Returns the seconds and the loss of each round; data are drawn before."""
  seconds, losses = [], []
  for rnd in range(options.rounds):
    data = fixed.draw_round(options.work, rnd)
    begin = time.perf_counter()
    losses.append(run_round(*data))
    seconds.append(time.perf_counter() - begin)
  return seconds, losses


def report(
  options: Options,
  seconds: list[float],
  losses: list[float],
  packages: tuple[str, ...],
  workers_mib: float = 0.0,
) -> None:
  """Prints the peer's line.

  Args:
    options: What was run.
    seconds: Seconds of each round.
    losses: Loss of each round.
    packages: Packages whose versions are printed.
    workers_mib: Peak memory of the peer's other processes.
  """
  steps = options.work.cohort * fixed.STEPS
  line = {
    'client_steps_per_s': steps / float(np.median(seconds[1:] or seconds)),
    'round_s': seconds,
    'losses': losses,
    'peak_rss_mib': peak_mib() + workers_mib,
    'versions': {name: metadata.version(name) for name in packages},
  }
  sys.stdout.write(json.dumps(line) + '\n')


def peak_mib() -> float:
  """Returns the most memory that this process had."""
  status = pathlib.Path('/proc/self/status')
  text = status.read_text() if status.exists() else ''
  # What Linux says below is at least what the parent had.
  if found := re.search(r'VmHWM:\s*(\d+) kB', text):
    return int(found[1]) / 2**10
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  # In bytes there, in KiB elsewhere.
  return peak / (2**20 if sys.platform == 'darwin' else 2**10)


def main(run: Callable[[Options], RunRound], packages: tuple[str, ...]) -> None:
  """Runs a peer whose rounds can be called one by one."""
  options = parse()
  report(options, *time_rounds(options, run(options)), packages)

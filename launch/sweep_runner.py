"""Runs the processes of a sweep, several at a time."""

from collections.abc import Callable, Mapping, Sequence
import os
import signal
import subprocess
import time
from typing import NamedTuple

from rich import console as rich_console

from fedjax_tune import endings
from fedjax_tune.files import mirror
from fedjax_tune.report import tables
from fedjax_tune.training import interrupts

from . import sweep_progress, sweep_results, sweep_share
from .sweep_plan import PlannedRun

# Between looks at the running processes.
_POLL_S = 0.2
# Between two times that results go to an address.
_SEND_S = 60.0
# Of a run that was told to end: it saved, or it had not begun to train.
_STOPPED = (4, -signal.SIGTERM)
# Of a run whose experiment is no longer the one that was asked for.
_OTHER = 2


class Failure(NamedTuple):
  """A run that ended early, and the exit status of its process."""

  run: PlannedRun
  status: int


def run_sweep(
  runs: Sequence[PlannedRun],
  command_fn: Callable[[PlannedRun], list[str]],
  place: mirror.Place,
  jobs: int,
  console: rich_console.Console,
  last: int = 1,
) -> list[Failure]:
  """Runs what is not finished yet, `jobs` at a time.

  Args:
    runs: The runs, in the order in which they start.
    command_fn: Makes the command of a run.
    place: The folder that gets the results.
    jobs: Processes at a time; with more than one, each has its own cores (and
      GPUs, see `sweep_share`), so there are at most as many as cores.
    console: Shows the progress.
    last: Evaluations of a run over which the tables average.

  Returns:
    The runs that failed.

  Raises:
    Interrupted: If a signal came; the runs ended after their rounds.
    ValueError: If a run's folder holds a run of other settings, or a machine
      serves one process.
  """
  check_folders(runs)
  shares = sweep_share.divide(jobs)
  if len(shares) < jobs:
    console.print(
      f'Runs are {len(shares)} at a time, not {jobs}: each has a core of its'
      ' own.'
    )
  waiting = [run for run in runs if not run.finished]
  running: dict[int, tuple[PlannedRun, subprocess.Popen[bytes]]] = {}
  failed: list[Failure] = []
  sent = time.monotonic()
  with (
    interrupts.Interrupts() as signals,
    signals.patient(),
    sweep_progress.SweepProgress(
      len(runs), len(runs) - len(waiting), console
    ) as progress,
  ):
    told = False
    try:
      while running or (waiting and not signals.asked):
        for slot in range(len(shares)):
          if slot not in running and waiting and not signals.asked:
            run = waiting.pop(0)
            running[slot] = run, _start(run, command_fn(run), shares[slot])
            progress.start(run.name, run.workdir)
        time.sleep(_POLL_S)
        progress.refresh()
        if time.monotonic() - sent > _SEND_S:
          place.send()
          sent = time.monotonic()
        if signals.asked and not told:
          told = True
          _stop(running)
        for slot, (run, process) in list(running.items()):
          # The experiment file may have been edited since it was read.
          if problem := run.problem(running=True):
            process.terminate()
            process.wait()
          if process.poll() is None:
            continue
          del running[slot]
          if problem:
            failed.append(Failure(run, _OTHER))
            progress.fail(run.name, _OTHER, run.log, problem)
          elif told and process.returncode in _STOPPED:
            progress.stop(run.name)
          elif process.returncode == 0 and run.finished:
            progress.finish(run.name)
            sweep_results.write_results(place.folder, runs, last)
          else:
            # Without its results, a run has failed whatever it says.
            status = process.returncode or 1
            failed.append(Failure(run, status))
            progress.fail(run.name, status, run.log)
    finally:
      _stop(running)
      for _, process in running.values():
        process.wait()
  tell_results(runs, place, console, last)
  place.send()
  finished = sum(run.finished for run in runs)
  if signals.asked and finished < len(runs):
    raise endings.Interrupted(
      f'{signals.asked}: {finished} of {len(runs)} runs are finished; the same'
      ' command goes on with the others.'
    )
  return failed


def tell_results(
  runs: Sequence[PlannedRun],
  place: mirror.Place,
  console: rich_console.Console,
  last: int,
) -> None:
  """Writes tables and plots of the finished runs, and shows the first table.

  Args:
    runs: All runs of the sweep.
    place: The folder that gets them.
    console: Shows the first table.
    last: Evaluations of a run over which the tables average.
  """
  if results := sweep_results.write_results(place.folder, runs, last):
    console.print(tables.comparison_table(results.summaries))
    for line in results.notes:
      console.print(line, markup=False, highlight=False, soft_wrap=True)
    plots = ', '.join(f'{place.shown}/{name}' for name in results.plots)
    console.print(
      f'Tables: {place.shown}/results.md\nPlots: {plots}\n'
      f'Tables and plots of each run: {place.shown}',
      highlight=False,
      soft_wrap=True,
    )


def _stop(
  running: Mapping[int, tuple[PlannedRun, subprocess.Popen[bytes]]],
) -> None:
  """Asks the processes to end; the first time, after their current rounds."""
  for _, process in running.values():
    process.terminate()


def check_folders(runs: Sequence[PlannedRun]) -> None:
  """Raises a ValueError if a folder holds a run with other settings."""
  problems = [problem for run in runs if (problem := run.problem())]
  if problems:
    raise ValueError(
      '\n'.join(problems) + '\nChoose another workdir, or the old settings.'
    )


def _start(
  run: PlannedRun, command: list[str], share: sweep_share.Share
) -> subprocess.Popen[bytes]:
  run.workdir.mkdir(parents=True, exist_ok=True)
  env = dict(os.environ, PYTHONUNBUFFERED='1', **share.env)
  # The log of a run that was never accepted is of no further use.
  with run.log.open('ab' if run.begun else 'wb') as log:
    # In a session of its own: a terminal's Ctrl-C reaches the sweep alone, which
    # passes it on once, as a second signal would end a run without saving.
    process = subprocess.Popen(
      command,
      stdin=subprocess.DEVNULL,
      stdout=log,
      stderr=log,
      env=env,
      start_new_session=True,
    )
  if share.cores is not None:
    # Set from here at once: XLA sizes its thread pool by it when it starts.
    os.sched_setaffinity(process.pid, share.cores)
  return process

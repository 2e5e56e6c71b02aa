"""Runs a sweep as an array of Slurm jobs, with submitit."""

from collections.abc import Callable, Sequence
import getpass
import importlib
import pathlib
import re
import subprocess
import time
from types import ModuleType

from rich import console as rich_console

from fedjax_tune import endings
from fedjax_tune.files import mirror
from fedjax_tune.report import tables
from fedjax_tune.training import interrupts

from . import sweep_progress, sweep_results, sweep_runner
from .sweep_job import Job
from .sweep_plan import PlannedRun

# Between looks at the queue.
_POLL_S = 10.0
# Looks in a row that may fail, for an hour: controllers are restarted, and are at
# times too busy to answer.
_MOST_SILENT = 360
# In a run's folder: the job that trains it, or did.
_JOB = 'slurm_job.txt'
# How often a job may go on where its time was over.
_TIMES = 1000
_GRACE_S = 300

Settings = dict[str, str | int]


def settings(items: Sequence[str]) -> Settings:
  """Reads FIELD=VALUE: flags of sbatch and fields of submitit.

  Raises:
    ValueError: A setting is malformed or given twice, or `time` is missing or
      too short to ask a run to stop in time.
  """
  found: Settings = {}
  for item in items:
    name, equals, value = item.removeprefix('--').partition('=')
    name = name.replace('-', '_')
    if not (name and equals and value):
      raise ValueError(f'slurm: {item!r} must read FIELD=VALUE.')
    if name in found:
      raise ValueError(f'slurm: {name} must be given only once.')
    found[name] = int(value) if re.fullmatch('[0-9]+', value) else value
  if 'time' not in found:
    raise ValueError('slurm: time, the longest that a job runs, must be given.')
  given = found['time']
  found['time'] = minutes = _minutes(str(given))
  grace = found.get('signal_delay_s', _GRACE_S)
  if not isinstance(grace, int):
    raise ValueError(
      f'slurm: signal_delay_s={grace!r} must be a whole number of seconds.'
    )
  if 60 * minutes <= grace:
    # Else a job would stop after each round, and be queued again.
    raise ValueError(
      f'slurm: time={given} must be more than signal_delay_s={grace} seconds,'
      ' which is how long before its end a run is asked to stop.'
    )
  return {'signal_delay_s': grace, 'job_name': 'sweep'} | found


def _minutes(text: str) -> int:
  """Reads a time as sbatch does.

  >>> _minutes('90'), _minutes('1:30:00'), _minutes('2-1')
  (90, 90, 2940)
  """
  form = r'(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?'
  if not (match := re.fullmatch(form, text)):
    raise ValueError(
      f'slurm: time={text!r} must read MINUTES, H:MM:SS or D-H:MM.'
    )
  days, first, second, third = match.groups()
  if days is not None:
    hours, minutes = int(first), int(second or 0)
  elif third is not None:
    hours, minutes = int(first), int(second)
  else:  # Minutes and seconds.
    hours, minutes = 0, int(first)
  total = (int(days or 0) * 24 + hours) * 60 + minutes
  if total < 1:
    raise ValueError(f'slurm: time={text!r} must be at least a minute.')
  return total


def load() -> ModuleType:
  """Imports submitit, which only this module needs.

  Raises:
    ValueError: It is not installed.
  """
  try:
    return importlib.import_module('submitit')
  except ImportError as error:
    raise ValueError(
      "--backend=slurm needs submitit: pip install -e '.[slurm]'"
    ) from error


def run_sweep(
  runs: Sequence[PlannedRun],
  command_fn: Callable[[PlannedRun], list[str]],
  workdir: pathlib.Path,
  slurm: Settings,
  jobs: int | None,
  console: rich_console.Console,
  last: int = 1,
  *,
  resuming: Sequence[str] = ('--resume',),
  detach: bool = False,
) -> list[sweep_runner.Failure]:
  """Submits unfinished runs that are in no job, and follows all to the end.

  Args:
    runs: The runs, in the order in which they are submitted.
    command_fn: Makes the command of a run, without --resume.
    workdir: Gets the results and submitit's files.
    slurm: See `settings`.
    jobs: Jobs at a time; None means no limit.
    console: Shows the progress.
    last: Evaluations of a run over which the tables average.
    resuming: Flags that are added to the command of a run that has begun.
    detach: Do not follow the jobs.

  Returns:
    The runs whose jobs ended before they were finished.

  Raises:
    Interrupted: If a signal came; the jobs go on.
    ValueError: If a run's folder holds a run of other settings, or Slurm does
      not know a setting.
    RuntimeError: Slurm refuses, or does not answer.
  """
  sweep_runner.check_folders(runs)
  queue = queued()
  waiting = {
    job: run for run in runs if not run.finished and (job := _job(run)) in queue
  }
  known = {run.name for run in waiting.values()}
  new = [r for r in runs if not r.finished and r.name not in known]
  if new:
    ids = submit(new, command_fn, workdir, slurm, jobs, resuming)
    waiting |= dict(zip(ids, new, strict=True))
    runs_ = tables.counted(len(new), 'run')
    console.print(f'Submitted {runs_} as job {ids[0].split("_")[0]}.')
  if known:
    console.print(f'In jobs from before: {tables.counted(len(known), "run")}.')
  if detach:
    sweep_runner.tell_results(runs, mirror.Place(workdir), console, last)
    if waiting:
      console.print('The same command follows them, and makes the table.')
    return []
  failed = _follow(runs, waiting, workdir, console, last)
  sweep_runner.tell_results(runs, mirror.Place(workdir), console, last)
  return failed


def _follow(
  runs: Sequence[PlannedRun],
  waiting: dict[str, PlannedRun],
  workdir: pathlib.Path,
  console: rich_console.Console,
  last: int,
) -> list[sweep_runner.Failure]:
  """Waits for jobs, and returns the runs that they left unfinished."""
  failed: list[sweep_runner.Failure] = []
  gone: set[str] = set()
  done = len(runs) - len(waiting)
  with (
    interrupts.Interrupts() as signals,
    signals.patient(),
    sweep_progress.SweepProgress(len(runs), done, console) as progress,
  ):
    for run in waiting.values():
      progress.start(run.name, run.workdir)
    silent = 0
    while waiting and not signals.asked:
      try:
        queue, silent = queued(), 0
      except RuntimeError as error:
        silent += 1
        if silent == 1:
          console.print(f'{error}; asked again, while jobs go on.')
        if silent == _MOST_SILENT:
          raise
        queue = set(waiting)
      gone -= queue
      for job in [job for job in waiting if job not in queue]:
        run = waiting[job]
        if run.finished and not run.problem():
          progress.finish(run.name)
          sweep_results.write_results(workdir, runs, last)
        elif job not in gone:
          # What it wrote on its node may not be seen here yet.
          gone.add(job)
          continue
        else:
          failed.append(sweep_runner.Failure(run, 1))
          progress.fail(run.name, 1, run.log, _why(run, job, workdir))
        del waiting[job]
      progress.refresh()
      # Signals end a sleep only by an exception.
      until = time.monotonic() + _POLL_S
      while waiting and not signals.asked and time.monotonic() < until:
        time.sleep(0.1)
  if waiting:
    raise endings.Interrupted(
      f'{signals.asked}: {tables.counted(len(waiting), "run")} still in jobs, which'
      ' go on; the same command follows them, scancel ends them.'
    )
  return failed


def _why(run: PlannedRun, job: str, workdir: pathlib.Path) -> str:
  """Says why a job left a run unfinished, if the run's log does not."""
  if problem := run.problem():
    return problem
  if run.log.exists():
    return ''
  return f'its job {job} never began; {workdir / "slurm"} has what Slurm wrote'


def submit(
  runs: Sequence[PlannedRun],
  command_fn: Callable[[PlannedRun], list[str]],
  workdir: pathlib.Path,
  slurm: Settings,
  jobs: int | None,
  resuming: Sequence[str],
) -> list[str]:
  """Submits runs as one array, and returns the ids of their jobs.

  Raises:
    ValueError: Slurm does not know a setting.
    RuntimeError: Slurm refuses, or there is none here.
  """
  executor = load().SlurmExecutor(workdir / 'slurm', max_num_timeout=_TIMES)
  limit = {} if jobs is None else {'array_parallelism': jobs}
  try:
    executor.update_parameters(**slurm, **limit)
  except ValueError as error:
    raise ValueError(f'slurm: {error}') from error
  made = executor.submit_array(
    [Job(run, command_fn(run), resuming) for run in runs]
  )
  ids = [job.job_id for job in made]
  for run, job in zip(runs, ids, strict=True):
    run.workdir.mkdir(parents=True, exist_ok=True)
    (run.workdir / _JOB).write_text(job + '\n')
  return ids


def _job(run: PlannedRun) -> str:
  """Returns the last job of a run, '' if it had none."""
  try:
    return (run.workdir / _JOB).read_text().strip()
  except OSError:
    return ''


def queued() -> set[str]:
  """Returns the jobs that wait or run, as Slurm reports them.

  Raises:
    RuntimeError: Slurm does not answer.
  """
  command = ['squeue', '--noheader', '--array', '--format=%i']
  command.append(f'--user={getpass.getuser()}')
  try:
    done = subprocess.run(command, check=True, capture_output=True, text=True)
  except FileNotFoundError as error:
    raise RuntimeError('--backend=slurm: there is no squeue here.') from error
  except subprocess.CalledProcessError as error:
    raise RuntimeError(f'squeue: {error.stderr.strip()}') from error
  return set(done.stdout.split())

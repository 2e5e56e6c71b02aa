r"""Runs one experiment with several methods and seeds, and compares them.

  python -m launch.sweep --config=experiments/NAME.py --workdir=DIR \
    --methods=fedra,all_large,inclusivefl:inclusivefl.variant=fedra_port \
    --seeds=0,1,2 [--jobs=2] [--last=3] [--set=rounds=50 --set=local.lr=0.02] \
    [--fetch] [--inexact] [--backend=slurm --slurm=time=8:00:00 \
    --slurm=gpus_per_node=1 [--detach]]

  python -m launch.sweep --merge=DIR,DIR,... --workdir=DIR [--last=3]

A method is `[LABEL=]NAME[:FIELD=VALUE]...`. Each run is a separate
`launch.train` in DIR/LABEL/seedK, with its output in log.txt there. The first
seed of all methods comes first. Started again, a sweep leaves finished runs
alone and resumes unfinished ones, if their settings are still the same. The
machine must be the same too, except with --inexact: other --jobs give a run
other cores and GPUs. After every run DIR gets new results.jsonl, .csv and .md,
comparison.png and frontier.png; they cover this sweep's finished runs, and name
what else is there.

With --backend=slurm the runs are an array of Slurm jobs. A job whose time is
over is queued again, and continues. Started again, the sweep submits runs that
are neither finished nor in a job. --slurm sets options of sbatch (partition,
mem, cpus_per_task, nodes...); `time` is required.

Everything is checked before anything runs: every run's whole configuration
with its model, and all folders. If a run fails, the others go on; the sweep
then ends with its exit status.

With --merge it runs nothing: finished runs of other sweeps get one table and plot.
"""

from collections.abc import Sequence
import sys

from absl import flags
from rich import console as rich_console

from fedjax_tune import plugins
from fedjax_tune.config import unread
from fedjax_tune.files import mirror, paths
from fedjax_tune.training import agreement, apart, defaults

from . import (
  command_line,
  experiment_file,
  start,
  sweep_merge,
  sweep_plan,
  sweep_runner,
  sweep_slurm,
)

_CONFIG = flags.DEFINE_string('config', None, 'The experiment file.')
_METHODS = flags.DEFINE_string(
  'methods', None, '[LABEL=]NAME[:FIELD=VALUE]...,...'
)
_SEEDS = flags.DEFINE_list('seeds', ['0'], 'Seeds, comma-separated.')
_WORKDIR = flags.DEFINE_string(
  'workdir',
  None,
  'Folder of the results, or an address such as gs://bucket/run.',
  required=True,
)
_JOBS = flags.DEFINE_integer(
  'jobs',
  None,
  'Runs at a time, at most one for each core: 1, or on Slurm any number. Several'
  ' share out cores and GPUs.',
  lower_bound=1,
)
_LAST = flags.DEFINE_integer(
  'last',
  1,
  "The tables' accuracy is the mean of each run's last evaluations, this many.",
  lower_bound=1,
)
_MERGE = flags.DEFINE_list(
  'merge', [], 'Instead: folders of sweeps, or of runs, to put in one table.'
)
_SET = flags.DEFINE_multi_string('set', [], 'FIELD=VALUE for every run.')
_FETCH = flags.DEFINE_bool(
  'fetch', False, 'Fetch missing data and weights, as launch.prepare does.'
)
_INEXACT = flags.DEFINE_bool(
  'inexact',
  False,
  'Go on with runs though packages, code or devices are not those that they'
  ' began with, and their last bits may differ.',
)
_BACKEND = flags.DEFINE_enum(
  'backend', 'local', ['local', 'slurm'], 'Where the runs are.'
)
_SLURM = flags.DEFINE_multi_string(
  'slurm', [], 'With --backend=slurm: FIELD=VALUE for sbatch.'
)
_DETACH = flags.DEFINE_bool(
  'detach', False, 'With --backend=slurm: submit, and do not follow.'
)
# Flags that say what runs, and how.
_OF_RUNS = (
  _CONFIG, _METHODS, _SEEDS, _SET, _JOBS, _FETCH, _INEXACT, _BACKEND, _SLURM,
  _DETACH,
)  # fmt: skip


def train_command(run: sweep_plan.PlannedRun) -> list[str]:
  """The command of one run, from its beginning."""
  command = [sys.executable, '-m', f'{__package__}.train', *run.flags]
  return [*command, f'--workdir={run.workdir}']


def resume_command(run: sweep_plan.PlannedRun) -> list[str]:
  """The command of one run, from where an earlier attempt stopped."""
  return [*train_command(run), *(_resuming() if run.begun else [])]


def _resuming() -> list[str]:
  return ['--resume', *(['--inexact'] if _INEXACT.value else [])]


def main(argv: list[str]) -> None:
  """Plans the runs, runs them, and prints the table."""
  start.reject_arguments(argv)
  with mirror.opened('workdir', start.folder(_WORKDIR)) as place:
    place.fetch()
    _sweep(place, start.console())


def _sweep(place: mirror.Place, console: rich_console.Console) -> None:
  if _MERGE.value:
    _merge(place, console)
    return
  file, methods = _needed(_CONFIG), _needed(_METHODS)
  slurm = _slurm()
  runs = sweep_plan.plan(
    file,
    methods,
    _SEEDS.value,
    _SET.value,
    place.folder,
    experiment_file.resolve,
  )
  for run in runs:
    # Its tables and plots lie above the runs.
    for folder in (place.folder, run.workdir):
      apart.check_data(place.name_of(folder), run.experiment.data.name)
  sweep_runner.check_folders(runs)
  sweep_plan.provide(runs, _FETCH.value)
  with console.status('Checking every run with its model'):
    _check_models(runs)
  _tell_unread(runs, console)
  if slurm is None:
    failed = sweep_runner.run_sweep(
      runs, resume_command, place, _JOBS.value or 1, console, _LAST.value
    )
  else:
    failed = sweep_slurm.run_sweep(
      runs,
      train_command,
      place.folder,
      slurm,
      _JOBS.value,
      console,
      _LAST.value,
      resuming=_resuming(),
      detach=_DETACH.value,
    )
  if failed:
    names = ', '.join(failure.run.name for failure in failed)
    console.print(f'Failed: {names}', style='bold red')
    status = failed[0].status
    # Below zero it is the signal that ended the process.
    sys.exit(status if status > 0 else 128 - status)


def _needed(flag: flags.FlagHolder[str | None]) -> str:
  if not flag.value:
    raise ValueError(f'flag --{flag.name}: must be given, or --merge.')
  return flag.value


def _merge(place: mirror.Place, console: rich_console.Console) -> None:
  """Puts finished runs of other sweeps in one table and plot."""
  for flag in _OF_RUNS:
    if flag.present:
      raise ValueError(f'--{flag.name} and --merge exclude each other.')
  found = sweep_merge.gather(_MERGE.value)
  place.folder.mkdir(parents=True, exist_ok=True)
  sweep_runner.tell_results(found.runs, place, console, _LAST.value)
  place.send()
  for line in found.left_out:
    console.print(f'Left out: {line}', soft_wrap=True)


def _slurm() -> sweep_slurm.Settings | None:
  """Returns Slurm's options, or None if the sweep does not use Slurm."""
  if _BACKEND.value == 'slurm':
    if paths.is_address(_WORKDIR.value):
      raise ValueError(
        f'workdir={_WORKDIR.value!r} must be a folder that all nodes share, with'
        ' --backend=slurm.'
      )
    sweep_slurm.load()
    return sweep_slurm.settings(_SLURM.value)
  command_line.only_with('--backend=slurm', _SLURM, _DETACH)
  return None


def _check_models(runs: Sequence[sweep_plan.PlannedRun]) -> None:
  """Checks each label's experiment as far as possible without its data.

  Raises:
    ValueError: With a line for each label that is wrong.
  """
  problems = []
  # Seeds make no difference here.
  for label, run in {run.label: run for run in reversed(runs)}.items():
    try:
      agreement.agree(run.experiment)
    except ValueError as error:
      problems.append(f'{label}: {error}')
  if problems:
    raise ValueError('\n'.join(reversed(problems)))


def _tell_unread(
  runs: Sequence[sweep_plan.PlannedRun], console: rich_console.Console
) -> None:
  """Prints options that no run reads, of the experiment and of each entry.

  Experiment files serve several methods, so it is enough if one of them reads
  an option.
  """
  lines = {
    run.label: {
      line.partition('=')[0]: line
      for line in unread.in_vain(
        run.experiment,
        registered=plugins.registered(run.experiment),
        usual=defaults.usual(run.experiment),
      )
    }
    for run in runs
  }
  everywhere = set.intersection(*map(set, lines.values()))
  for path in sorted(everywhere):
    console.print(lines[runs[0].label][path], soft_wrap=True)
  own = {run.label: run.own for run in runs}
  for label, found in lines.items():
    for path, line in found.items():
      if path in own[label] and path not in everywhere:
        console.print(f'{label}: {line}', soft_wrap=True)


if __name__ == '__main__':
  start.run(main)

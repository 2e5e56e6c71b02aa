r"""Runs one experiment with several methods and seeds, and compares them.

  python -m launch.sweep --config=experiments/NAME.py --workdir=DIR \
    --methods=fedra,all_large,inclusivefl:inclusivefl.variant=fedra_port \
    --seeds=0,1,2 [--jobs=2] [--fetch] [--set=rounds=50 --set=local.lr=0.02]

A method is `[LABEL=]NAME[:FIELD=VALUE]...`. Each run is a `launch.train` of
its own in DIR/LABEL/seedK, with its output in log.txt there. The first seed of
all methods comes first. Started again, a sweep leaves finished runs alone and
resumes those that were begun. After every run DIR gets a new results.jsonl,
results.csv, results.md and comparison.png; they cover all finished runs there.
"""

from collections.abc import Sequence
import pathlib
import sys

from absl import app, flags
from ml_collections import config_flags
from rich import console as rich_console

from fedjax_tune import config, provisions
from launch import start, sweep_plan, sweep_runner

_CONFIG = flags.DEFINE_string(
  'config', None, 'The experiment file.', required=True
)
_METHODS = flags.DEFINE_string(
  'methods', None, '[LABEL=]NAME[:FIELD=VALUE]...,...', required=True
)
_SEEDS = flags.DEFINE_list('seeds', ['0'], 'Seeds, comma-separated.')
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of the results.', required=True
)
_JOBS = flags.DEFINE_integer('jobs', 1, 'Runs at a time.', lower_bound=1)
_SET = flags.DEFINE_multi_string('set', [], 'FIELD=VALUE for every run.')
_FETCH = flags.DEFINE_bool(
  'fetch', False, 'Fetch missing data and weights, as launch.prepare does.'
)


def train_command(run: sweep_plan.Run) -> list[str]:
  """The command of one run, going on where an earlier attempt stopped."""
  command = [sys.executable, '-m', 'launch.train', *run.flags]
  command.append(f'--workdir={run.workdir}')
  return [*command, '--resume'] if run.begun else command


def provide(runs: Sequence[sweep_plan.Run], fetch: bool) -> None:
  """Checks that the runs' data and weights are there; fetches them if asked.

  Raises:
    FileNotFoundError, RuntimeError: As `provisions`.
    ValueError: The experiment file or a field of it is wrong.
  """
  # Runs differ by their seed alone where their labels are equal.
  for run in {run.label: run for run in runs}.values():
    experiment = _read(run.flags)
    if fetch:
      provisions.obtain(experiment)
    provisions.check(experiment)


def _read(arguments: Sequence[str]) -> config.Experiment:
  values, argv = flags.FlagValues(), ['', *arguments]
  flag = config_flags.DEFINE_config_file(
    'config', lock_config=True, flag_values=values, sys_argv=argv
  )
  try:
    start.check_config_flags(argv)
    values(argv)
  except flags.Error as error:
    raise ValueError(str(error)) from error
  return flag.value


def main(argv: list[str]) -> None:
  """Plans the runs, runs them, and prints the table."""
  start.reject_arguments(argv)
  file, workdir = _CONFIG.value, pathlib.Path(_WORKDIR.value)
  # The part after a colon is an argument of the experiment file.
  if not pathlib.Path(file.partition(':')[0]).is_file():
    raise FileNotFoundError(f'config={file!r} is not a file.')
  runs = sweep_plan.plan(
    file, _METHODS.value, _SEEDS.value, _SET.value, workdir
  )
  provide(runs, _FETCH.value)
  console = rich_console.Console()
  failed = sweep_runner.run_sweep(
    runs, train_command, workdir, _JOBS.value, console
  )
  if failed:
    names = ', '.join(run.name for run in failed)
    console.print(f'Failed: {names}', style='bold red', highlight=False)
    sys.exit(1)


if __name__ == '__main__':
  app.run(start.clearly(main))

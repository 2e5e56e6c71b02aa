"""Shows what an experiment costs, before anything runs.

  python -m launch.inspect --config=experiments/NAME.py \
    [--budgets=2GiB,512MiB] [--time] [--config.FIELD=VALUE ...]

It reads weights and data, divides the data, and compiles the programs, which
gives their memory. It trains nothing and writes no results. With `--time` it
runs a slab of each class of clients and an evaluation, and says how long the
run will take on this machine. With `clients.fit` it shows what each kind of
device trains. With `--budgets` it shows what devices with these amounts of
memory can train, and compiles nothing.
"""

import time

from absl import flags

from fedjax_tune.costs import products, table
from fedjax_tune.report.progress import waiting
from fedjax_tune.training import build, defaults, opening
from fedjax_tune.training.run import Run

from . import experiment_file, overview, start, timing

_CONFIG = experiment_file.define()
_BUDGETS = flags.DEFINE_list(
  'budgets', [], 'Memory of devices to fit the model to: 2GiB,512MiB.'
)
_TIME = flags.DEFINE_bool(
  'time', False, 'Try each program, and tell how long the run will take here.'
)


def main(argv: list[str]) -> None:
  """Prints the tables."""
  begin = time.perf_counter()
  start.reject_arguments(argv)
  if _BUDGETS.value and _TIME.value:
    raise ValueError('--budgets and --time exclude each other.')
  experiment, console = start.experiment(_CONFIG), start.console()
  start.tell_devices(console)
  with waiting(console, 'Reading and dividing'):
    setup = build.build(experiment)
  if _BUDGETS.value:
    with waiting(console, 'Fitting'):
      fitted = overview.fitted(setup, _BUDGETS.value)
    console.print(fitted)
    return
  with waiting(console, 'Compiling'):
    run = Run(setup)
  ready = time.perf_counter() - begin
  opening.tell_unread(setup, console)
  if left := defaults.left_open(experiment):
    console.print(overview.decided(left, setup.experiment), soft_wrap=True)
  console.print(overview.table(run))
  faster = products.advice(products.rates(), experiment.model.dtype)
  if faster:
    console.print(faster)
  if _TIME.value:
    with waiting(console, 'Trying each program'):
      times = timing.measure(run)
    console.print(f'time: {times.describe(ready)}', soft_wrap=True)
  if setup.fits:
    console.print(table.fit_table(setup.devices, setup.fits, setup.sizes))
  console.print(table.cost_table(run.class_costs()))


if __name__ == '__main__':
  start.run(main)

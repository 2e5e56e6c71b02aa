"""Tells what an experiment costs, before anything runs.

  python -m launch.inspect --config=experiments/NAME.py \
    [--config.FIELD=VALUE ...]

Reads weights and data, divides the data, and compiles, which tells the memory;
it trains nothing and writes nothing.
"""

from fedjax_tune.costs import table
from fedjax_tune.training import build, loop
from fedjax_tune.training.run import Run
from launch import experiment_file, overview, start

_CONFIG = experiment_file.define()


def main(argv: list[str]) -> None:
  """Prints the tables."""
  start.reject_arguments(argv)
  experiment, console = start.experiment(_CONFIG), start.console()
  with console.status('Reading, dividing and compiling'):
    run = Run(build.build(experiment))
  loop.tell_unread(run.setup, console)
  console.print(overview.table(run))
  console.print(table.cost_table(run.class_costs()))


if __name__ == '__main__':
  start.run(main)

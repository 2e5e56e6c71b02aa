"""Runs one experiment.

python -m launch.train --config=experiments/NAME.py --workdir=DIR \
    [--config.FIELD=VALUE ...] [--resume [--inexact]] [--fetch] [--distributed]
"""

import datetime

from absl import flags

from fedjax_tune.report import tables
from fedjax_tune.training import clock, loop

from . import distributed, experiment_file, second_signal, start

_CONFIG = experiment_file.define()
_WORKDIR = flags.DEFINE_string(
  'workdir',
  None,
  'Folder of the results, or an address such as gs://bucket/run.',
  required=True,
)
_RESUME = flags.DEFINE_bool('resume', False, 'Continue the run in workdir.')
_FETCH = flags.DEFINE_bool(
  'fetch', False, 'Fetch missing data and weights, as launch.prepare does.'
)
_INEXACT = flags.DEFINE_bool(
  'inexact',
  False,
  'With --resume: go on though packages, code or devices are not those that the'
  ' run began with, and its last bits may differ.',
)


def main(argv: list[str]) -> None:
  """Trains, and prints where the results are."""
  start.reject_arguments(argv)
  workdir, console = start.folder(_WORKDIR), start.console()
  second_signal.watch(console)
  if _INEXACT.value and not _RESUME.value:
    raise ValueError('--inexact goes with --resume.')
  experiment = start.experiment(_CONFIG)
  distributed.join(console)
  start.tell_devices(console)
  summary = loop.train(
    experiment,
    workdir,
    resume=_RESUME.value,
    fetch=_FETCH.value,
    inexact=_INEXACT.value,
    console=console,
  )
  console.print(
    f'{tables.measured([summary])} {summary["accuracy"]:.1%} after'
    f' {tables.counted(summary["rounds"], "round")};'
    f' results, accuracy.png and coverage.png in {workdir}',
    soft_wrap=True,
  )
  if summary['time_shares']:
    whole = datetime.timedelta(seconds=round(summary['wall_s']))
    shares = clock.describe(summary['time_shares'])
    console.print(f'{whole} in all: {shares}', soft_wrap=True)
  if summary['rejected']:
    clients = ', '.join(map(str, summary['rejected_clients']))
    console.print(
      f'{summary["rejected"]} updates were not finite and did not count, of'
      f' clients {clients}; metrics.jsonl has the rounds',
      soft_wrap=True,
    )


if __name__ == '__main__':
  start.run(main)

"""Runs one experiment.

python -m launch.train --config=experiments/NAME.py --workdir=DIR \
    [--config.FIELD=VALUE ...] [--resume [--inexact]] [--fetch] [--distributed]
"""

from absl import flags

from fedjax_tune.training import loop
from fedjax_tune.training import summary as told

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
  for line in told.closing(summary, workdir):
    console.print(line, soft_wrap=True)


if __name__ == '__main__':
  start.run(main)

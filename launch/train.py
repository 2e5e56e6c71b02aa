"""Runs one experiment.

python -m launch.train --config=experiments/NAME.py --workdir=DIR \
    [--config.FIELD=VALUE ...] [--resume [--inexact]] [--fetch]
"""

from absl import flags
from ml_collections import config_flags
from rich import console as rich_console

from fedjax_tune import train
from launch import second_signal, start

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'The experiment file.', lock_config=True
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of the results.', required=True
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
  start.cache_programs(_CONFIG.value)
  console = rich_console.Console()
  second_signal.watch(console)
  if _INEXACT.value and not _RESUME.value:
    raise ValueError('--inexact goes with --resume.')
  summary = train.train(
    _CONFIG.value,
    _WORKDIR.value,
    resume=_RESUME.value,
    fetch=_FETCH.value,
    inexact=_INEXACT.value,
    console=console,
  )
  console.print(
    f'accuracy {summary["accuracy"]:.1%} after {summary["rounds"]} rounds; '
    f'results, accuracy.png and coverage.png in {_WORKDIR.value}'
  )
  if summary['rejected']:
    clients = ', '.join(map(str, summary['rejected_clients']))
    console.print(
      f'{summary["rejected"]} updates were not finite and did not count, of'
      f' clients {clients}; metrics.jsonl has the rounds'
    )


if __name__ == '__main__':
  flags.mark_flag_as_required('config')
  start.run(main)

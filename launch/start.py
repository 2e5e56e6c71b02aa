"""What every command does first: how loud it is, and how it fails."""

from collections.abc import Callable
import sys

from absl import logging


def clearly(main: Callable[[list[str]], None]) -> Callable[[list[str]], None]:
  """Turns errors that a user can mend into one message and exit code 2."""

  def run(argv: list[str]) -> None:
    # Orbax and TFDS report every file that they touch at INFO.
    logging.set_verbosity(logging.WARNING)
    try:
      main(argv)
    except (ValueError, OSError, RuntimeError) as error:
      sys.stderr.write(f'error: {error}\n')
      sys.exit(2)

  return run


def reject_arguments(argv: list[str]) -> None:
  """Refuses arguments that are no flags; they are typing errors."""
  if len(argv) > 1:
    raise ValueError(f'unexpected arguments {argv[1:]}; flags begin with --.')

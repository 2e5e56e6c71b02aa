"""What every command does first: its flags, how loud it is, how it fails."""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import difflib
import itertools
import os
import pathlib
import re
import sys
import typing
from typing import Any, NoReturn

from absl import app, flags, logging
import jax

from fedjax_tune import build, config, endings

# Exit statuses of a command besides 0. Python's own, 1, means a fault of ours.
_STATUS = {
  endings.Diverged: 3,
  endings.Interrupted: 4,
  endings.StorageError: 5,
}
_REFUSED = 2


def run(main: Callable[[list[str]], None]) -> None:
  """Runs a command; what is wrong with its flags is said in one line."""
  app.run(clearly(main), flags_parser=_parse)


def clearly(main: Callable[[list[str]], None]) -> Callable[[list[str]], None]:
  """Turns errors that a user can mend into one message and a status."""

  def run(argv: list[str]) -> None:
    # Orbax and TFDS report every file that they touch at INFO.
    logging.set_verbosity(logging.WARNING)
    try:
      main(argv)
    except (endings.Interrupted, endings.StorageError) as error:
      leave(error)
    except (ValueError, OSError, RuntimeError) as error:
      _fail(error)
    except KeyboardInterrupt:
      leave(endings.Interrupted('ended by Ctrl-C.'))

  return run


def cache_programs(experiment: config.Experiment) -> None:
  """Keeps compiled programs beside the data, for the next run."""
  if experiment.engine.compilation_cache:
    folder = pathlib.Path(build.data_dir(experiment.data)) / 'compiled'
    jax.config.update('jax_compilation_cache_dir', str(folder))


def reject_arguments(argv: list[str]) -> None:
  """Refuses arguments that are no flags; they are typing errors."""
  if len(argv) > 1:
    raise ValueError(f'unexpected arguments {argv[1:]}; flags begin with --.')


def check_config_flags(argv: list[str]) -> None:
  """Checks --config=FILE and the names of --config.FIELD=VALUE.

  Raises:
    FileNotFoundError: There is no such file.
    ValueError: A field is unknown; names those that are like it.
  """
  known = list(_field_paths(config.Experiment))
  for arg, following in itertools.pairwise([*argv[1:], '']):
    if given := re.fullmatch(r'--?config(=.*)?', arg):
      # What follows a colon is an argument of get_config.
      file = (given[1] or f'={following}')[1:].partition(':')[0]
      if not pathlib.Path(file).is_file():
        raise FileNotFoundError(f'--config={file} is not a file.')
    field = re.match(r'--?(?:no)?config\.([^=]+)', arg)
    if field and field[1] not in known:
      hint = _like(field[1], known)
      raise ValueError(f'--config.{field[1]} is not a field{hint}')


def _like(path: str, known: list[str]) -> str:
  """Suggests fields of the same last name, of that section, or alike."""
  last = path.rpartition('.')[2]
  near = [p for p in known if p.rpartition('.')[2] == last]
  near = near or [p for p in known if p.startswith(f'{path}.')]
  near = near or difflib.get_close_matches(path, known)
  return f'; did you mean {" or ".join(near)}?' if near else '.'


def _field_paths(section: Any, prefix: str = '') -> Iterator[str]:
  """Yields the dotted names of all fields that hold a value."""
  for name, kind in typing.get_type_hints(section).items():
    if dataclasses.is_dataclass(kind):
      yield from _field_paths(kind, f'{prefix}{name}.')
    else:
      yield prefix + name


def _parse(argv: list[str]) -> list[str]:
  try:
    check_config_flags(argv)
    return flags.FLAGS(argv)
  except (flags.Error, ValueError, OSError) as error:
    _fail(error)


def leave(error: endings.Interrupted | endings.StorageError) -> NoReturn:
  """Ends the process with its message, and waits for nothing.

  Threads may still compile, and output may go to the disk that is full.
  """
  for stream, text in ((sys.stdout, ''), (sys.stderr, f'error: {error}\n')):
    with contextlib.suppress(OSError):
      stream.write(text)
      stream.flush()
  os._exit(_STATUS[type(error)])


def _fail(error: Exception) -> NoReturn:
  message = str(error)
  # ml_collections quotes the whole traceback of an experiment file.
  head, quoted, trace = message.partition(': Error whilst parsing config file')
  if quoted:
    message = f'{head}: {trace.strip().splitlines()[-1]}'
  sys.stderr.write(f'error: {message}\n')
  sys.exit(_STATUS.get(type(error), _REFUSED))

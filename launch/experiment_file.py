"""Experiment files on the command line: --config=FILE, --config.FIELD=VALUE."""

from collections.abc import Sequence
import functools
import importlib
import importlib.util
import itertools
import pathlib
import re
import sys
import traceback
from typing import Any

from absl import flags
from ml_collections import config_flags

import fedjax_tune
from fedjax_tune import config, plugins
from fedjax_tune.config import fields, meanings

from . import command_line

_NAME = 'config'
# Where an installed package has its experiments.
_PACKAGED = pathlib.Path(fedjax_tune.__file__).parent / 'experiments'


def define() -> flags.FlagHolder:
  """Defines --config for a command, which `parse` then reads."""
  holder = _define(flags.FLAGS)
  flags.mark_flag_as_required(holder)
  return holder


def parse(argv: list[str]) -> list[str]:
  """Parses a command's flags, and runs its experiment file if it has one.

  Returns:
    The arguments that are not flags, the program's name first.

  Raises:
    flags.Error, ValueError, OSError: Flags, fields or the file are wrong; with
      a line for each problem.
  """
  argv, values = _locate(argv), flags.FLAGS
  sifted = command_line.sift(values, argv, _NAME)
  # A sweep has the file's name alone, as text.
  of_experiment = _NAME in values and values[_NAME].flag_type() != 'string'
  if 'set' in values:
    sifted.problems.extend(
      f'{arg} must be --set={arg.partition(".")[2]}, for every run.'
      for arg in arguments(argv)
      if not _names_file(arg)
    )
  if sifted.clean:
    try:
      _check_file(argv)
      return _parse(values, argv)
    except flags.Error as error:
      besides = _problems(sifted) if of_experiment else []
      if set(besides) <= {str(error)}:
        raise
      lines = dict.fromkeys([str(error), *besides])
      raise ValueError('\n'.join(lines)) from error
  lines = _problems(sifted) if of_experiment else sifted.problems
  raise ValueError('\n'.join(lines))


def arguments(argv: Sequence[str]) -> list[str]:
  """Returns the part of a command line that `resolve` takes."""
  switches = {
    f'{_NAME}.{f.path}' for f in fields.fields() if type(f.default) is bool
  }
  return [
    f'--{found.name}' if found.text is None else f'--{found.name}={found.text}'
    for found in command_line.read(argv, switches)
    if re.match(rf'(no)?{_NAME}($|\.)', found.name)
  ]


def resolve(arguments: Sequence[str]) -> config.Experiment:
  """Returns the experiment of --config=FILE --config.FIELD=VALUE ...

  Raises:
    flags.Error, ValueError, OSError: See `parse`.
  """
  argv = _locate(['', *arguments])
  sifted = command_line.sift(flags.FlagValues(), argv, _NAME)
  if not sifted.clean:
    raise ValueError('\n'.join(_problems(sifted)))
  if (found := _read(argv)) is None:
    raise ValueError(f'--{_NAME} must name an experiment file, FILE.py.')
  return found


def _read(argv: list[str]) -> config.Experiment | None:
  """Runs an experiment file, if one is named, and sets the given fields."""
  _check_file(argv)
  values = flags.FlagValues()
  holder = _define(values, argv)
  _parse(values, argv)
  return holder.value


def _problems(sifted: command_line.Sifted) -> list[str]:
  """Returns a line for all that is wrong with a command line's experiment."""
  lines, found = list(sifted.problems), None
  try:
    found = _read(['', *arguments(sifted.argv)])
  except (flags.Error, ValueError, OSError) as error:
    lines += str(error).splitlines()
  found = found or config.Experiment()
  for path, text in sifted.ill.items():
    *sections, name = path.split('.')
    setattr(functools.reduce(getattr, sections, found), name, text)
  try:
    plugins.check(found)
  except ValueError as error:
    lines += str(error).splitlines()
  return lines


def _names_file(arg: str) -> bool:
  return re.match(rf'--?{_NAME}(=|$)', arg) is not None


def _locate(argv: Sequence[str]) -> list[str]:
  """Finds experiments/NAME.py in the installed package, if it is not here.

  Experiment files import each other from a package `experiments`, which nothing
  installs under that name.
  """
  if not _PACKAGED.is_dir():
    return list(argv)
  if importlib.util.find_spec('experiments') is None:
    name = f'{fedjax_tune.__name__}.experiments'
    sys.modules['experiments'] = importlib.import_module(name)
  found = []
  for arg in argv:
    named = re.fullmatch(r'(--?config=)?experiments/(\w+\.py)(:.*)?', arg)
    if named and not pathlib.Path('experiments', named[2]).exists():
      arg = f'{named[1] or ""}{_PACKAGED / named[2]}{named[3] or ""}'
    found.append(arg)
  return found


def _define(
  values: flags.FlagValues, argv: list[str] | None = None
) -> flags.FlagHolder:
  return config_flags.DEFINE_config_file(
    _NAME,
    None,
    'The experiment file.',
    lock_config=True,
    flag_values=values,
    sys_argv=argv,
  )


def _parse(values: flags.FlagValues, argv: list[str]) -> list[str]:
  given = _file(argv)
  folder = str(pathlib.Path(given.partition(':')[0]).resolve().parent)
  if given and folder not in sys.path:
    # So that it may import its neighbours; whatever else has their name wins.
    sys.path.append(folder)
  try:
    rest = values(argv)
  except (flags.Error, OSError) as error:
    # ml_collections quotes the whole traceback of a file's ValueError.
    head, quoted, trace = str(error).partition(': Error whilst parsing config')
    if not quoted:
      raise
    said = trace.strip().splitlines()[-1]
    raise ValueError(f'{head}: {said}{_meant(said)}') from error
  # The rest is the experiment file's doing: whatever it raises ends up here.
  except SyntaxError as error:
    place = f' (line {error.lineno})' if error.lineno else ''
    raise _wrong(given, f'SyntaxError: {error.msg}{place}') from error
  except SystemExit as error:
    text = f'it ends the program, with exit status {error.code!r}.'
    raise _wrong(given, text) from error
  except Exception as error:
    (said,) = traceback.format_exception_only(error)[-1:]
    raise _wrong(given, said.strip() + _line_of(error, given)) from error
  if _NAME in values and given:
    _check_kind(given, values[_NAME].value)
  return rest


def _wrong(given: str, text: str) -> ValueError:
  return ValueError(f'flag --{_NAME}={given}: {text}')


def _line_of(error: BaseException, given: str) -> str:
  """Says where in the file an error arose."""
  path = pathlib.Path(given.partition(':')[0])
  frames = traceback.extract_tb(error.__traceback__)
  lines = [f.lineno for f in frames if pathlib.Path(f.filename) == path]
  return f' (line {lines[-1]})' if lines else ''


def _meant(said: str) -> str:
  """Suggests a field for one that a section does not have."""
  found = re.search(r"(\w+)\.__init__\(\).*unexpected.*'(\w+)'", said)
  if not found:
    return ''
  section = '' if found[1] == 'Experiment' else f'{found[1].lower()}.'
  known = [field.path for field in fields.fields()]
  return meanings.hint(*meanings.near(section + found[2], known))


def _check_kind(given: str, value: Any) -> None:
  """Refuses anything but an experiment."""
  if isinstance(value, str):  # The flag of the sweep is just a name.
    return
  if isinstance(value, config.Experiment):
    return
  # ml_collections keeps an OSError of the file until the value is used.
  held = vars(value).get('_error') if hasattr(value, '__dict__') else None
  if isinstance(held, OSError):
    raise _wrong(given, f'{type(held).__name__}: {held}')
  raise _wrong(
    given,
    f'get_config() must return a config.Experiment, not {value!r:.60}.',
  )


def _file(argv: Sequence[str]) -> str:
  """Returns the value of --config, or ''."""
  for arg, following in itertools.pairwise([*argv[1:], '']):
    if given := re.fullmatch(rf'--?{_NAME}(=.*)?', arg, re.DOTALL):
      return (given[1] or f'={following}')[1:]
  return ''


def _check_file(argv: Sequence[str]) -> None:
  """Raises a FileNotFoundError if --config=FILE names no file."""
  # What follows a colon is an argument of get_config.
  named = _file(argv).partition(':')[0]
  file = pathlib.Path(named)
  if not any(map(_names_file, argv[1:])) or file.is_file():
    return
  folders = (file.parent, pathlib.Path('experiments'), _PACKAGED)
  known = {
    path.stem: path
    for folder in reversed(folders)
    for path in folder.glob('[!_]*.py')
  }
  near = known.get(meanings.nearest(file.stem, known), '')
  hint = meanings.hint(str(near)) or '.'
  raise FileNotFoundError(f'--{_NAME}={named} is not a file{hint}')

"""How every command starts and fails: its flags, logging and exit status."""

from collections.abc import Callable, Iterator
import contextlib
import gc
import io
import os
import pathlib
import re
import signal
import sys
from typing import Any, NoReturn

from absl import app, flags, logging
import jax
from rich import console as rich_console

import fedjax_tune
from fedjax_tune import commands, config, endings, plugins
from fedjax_tune.engine import hosts
from fedjax_tune.files import bounded, paths
from fedjax_tune.training import build, defaults

from . import end_at_once, experiment_file, manual, users_code

flags.DEFINE_bool(
  'print_config', False, 'Show every field of the experiment, and end.'
)
flags.DEFINE_bool(
  'traceback', False, 'Show with an error where in the code it arose.'
)
flags.DEFINE_bool('version', False, 'Show the version, and end.')

# Exit statuses of a command besides 0. Python's own, 1, means a fault of ours.
_STATUS = {
  endings.Diverged: 3,
  endings.Interrupted: 4,
  endings.StorageError: 5,
}
_REFUSED = 2
_MOST_COMPILED = 4 << 30
# The status of a program that the system ends for writing to a closed pipe.
_UNREAD = 141


class _Console(rich_console.Console):
  """A console that leaves closed pipes to `run`, which sets the exit status."""

  def on_broken_pipe(self) -> None:
    raise BrokenPipeError


def console() -> rich_console.Console:
  """Returns the console of a command: standard output, plain text."""
  return _Console(markup=False, highlight=False)


def run(main: Callable[[list[str]], None]) -> None:
  """Runs a command; errors in its flags are reported in one line."""
  for stream in (sys.stdout, sys.stderr):
    # A terminal gets '?' for characters that it lacks, not an error.
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors='replace')
  # Tracing makes millions of objects that stay; by default Python looks
  # through all of them dozens of times, two seconds of a start.
  gc.set_threshold(20_000, 50)
  try:
    try:
      app.run(clearly(main), flags_parser=_parse)
    finally:
      sys.stdout.flush()
  except BrokenPipeError:
    # The reader of the output has gone; Python would flush again at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(_UNREAD)


def clearly(main: Callable[[list[str]], None]) -> Callable[[list[str]], None]:
  """Turns errors that a user can mend into one message and a status."""

  def run(argv: list[str]) -> None:
    # Orbax and TFDS report every file that they touch at INFO.
    logging.set_verbosity(logging.WARNING)
    try:
      with _cleaning_up():
        main(argv)
    except BrokenPipeError:
      raise
    except (endings.Interrupted, endings.StorageError) as error:
      leave(error)
    except (ValueError, OSError, RuntimeError) as error:
      _fail(error)
    except MemoryError as error:
      _fail(ValueError(f'it needs more memory than there is: {error}'))
    except KeyboardInterrupt:
      leave(endings.Interrupted('ended by Ctrl-C.'))

  return run


@contextlib.contextmanager
def _cleaning_up() -> Iterator[None]:
  """Makes Ctrl-C raise, so that the code inside can clean up."""
  before = signal.getsignal(signal.SIGINT)
  if before is end_at_once:
    signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    yield
  finally:
    if before is end_at_once:
      signal.signal(signal.SIGINT, before)


def experiment(flag: flags.FlagHolder[Any]) -> config.Experiment:
  """Returns the experiment of a command, checked; see `validate`."""
  plugins.check(flag.value)
  cache_programs(flag.value)
  return flag.value


def tell_devices(console: rich_console.Console) -> None:
  """Prints on which devices a command runs."""
  devices, count = jax.devices(), jax.process_count()
  kind, ending = devices[0].device_kind, 's' if len(devices) > 1 else ''
  kind = kind.upper() if kind == 'cpu' else kind
  line = f'On {len(devices)} {kind} device{ending}'
  line += f' of {count} hosts.' if count > 1 else '.'
  console.print(line, soft_wrap=True)


def cache_programs(experiment: config.Experiment) -> None:
  """Keeps up to 4 GiB of compiled programs beside the data, for later runs."""
  if experiment.engine.compilation_cache:
    folder = pathlib.Path(build.data_dir(experiment.data), 'compiled')
    bounded.trim(folder, _MOST_COMPILED)
    jax.config.update('jax_compilation_cache_dir', str(folder))
    # JAX leaves out what compiles in less than a second: two thirds of a run's
    # programs, seconds of every start.
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)


def reject_arguments(argv: list[str]) -> None:
  """Refuses arguments that are not flags, as they are typing errors."""
  if len(argv) > 1:
    raise ValueError(f'unexpected arguments {argv[1:]}; flags begin with --.')


def folder(flag: flags.FlagHolder[Any]) -> str:
  """Returns the folder or address that a flag names; see `paths`."""
  if paths.is_address(flag.value):
    paths.at(flag.name, flag.value)
    return flag.value.rstrip('/')
  return str(paths.local(flag.name, flag.value))


def _parse(argv: list[str]) -> list[str]:
  try:
    if asked := [arg for arg in argv[1:] if re.fullmatch(_HELP, arg)]:
      _help([argv[0], asked[0]])
    if _asks(argv, 'version'):
      sys.stdout.write(f'fedjax_tune {fedjax_tune.__version__}\n')
      sys.exit(0)
    _check_once(argv)
    if _asks(argv, 'print_config'):
      _print_config(argv)
    return experiment_file.parse(argv)
  except BrokenPipeError:
    raise
  except (flags.Error, ValueError, OSError) as error:
    _fail(error)


_HELP = r'--?(help(short|full|xml)?|h|\?)(=.*)?'


def _asks(argv: list[str], name: str) -> bool:
  """Whether a switch is on that needs none of a command's required flags."""
  return any(re.fullmatch(rf'--?{name}(=true)?', arg) for arg in argv[1:])


def _help(argv: list[str]) -> NoReturn:
  """Shows the flags and fields; absl would call that a failure."""
  word = argv[1].partition('=')[2]
  if 'config' in flags.FLAGS and word not in ('', 'true'):
    sys.stdout.write(commands.as_typed(manual.about(word)) + '\n')
    sys.exit(0)
  shown = io.StringIO()
  with contextlib.suppress(SystemExit), contextlib.redirect_stdout(shown):
    flags.FLAGS(argv)
  # Where a file lies, and that there are flags which nobody would set.
  rest = re.sub(r'(?m)^(/\S+:|Try --helpfull.*)\n', '', shown.getvalue())
  sys.stdout.write(commands.as_typed(rest))
  if 'config' in flags.FLAGS and not re.search('short|xml', argv[1]):
    sys.stdout.write(commands.as_typed(manual.options()) + '\n')
  sys.exit(0)


def _print_config(argv: list[str]) -> NoReturn:
  """Shows an experiment, checked, with all its values."""
  found = experiment_file.resolve(experiment_file.arguments(argv))
  plugins.check(found)
  try:
    found = defaults.resolve(found)
  except (ValueError, OSError) as error:
    open_ = ', '.join(defaults.left_open(found))
    why = str(error).replace('\n', '\n# ')
    sys.stdout.write(f'# Left open: {open_}. {why}\n')
  sys.stdout.write(manual.written(found, defaults.usual(found)) + '\n')
  sys.exit(0)


def _check_once(argv: list[str]) -> None:
  """Refuses a flag that is given twice: only the last would count."""
  seen: dict[str, str] = {}
  for arg in argv[1:]:
    if arg == '--':
      return
    if not (found := re.match(r'--?([A-Za-z][\w.]*)', arg)):
      continue
    name = found[1]
    # A switch may be turned off as --noNAME.
    if name not in flags.FLAGS and name.startswith('no'):
      name = name.removeprefix('no')
    several = name in flags.FLAGS and isinstance(
      flags.FLAGS[name], flags.MultiFlag
    )
    if name in seen and not several:
      raise ValueError(f'{seen[name]} and {arg}: must be given only once.')
    seen[name] = arg


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
  sys.stderr.write(users_code.trace(error, whole=_asks(sys.argv, 'traceback')))
  text = str(error)
  if isinstance(error, OSError) and error.filename and error.strerror:
    # Python would begin with a number.
    text = f'{error.filename}: {error.strerror}'
  sys.stderr.write(f'error: {text}\n')
  status = _STATUS.get(type(error), _REFUSED)
  if hosts.count() > 1:
    # Python would wait for the others, which wait for this one.
    sys.stdout.flush()
    os._exit(status)
  sys.exit(status)

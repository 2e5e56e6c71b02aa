"""Experiment files on the command line: --config=FILE, --config.FIELD=VALUE."""

from collections.abc import Sequence
import difflib
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
from fedjax_tune import config
from fedjax_tune.config import fields

# What people call a field who know it from other tools, and its name here: the
# last part of either, or the whole.
_MEANINGS = {
  'learning_rate': 'lr',
  'eta': 'lr',
  'wd': 'weight_decay',
  'bs': 'batch_size',
  'batch': 'batch_size',
  'train_batch_size': 'batch_size',
  'local_epochs': 'epochs',
  'num_epochs': 'epochs',
  'local_steps': 'steps',
  'num_rounds': 'rounds',
  'n_rounds': 'rounds',
  'comm_rounds': 'rounds',
  'num_clients': 'count',
  'n_clients': 'count',
  'clients_per_round': 'cohort_size',
  'clients_per_domain': 'count',
  'fraction_fit': 'cohort_size',
  'r': 'rank',
  'lora_r': 'rank',
  'lora_alpha': 'alpha',
  'dirichlet_alpha': 'alpha',
  'lora_dropout': 'dropout',
  'target_modules': 'targets',
  'mu': 'prox',
  'proximal_mu': 'prox',
  'grad_clip': 'clip_norm',
  'max_grad_norm': 'clip_norm',
  'beta1': 'momentum',
  'tau': 'eps',
  'epsilon': 'eps',
  'resolution': 'image_size',
  'img_size': 'image_size',
  'max_length': 'lengths',
  'max_seq_length': 'lengths',
  'dataset': 'name',
  'model_name': 'weights',
  'model.name': 'weights',
  'model_name_or_path': 'weights',
  'checkpoint': 'weights',
  'pretrained': 'weights',
  'peft': 'tune',
  'peft_type': 'tune',
  'precision': 'dtype',
  'gradient_checkpointing': 'remat',
  'algorithm': 'method',
  'strategy': 'method',
  'random_seed': 'seed',
  'early_stopping': 'patience',
  'eval_interval': 'eval_every',
  'save_every': 'checkpoint_every',
}

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
    flags.Error, ValueError, OSError: A flag or the file is wrong; in one line.
  """
  argv = _locate(argv)
  _check_fields(argv)
  return _parse(flags.FLAGS, argv)


def arguments(argv: Sequence[str]) -> list[str]:
  """Returns the part of a command line that `resolve` takes."""
  found = []
  for arg, following in itertools.pairwise([*argv[1:], '']):
    if re.match(rf'--?(no)?{_NAME}(=|$|\.)', arg):
      found += [arg] if '=' in arg else [f'{arg}={following}']
  return found


def resolve(arguments: Sequence[str]) -> config.Experiment:
  """Returns the experiment of --config=FILE --config.FIELD=VALUE ...

  Raises:
    flags.Error, ValueError, OSError: As `parse`.
  """
  argv = _locate(['', *arguments])
  _check_fields(argv)
  values = flags.FlagValues()
  holder = _define(values, argv)
  _parse(values, argv)
  return holder.value


def _locate(argv: Sequence[str]) -> list[str]:
  """Finds experiments/NAME.py in the installed package, if it is not here.

  Its files import each other from a package `experiments`, which nothing
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
    raise ValueError(f'{head}: {trace.strip().splitlines()[-1]}') from error
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


def _check_fields(argv: Sequence[str]) -> None:
  """Checks --config=FILE and the names of --config.FIELD=VALUE.

  Raises:
    FileNotFoundError: There is no such file.
    ValueError: Fields are unknown, with a line for each, which suggests
      others.
  """
  given = any(re.match(rf'--?{_NAME}(=|$)', arg) for arg in argv[1:])
  # What follows a colon is an argument of get_config.
  file = _file(argv).partition(':')[0]
  if given and not pathlib.Path(file).is_file():
    raise FileNotFoundError(f'--{_NAME}={file} is not a file.')
  known = [field.path for field in fields.fields()]
  named = (re.match(rf'--?(?:no)?{_NAME}\.([^=]+)', arg) for arg in argv[1:])
  unknown = [field[1] for field in named if field and field[1] not in known]
  if unknown:
    raise ValueError(
      '\n'.join(
        f'--{_NAME}.{path} is not a field{_like(path, known)}'
        for path in unknown
      )
    )


def _like(path: str, known: list[str]) -> str:
  """Suggests fields of the same meaning or last name, or similar ones."""
  section, _, last = path.rpartition('.')
  meant = _MEANINGS.get(path, _MEANINGS.get(last, last))
  near = [p for p in known if p == meant or p.endswith(f'.{meant}')]
  # Of its own section rather than another.
  near = [p for p in near if p.rpartition('.')[0] == section] or near
  near = near or [p for p in known if p.startswith(f'{path}.')]
  near = near or difflib.get_close_matches(path, known)
  return f'; did you mean {" or ".join(near)}?' if near else '.'

"""Checks the descriptions of prepared sets before TFDS reads them.

TFDS imports any module that a set's features.json or dataset_info.json names,
and opens any file that their names and templates lead to. A set from elsewhere
must not run code or read outside its folder.
"""

import os
import pathlib
import re

from fedjax_tune.data import json_files
from fedjax_tune.typing import Json

_FILES = ('features.json', 'dataset_info.json', 'metadata.json')
# The files that every version of a set has.
NEEDED = ('dataset_info.json', 'features.json')
_VERSION = re.compile(r'\d+\.\d+\.\d+', re.ASCII)
# SET/VERSION or SET/CONFIG/VERSION, and SET/.config.
_LEVELS = 3
_MAX_BYTES = 64 << 20
# The limit of protobuf's own JSON reader.
_MAX_DEPTH = 100

# protobuf reads each name in two spellings; `type` is an older one.
_CLASS_KEYS = {'type', 'pythonClassName', 'python_class_name'}
_CLASS = re.compile(r'tensorflow_datasets\.core\.features\.\w+\.\w+', re.ASCII)
# Fields that become parts of paths, of the set and of its splits.
_PATH_KEYS = (
  'name',
  'version',
  'configName',
  'config_name',
  'default_config_name',
  'fileFormat',
  'file_format',
  'filepathTemplate',
  'filepath_template',
)
# A set's name, config and version; no namespace, which would name a hub.
_NAME = re.compile(
  r'[a-z]\w*(?:/[A-Za-z0-9_][\w+.-]*)?(?::\d+\.\d+\.\d+)?', re.ASCII
)


def check_name(name: str) -> None:
  """Raises a ValueError unless a set of this name is read from its folder.

  With `huggingface:glue` TFDS would ask a hub, and `../glue` leaves the folder.
  """
  if not _NAME.fullmatch(name):
    raise ValueError(
      f'data.name={name!r}: must be the name of a set, or NAME/CONFIG, in lower'
      " case, or files of your own, such as 'csv:PATH'; sets of a namespace,"
      ' such as huggingface:, are not read'
    )


def check(data_dir: str | os.PathLike, name: str) -> None:
  """Checks the files that describe a prepared set, if there are any.

  Args:
    data_dir: The root folder of prepared sets.
    name: Name of the set; all of its configs are checked.

  Raises:
    ValueError: A copy lacks one of its files; or a file is not JSON, or names a
      path or a feature class that is not TFDS's own. The message has the file,
      the value and the rule.
  """
  folder = pathlib.Path(data_dir) / re.split('[/:]', name)[0]
  for path in find_unfinished(folder):
    raise ValueError(
      f'{path} is incomplete: it has no {" or no ".join(NEEDED)}. Delete that'
      ' folder, and prepare the set again.'
    )
  for level in range(_LEVELS):
    for file in _FILES:
      for path in sorted(folder.glob('*/' * level + file)):
        found = _read(path)
        _check_paths(found, path)
        # Anything else in metadata.json is the set's own business.
        if file != 'metadata.json':
          _check_classes(found, path)
    for path in sorted(folder.glob('*/' * level + '*.labels.txt')):
      _check_names(path)


def find_unfinished(folder: pathlib.Path) -> list[pathlib.Path]:
  """Returns the versions of a set that lack one of the `NEEDED` files."""
  versions = [
    path
    for level in range(1, _LEVELS)
    for path in sorted(folder.glob('/'.join('*' * level)))
    if path.is_dir() and _VERSION.fullmatch(path.name)
  ]
  return [
    path
    for path in versions
    if not all((path / name).exists() for name in NEEDED)
  ]


def find_unreadable(folder: pathlib.Path) -> list[pathlib.Path]:
  """Returns the versions of a set whose descriptions are cut short."""
  unreadable = set()
  for level in range(1, _LEVELS):
    for file in NEEDED:
      for path in folder.glob('*/' * level + file):
        try:
          _read(path)
        except ValueError:
          unreadable.add(path.parent)
  return sorted(unreadable)


def _read(path: pathlib.Path) -> Json:
  try:
    return json_files.read_object(path, _MAX_BYTES)
  except ValueError as error:
    raise ValueError(
      f'{error}. If it was cut short, delete {path.parent} and prepare the set'
      ' again.'
    ) from error


def _check_names(path: pathlib.Path) -> None:
  try:
    text = path.read_bytes().decode()
  except UnicodeDecodeError as error:
    raise ValueError(f'{path} is not UTF-8: {error}') from error
  if text.startswith('\ufeff'):
    raise ValueError(f'{path} must not begin with a byte order mark')


def _check_paths(found: Json, path: pathlib.Path) -> None:
  splits = found.get('splits')
  for part in (found, *(splits if isinstance(splits, list) else ())):
    for key in _PATH_KEYS if isinstance(part, dict) else ():
      value = part.get(key, '')
      if value == '..' or set(str(value)) & set('/\\\0'):
        raise ValueError(f'{path}: {key}={value!r} must be a name, not a path')


def _check_classes(
  value: object, path: pathlib.Path, key: str = '', depth: int = 0
) -> None:
  """Checks the names of classes, wherever they are."""
  if depth > _MAX_DEPTH:
    raise ValueError(f'{path} is nested more than {_MAX_DEPTH} deep')
  if isinstance(value, dict):
    for name, part in value.items():
      _check_classes(part, path, name, depth + 1)
  elif isinstance(value, list):
    for part in value:
      _check_classes(part, path, key, depth + 1)
  elif isinstance(value, str) and key == 'json':
    # An older format keeps a feature as a JSON string inside JSON.
    inner = json_files.parse(value, f'{path}: {key}')
    _check_classes(inner, path, '', depth + 1)
  elif isinstance(value, str) and key in _CLASS_KEYS and _is_foreign(value):
    raise ValueError(
      f'{path}: {key}={value!r} must be a class of'
      ' tensorflow_datasets.core.features; any other would run its module'
    )


def _is_foreign(name: str) -> bool:
  # A name without a dot is no module's; TFDS refuses it itself.
  return '.' in name and not _CLASS.fullmatch(name)

"""Prepared copies of sets: whether one is whole, and what it was made from.

In addition to TFDS's own files, a copy of a set that this package builds has
`made_of.json`, with its inputs and the size of each file. This file is written
last, so a copy without it is unfinished.
"""

from collections.abc import Iterator
import contextlib
import json
import os
import pathlib
import shutil
from typing import Any, Protocol

from fedjax_tune.data import json_files, metadata
from fedjax_tune.files import locks, whole
from fedjax_tune.typing import Json, Record

_STAMP = 'made_of.json'
# A folder that was moved holds the same pictures.
_UNCOMPARED = ('folder',)


class Builder(Protocol):
  """The part of a TFDS builder that this package uses."""

  @property
  def info(self) -> Any:
    """The builder's features and splits, whose types TFDS leaves open."""
    ...

  @property
  def data_dir(self) -> str:
    """The folder of the copy."""
    ...

  @property
  def data_path(self) -> pathlib.PurePath:
    """The folder of the copy."""
    ...

  def is_prepared(self) -> bool:
    """Whether there is a copy."""
    ...

  def as_data_source(self, split: str, /) -> Any:
    """Opens a split: a sequence of rows, or by its type more than one."""
    ...


def find_fault(builder: Builder) -> str:
  """Returns what is wrong with the files of a copy, or ''.

  Every file of every split must be there, and have as many records as
  dataset_info.json says. In this package's own sets each file must also have
  its recorded size.
  """
  folder = pathlib.Path(builder.data_dir)
  for name in metadata.NEEDED:
    if not (folder / name).exists():
      return f'{name} is missing'
  stamp = read_stamp(builder) or {}
  for name, size in stamp.get('files', {}).items():
    path = folder / name
    if not path.exists():
      return f'{name} is missing'
    if path.stat().st_size != size:
      return f'{name} has {path.stat().st_size} bytes; must have {size}'
  for split in builder.info.splits.values():
    for path, count in zip(split.filepaths, split.shard_lengths, strict=True):
      if fault := _find_shard_fault(pathlib.Path(path), count):
        return f'{path.name} {fault}'
  return ''


def _find_shard_fault(path: pathlib.Path, count: int) -> str:
  from array_record.python import array_record_data_source

  if not path.exists():
    return 'is missing'
  if '.array_record' not in path.name:
    return ''
  try:
    with array_record_data_source.ArrayRecordDataSource(path) as source:
      found = len(source)
  except (RuntimeError, ValueError) as error:
    return f'is cut short or corrupt ({error})'
  return '' if found == count else f'has {found} records; must have {count}'


def find_change(builder: Builder, made_of: Record) -> str:
  """Returns which of a copy's inputs has changed since it was made, or ''.

  Args:
    builder: The builder of the copy.
    made_of: The inputs that a copy would have now.
  """
  stamp = read_stamp(builder)
  if stamp is None:
    return 'an earlier version of this package made it, or did not finish'
  then = stamp['made_of']
  for name in (*made_of, *(n for n in then if n not in made_of)):
    old, new = then.get(name), made_of.get(name)
    if old != new and name not in _UNCOMPARED:
      return f'its {name} changed: {_shorten(old)} then, {_shorten(new)} now'
  return ''


def _shorten(value: object) -> str:
  text = str(value)
  return text if len(text) <= 40 else f'{text[:40]}...'


def read_stamp(builder: Builder) -> Json | None:
  """Returns the content of a copy's `made_of.json`, None if there is none.

  Raises:
    ValueError: It is not what `write_stamp` wrote.
  """
  path = pathlib.Path(builder.data_dir, _STAMP)
  if not path.exists():
    return None
  stamp = json_files.read_object(path)
  if not all(isinstance(stamp.get(k), dict) for k in ('made_of', 'files')):
    raise ValueError(f'{path} must have made_of and files. Delete its folder.')
  return stamp


def write_stamp(builder: Builder, made_of: Record) -> None:
  """Marks a copy as whole."""
  folder = pathlib.Path(builder.data_dir)
  files = {p.name: p.stat().st_size for p in sorted(folder.iterdir())}
  text = json.dumps({'made_of': made_of, 'files': files}, indent=2)
  whole.write_text(folder / _STAMP, text + '\n')


def drop_broken(data_dir: str | os.PathLike, name: str) -> None:
  """Removes copies of a set that are unfinished or lack their description.

  This is for sets that this package builds; TFDS can't even open such a copy.
  """
  folder = pathlib.Path(data_dir, name)
  for path in (
    *metadata.find_unfinished(folder),
    *metadata.find_unreadable(folder),
  ):
    shutil.rmtree(path, ignore_errors=True)


def clear(builder: Builder) -> None:
  """Removes a copy, and what unfinished attempts at it left behind."""
  folder = pathlib.Path(builder.data_dir)
  if folder.exists():
    (folder / _STAMP).unlink(missing_ok=True)
    shutil.rmtree(folder)
  for path in folder.parent.glob(f'*incomplete*{folder.name}'):
    shutil.rmtree(path)


@contextlib.contextmanager
def lock(builder: Builder) -> Iterator[None]:
  """Lets one process at a time build a set; others wait, see `locks.take`."""
  path = pathlib.Path(builder.data_dir).parent / '.lock'
  path.parent.mkdir(parents=True, exist_ok=True)
  with open(path, 'wb') as file:
    locks.take(file, wait=True)
    yield

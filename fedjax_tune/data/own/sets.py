"""The user's own data sets: folders and tables, read where they are.

In `folder:PATH` classes come from the names of folders (`class_folders.py`) or
from lists (`lists.py`), or the folder is CIFAR (`cifar.py`). `csv:PATH`,
`jsonl:PATH`, `parquet:PATH` and `npz:PATH` have rows (`tables.py`), in one file
or in a folder of files. Nothing is copied. If files name no split, a seeded
part of each class is held out (`splits.hold_out`).
"""

from collections.abc import Mapping, Sequence
import dataclasses
import difflib
import functools
import os
import pathlib
import re

from fedjax_tune import config
from fedjax_tune.config import meanings
from fedjax_tune.data import digest, fetch, notes, text_sets
from fedjax_tune.data.own import (
  cells,
  cifar,
  class_folders,
  columns,
  divide,
  lists,
  tables,
)
from fedjax_tune.data.own.found import Example, Found
from fedjax_tune.data.own.opened import Own
from fedjax_tune.files import paths
from fedjax_tune.report.tables import counted

KINDS = ('folder', 'csv', 'jsonl', 'parquet', 'npz')
# What else people call them.
_MEANT = {
  'json': 'jsonl', 'ndjson': 'jsonl', 'tsv': 'csv', 'table': 'csv',
  'text': 'csv', 'dir': 'folder', 'images': 'folder', 'imagefolder': 'folder',
  'path': 'folder', 'npy': 'npz', 'numpy': 'npz', 'arrow': 'parquet',
}  # fmt: skip
# Fields of the section `data` that name columns.
COLUMNS = (
  'label_column', 'text_column', 'image_column', 'domain_column',
  'client_column',
)  # fmt: skip
# What two runs of one configuration may understand differently.
_READ_BY = (
  'name', 'task', *COLUMNS, 'test_share', 'split_seed', 'bad_rows',
)  # fmt: skip
# More than as many labels of their own are no classes.
_FEW = 10


def is_own(name: str) -> bool:
  """Whether the name of a set means the user's own files."""
  kind, colon, _ = name.partition(':')
  return bool(colon) and kind in KINDS


def suggest(name: str) -> str:
  """Suggests what an unknown name may mean: '; did you mean ...?', or ''."""
  if paths.is_address(name):
    return meanings.hint(f"'folder:{name}'")
  kind, colon, path = name.partition(':')
  if colon:
    near = difflib.get_close_matches(kind.lower(), KINDS, n=1)
    meant = _MEANT.get(kind.lower()) or (near[0] if near else '')
    return meanings.hint(meant and f"'{meant}:{path or 'PATH'}'")
  place = pathlib.Path(name).expanduser()
  if not place.exists():
    return ''
  ending = place.suffix.lower().lstrip('.')
  meant = ending if ending in KINDS else _MEANT.get(ending, 'folder')
  return meanings.hint(f"'{meant}:{name}'")


def check(cfg: config.Data) -> pathlib.Path:
  """Returns the path of a name such as `csv:PATH`, and checks that it is there.

  Raises:
    FileNotFoundError: It is not there.
    ValueError: The name has no path, or something of another kind is there.
  """
  kind, _, path = cfg.name.partition(':')
  said = f'data.name={cfg.name!r}'
  if not path:
    raise ValueError(f"{said}: must have a path, as in '{kind}:PATH'")
  place = paths.here('data.name', path)
  if path == 'PATH' and not place.exists():
    mine = 'YOUR_PICTURES' if kind == 'folder' else f'YOUR_TABLE.{kind}'
    raise FileNotFoundError(
      f"{said} is the experiment file's placeholder: set"
      f' --config.data.name={kind}:{mine}'
    )
  if not place.exists():
    beside = place.absolute().parent
    names = [p.name for p in beside.iterdir()] if beside.is_dir() else []
    near = difflib.get_close_matches(place.name, names, n=1)
    hint = meanings.hint(*(str(place.with_name(n)) for n in near))
    raise FileNotFoundError(f'{said}: {place.absolute()} does not exist{hint}')
  if kind == 'folder' and not place.is_dir():
    raise ValueError(f'{said}: {place} must be a folder{suggest(path)}')
  if not os.access(place, os.R_OK):
    raise PermissionError(f'{said}: {place} is not readable')
  return place


def read(cfg: config.Data) -> Own:
  """Reads the user's own set, but decodes no picture.

  Raises:
    FileNotFoundError: The path does not exist.
    ValueError: The files cannot be understood, or some examples cannot be used
      and `data.bad_rows` does not leave them out.
  """
  place = check(cfg)
  key = tuple(getattr(cfg, name) for name in _READ_BY)
  own = _read(key, _state(cfg.name.partition(':')[0], place))
  _check_splits(cfg, own)
  return own


def _check_splits(cfg: config.Data, own: Own) -> None:
  """Raises a ValueError unless the domains have examples of both splits."""
  for domain, parts in own.examples.items():
    for split, examples in parts.items():
      if not examples and domain in (cfg.domains or (domain,)):
        raise ValueError(
          f'data.name={own.name!r}: domain {domain!r} has no {split} example'
        )


def _state(kind: str, place: pathlib.Path) -> str:
  """Returns a hash of the files' content, to see whether it changed.

  For pictures it hashes only their names, which is fast.
  """
  if kind == 'folder':
    files = list(class_folders.walk(place))
  else:
    files = tables.find(kind, place)
  stats = [
    (f, f.stat())
    for f in files
    if f.suffix.lower() not in class_folders.PICTURES and f.exists()
  ]
  return digest.of(
    '\n'.join(map(str, files)),
    [[str(f), s.st_size, s.st_mtime_ns] for f, s in stats],
  )


# The last one is kept: a run asks for it several times before it reads rows.
@functools.lru_cache(maxsize=1)
def _read(key: tuple[object, ...], state: str) -> Own:
  del state
  fields = dict(zip(_READ_BY, key, strict=True))
  cfg = config.Data(**fields)  # pyright: ignore[reportArgumentType]
  kind, _, path = cfg.name.partition(':')
  place = paths.here('data.name', path)
  if kind == 'folder' and cifar.find(place):
    found = cifar.read(place)
  elif kind == 'folder' and (files := lists.find(place)):
    found = lists.read(place, files)
  elif kind == 'folder':
    found = class_folders.read(place)
  else:
    found = _read_table(cfg, kind, place)
  found.faults.sort(key=lambda fault: _in_order(fault[0]))
  _check(cfg, found)
  try:
    train, test = divide.divide(cfg, found)
  except ValueError as error:
    raise ValueError(f'{error}{_besides(found)}') from error
  left = notes.Notes()
  for where, reason in found.faults:
    left.add(f'rows or files left out ({reason})', where)
  return Own(
    cfg.name,
    found.texts,
    _by_domain(place, train, test),
    found.class_names or _classes([*train, *test]),
    found.metrics,
    tuple(found.faults),
    (*found.notes, *left.lines()),
  )


def _in_order(place: str) -> list[str | int]:
  """Returns a sort key that puts line 9 before line 10."""
  parts = re.split(r'(\d+)', place)
  return [int(part) if i % 2 else part for i, part in enumerate(parts)]


def _read_table(cfg: config.Data, kind: str, place: pathlib.Path) -> Found:
  """Reads a table; in a folder with the name of a GLUE set it is that set."""
  table = tables.read(kind, tables.find(kind, place))
  name = f'glue/{place.name}'
  known = None if cfg.task else text_sets.TEXT_SETS.get(name)
  if known is None or not all(f in table.columns for f in known.features):
    return cells.take(cfg, table, columns.find(cfg, table))
  if known.kind == 'regression':
    cfg = dataclasses.replace(cfg, task=known.kind)
  found = cells.take(cfg, table, columns.of_known(known))
  found.notes.append(f'read as {name}, by the names of its folder and columns')
  found.metrics = known.metrics
  return found


def _check(cfg: config.Data, found: Found) -> None:
  """Raises a ValueError unless there are examples and all can be used."""
  said = f'data.name={cfg.name!r}'
  if found.faults and cfg.bad_rows == 'refuse':
    fields = {name: getattr(cfg, name) for name in ('task', *COLUMNS)}
    command = fetch.command(source=cfg.name, **fields)
    raise ValueError(
      f'{said}: {_faults(found)}. `{command}` lists all;'
      " data.bad_rows='leave_out' goes on without them"
    )
  if not found.examples:
    raise ValueError(f'{said}: nothing in it can be used{_besides(found)}')
  names = {e.label for e in found.examples if isinstance(e.label, str)}
  if len(names) == len(found.examples) > _FEW and not found.class_names:
    raise ValueError(
      f'{said}: all {len(names)} examples have labels of their own, such as'
      f' {min(names)!r}; name the label by data.label_column'
    )


def _besides(found: Found) -> str:
  return f'; besides, {_faults(found)}' if found.faults else ''


def _faults(found: Found) -> str:
  listed = [f'{place}: {reason}' for place, reason in found.faults]
  return (
    f'{counted(len(listed), "row or file")} cannot be used.'
    f' {notes.join_first(listed, "; ")}'
  )


def _classes(examples: Sequence[Example]) -> tuple[str, ...]:
  """Returns the names of the classes, in order of their labels."""
  return cells.sort_classes(
    e.label for e in examples if isinstance(e.label, str)
  )


def _by_domain(
  place: pathlib.Path, train: Sequence[Example], test: Sequence[Example]
) -> Mapping[str, Mapping[str, Sequence[Example]]]:
  """Returns examples by domain, sorted by name, and split."""
  names = sorted({e.domain for e in (*train, *test)})
  found: dict[str, dict[str, list[Example]]] = {
    name or place.stem or 'all': {'train': [], 'test': []} for name in names
  }
  for split, examples in (('train', train), ('test', test)):
    for example in examples:
      found[example.domain or place.stem or 'all'][split].append(example)
  return found

"""Turns the rows of a table into examples."""

from collections.abc import Iterable
import math
import pathlib
import re
from typing import Any

import numpy as np

from fedjax_tune import config
from fedjax_tune.data.own.columns import NONE, Columns
from fedjax_tune.data.own.found import (
  Content,
  Example,
  Found,
  is_blank,
  split_name,
)
from fedjax_tune.data.own.table import Table
from fedjax_tune.report.tables import counted


def take(cfg: config.Data, table: Table, columns: Columns) -> Found:
  """Returns the examples of a table, and the faults of other rows."""
  names = table.class_names.get(columns.label, ())
  found = Found(columns.texts, faults=list(table.faults), class_names=names)
  found.notes += [*table.notes, f'columns: {columns}']
  unlabelled = _unlabelled(table, columns)
  for split in sorted(unlabelled):
    count = table.splits.count(split)
    found.notes.append(
      f'{counted(count, "row")} of {split} without a label left out'
    )
  for at, place in enumerate(table.places):
    if table.splits[at] not in unlabelled:
      try:
        found.examples.append(_example(cfg, table, columns, at, names))
      except ValueError as error:
        found.fault(place, str(error))
  return found


def _example(
  cfg: config.Data,
  table: Table,
  columns: Columns,
  at: int,
  names: tuple[str, ...],
) -> Example:
  """Returns the example of a row; `names` are the classes, if listed."""
  cell = lambda name: table.columns[name][at] if name else ''
  first = cell(columns.inputs[0])
  if columns.texts:
    texts = tuple(_text(name, cell(name)) for name in columns.inputs)
    content = texts[0] if len(texts) == 1 else (texts[0], texts[1])
  else:
    content = _picture(table.folder, columns.inputs[0], first)
  return Example(
    table.places[at],
    content,
    _label(cfg, columns.label, cell(columns.label), names),
    _name('domain', columns.domain, cell(columns.domain)),
    _name('client', columns.client, cell(columns.client)),
    split_name(str(cell(columns.split))) or table.splits[at],
    first if isinstance(content, pathlib.Path) else '',
  )


def _unlabelled(table: Table, columns: Columns) -> set[str]:
  """Returns splits without any label, such as the test splits of GLUE."""
  if not columns.label:
    return set()
  labels = table.columns[columns.label]
  labelled = {
    split
    for split, label in zip(table.splits, labels, strict=True)
    if split == '' or not _is_missing(label)
  }
  return set(table.splits) - labelled


def _is_missing(label: Any) -> bool:
  return is_blank(label) or (isinstance(label, int) and label == -1)


def _text(column: str, value: Any) -> str:
  if is_blank(value):
    raise ValueError(f'{column} is empty')
  if not isinstance(value, str):
    raise ValueError(f'{column} is {type(value).__name__}; must be a text')
  return value


def _picture(folder: pathlib.Path, column: str, value: Any) -> Content:
  """Returns a picture, or the path of its file."""
  if isinstance(value, dict):  # As `datasets` stores pictures.
    value = value.get('bytes') or value.get('path')
  if is_blank(value):
    raise ValueError(f'{column} is empty')
  if isinstance(value, str):
    path = folder / pathlib.Path(value).expanduser()
    if not path.is_file():
      raise ValueError(f'{column}={value!r}: there is no file {path}')
    return path
  value = np.asarray(value) if isinstance(value, list) else value
  if not isinstance(value, bytes | np.ndarray):
    raise ValueError(
      f'{column} is {type(value).__name__}; must be the path of a picture, or'
      ' one'
    )
  return value


def _label(
  cfg: config.Data, column: str, value: Any, names: tuple[str, ...]
) -> str | float | None:
  """Returns the name of a class, or a number.

  Args:
    cfg: Says what is learned.
    column: The column's name; '' if nothing has a label.
    value: The cell.
    names: Names of the classes, if the file lists them.
  """
  if not column:
    return None
  value = value.item() if isinstance(value, np.generic) else value
  value = value.strip() if isinstance(value, str) else value
  if is_blank(value):
    raise ValueError(f'{column} is empty')
  if cfg.task == 'regression':
    return _number(column, value)
  if isinstance(value, float) and value.is_integer():
    value = int(value)
  if isinstance(value, str) and re.fullmatch(r'-?\d+\.0*', value):
    value = value.partition('.')[0]  # As pandas writes whole numbers.
  if isinstance(value, float) or _is_fraction(value):
    raise ValueError(
      f"{column}={value} is no class; data.task='regression' learns numbers"
    )
  if not isinstance(value, str | int):
    raise ValueError(
      f'{column} is {type(value).__name__}; must be the name or number of a class'
    )
  if not names or (isinstance(value, str) and value in names):
    return str(value)
  if not str(value).isdecimal() or int(value) >= len(names):
    raise ValueError(
      f'{column}={value!r} must be from 0 to {len(names) - 1}, or the name of a'
      ' class'
    )
  return names[int(value)]


def _number(column: str, value: Any) -> float:
  try:
    number = float(value)
  except (TypeError, ValueError) as error:
    raise ValueError(f'{column}={value!r} must be a number') from error
  if not math.isfinite(number):
    raise ValueError(f'{column}={value!r} must be a finite number')
  return number


def _is_fraction(value: object) -> bool:
  """Whether a text is a number that is not whole, such as 3.5."""
  return isinstance(value, str) and bool(re.fullmatch(r'-?\d*\.\d+', value))


def _name(role: str, column: str, value: Any) -> str:
  """Returns the name of a row's domain or client; '' if there is no column."""
  if not column:
    return ''
  if is_blank(value):
    raise ValueError(
      f'{column} is empty, the {role} of the row'
      f' (data.{role}_column={NONE!r} reads none)'
    )
  return str(value).strip()


def sort_classes(names: Iterable[str]) -> tuple[str, ...]:
  """Returns the names of classes in order of their labels.

  >>> sort_classes({'b', 'a'}), sort_classes({'10', '9'})
  (('a', 'b'), ('9', '10'))
  """
  found = sorted(set(names))
  if is_numeric(found):
    found.sort(key=lambda name: (int(name), name))
  return tuple(found)


def is_numeric(labels: Iterable[str]) -> bool:
  """Whether all labels are whole numbers, written out."""
  return all(re.fullmatch(r'-?\d+', label) for label in labels)

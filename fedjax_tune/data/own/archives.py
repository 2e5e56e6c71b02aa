"""Tables of columns: Parquet files, and NumPy archives."""

from collections.abc import Mapping
import json
import pathlib
import re
from typing import Any

import numpy as np

from fedjax_tune.data.own.found import split_name
from fedjax_tune.data.own.table import Table


def read_parquet(file: pathlib.Path, split: str, table: Table) -> None:
  """Adds the rows of a Parquet file, and the classes that it lists.

  Raises:
    ValueError: It is no Parquet file.
  """
  import pyarrow as pa
  from pyarrow import parquet

  try:
    # A folder named label=1 above the file is no column of it.
    found = parquet.ParquetFile(file).read()
  except (pa.ArrowException, OSError) as error:
    raise ValueError(f'{file} is no Parquet file: {error}') from error
  names = found.column_names
  if len(set(names)) < len(names):
    raise ValueError(f'{file}: columns must have names of their own: {names}')
  columns = {name: found.column(name).to_pylist() for name in names}
  places = [f'{file.name}, row {n}' for n in range(found.num_rows)]
  table.add(columns, places, split)
  table.class_names |= _hub_classes(found.schema.metadata or {})


def _hub_classes(
  metadata: Mapping[bytes, bytes],
) -> dict[str, tuple[str, ...]]:
  """Returns the classes that a file of Hugging Face's `datasets` lists."""
  try:
    said = json.loads(metadata.get(b'huggingface', b'{}'))
    features = said.get('info', {}).get('features', {})
    return {
      column: tuple(kind['names'])
      for column, kind in features.items()
      if isinstance(kind, dict)
      and kind.get('_type') == 'ClassLabel'
      and all(isinstance(name, str) for name in kind['names'])
    }
  except (ValueError, AttributeError, KeyError, TypeError):
    return {}  # Somebody else's metadata.


def read_npz(file: pathlib.Path, split: str, table: Table) -> None:
  """Adds the rows of arrays, such as `x_train` and `y_train`, or `x` and `y`.

  An array `class_names` lists the classes.

  Raises:
    ValueError: It is no archive of arrays, or the arrays of a split differ in
      length.
  """
  try:
    with np.load(file, allow_pickle=False) as held:
      arrays = {name: held[name] for name in held.files}
  except Exception as error:  # A damaged archive raises about anything.
    raise ValueError(
      f'{file} is no archive of plain arrays: {error}'
    ) from error
  names = arrays.pop('class_names', None)
  parts: dict[str, dict[str, np.ndarray]] = {}
  for key, values in arrays.items():
    part, name = _part_of(key)
    parts.setdefault(part or split, {})[name] = values
  for part, columns in parts.items():
    sizes = {name: len(a) if a.ndim else 0 for name, a in columns.items()}
    if len(set(sizes.values())) != 1:
      listed = ', '.join(f'{name} {size}' for name, size in sizes.items())
      raise ValueError(
        f'{file}: arrays{f" of {part}" if part else ""} must be equally long, and'
        f' have {listed}'
      )
    label = f', {part}' if part else ''
    size = next(iter(sizes.values()))
    places = [f'{file.name}{label}, row {n}' for n in range(size)]
    try:
      table.add({k: _values(a) for k, a in columns.items()}, places, part)
    except UnicodeDecodeError as error:
      raise ValueError(
        f'{file}{label}: texts must be UTF-8, and {error.object[:20]!r} is not'
      ) from error
  if names is not None:
    listed = tuple(map(str, names.tolist()))
    table.class_names |= dict.fromkeys(table.columns, listed)


def _part_of(key: str) -> tuple[str, str]:
  """Returns the split and the column that an array's name gives.

  `x_train`, `train_images` and `test/label` name a split; `x` does not.
  """
  words = re.split(r'[\W_]+', key)
  for at in (0, -1):
    if len(words) > 1 and (split := split_name(words[at])):
      return split, '_'.join(words[1:] if at == 0 else words[:-1])
  return '', key


def _values(array: np.ndarray) -> list[Any]:
  """Returns rows: plain values, or arrays."""
  if array.ndim == 2 and array.shape[1] == 1:
    array = array[:, 0]
  if array.ndim > 1:
    return list(array)
  if array.dtype.kind == 'S':
    return [value.decode() for value in array.tolist()]
  return array.tolist()

"""Tables as lines of text: CSV, and JSON objects."""

from collections.abc import Iterator
import csv
import io
import json
import pathlib
from typing import Any

from fedjax_tune.data.own.table import Table

_DELIMITERS = ',;\t|'
_MOST_CHARACTERS = 1 << 24  # Of a field; Python's own limit is 131,072.


def read_csv(file: pathlib.Path, split: str, table: Table) -> None:
  """Adds the rows of a CSV file; its first line shows the separator.

  Raises:
    ValueError: It is empty or not UTF-8, or its first line names no columns.
  """
  csv.field_size_limit(_MOST_CHARACTERS)
  text = _decode(file)
  if not text.strip():
    raise ValueError(f'{file} is empty; its first line must name the columns')
  delimiter = max(_DELIMITERS, key=text.partition('\n')[0].count)
  # Of all that Unicode has for ends of lines, these are CSV's.
  lines = io.StringIO(text, newline='')
  reader = csv.reader(lines, delimiter=delimiter, strict=True)
  header, rows, places = None, [], []
  for number, row, fault in _csv_rows(reader):
    place = f'{file.name}:{number}'
    if fault:
      table.faults.append((place, fault))
    elif header is None:
      header = _check_header(file, row)
    elif len(row) != len(header):
      reason = f'has {len(row)} fields; must have {len(header)}'
      table.faults.append((place, reason))
    else:
      rows.append(row)
      places.append(place)
  header = header or []
  columns = zip(*rows, strict=True) if rows else ([] for _ in header)
  table.add(dict(zip(header, columns, strict=True)), places, split)


def _csv_rows(reader: Any) -> Iterator[tuple[int, list[str], str]]:
  """Yields the line on which each row begins, the row, and what is wrong."""
  while True:
    number = reader.line_num + 1
    try:
      row = next(reader)
    except StopIteration:
      return
    except csv.Error as error:
      yield number, [], f'is no row: {error}'
      continue
    if row:  # Empty lines are none.
      yield number, row, ''


def _check_header(file: pathlib.Path, names: list[str]) -> list[str]:
  names = [name.strip() for name in names]
  for name in names:
    if not name or names.count(name) > 1:
      raise ValueError(
        f'{file.name}:1: {name!r} must be the name of one column; the first line'
        f' names the columns, and is {", ".join(map(repr, names))}'
      )
  return names


def read_jsonl(file: pathlib.Path, split: str, table: Table) -> None:
  """Adds the objects of a file that has one on each line.

  Raises:
    ValueError: It is not UTF-8.
  """
  rows, places = [], []
  for number, line in enumerate(_decode(file).split('\n'), 1):
    place = f'{file.name}:{number}'
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
      table.faults.append((place, f'is not JSON: {error}'))
      continue
    if not isinstance(row, dict):
      reason = f'is {type(row).__name__}; must be an object, {{"text": ...}}'
      table.faults.append((place, reason))
      continue
    rows.append(row)
    places.append(place)
  names = dict.fromkeys(name for row in rows for name in row)
  columns = {name: [row.get(name) for row in rows] for name in names}
  table.add(columns, places, split)


def _decode(file: pathlib.Path) -> str:
  data = file.read_bytes()
  try:
    return data.decode('utf-8-sig')
  except UnicodeDecodeError as error:
    line = data.count(b'\n', 0, error.start) + 1
    raise ValueError(
      f'{file}:{line} is not UTF-8: {error.reason}, byte {error.start} of the'
      ' file'
    ) from error

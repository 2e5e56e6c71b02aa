"""The user's own tables: finds their files and their readers."""

from collections.abc import Callable, Sequence
import pathlib

from fedjax_tune.data import notes
from fedjax_tune.data.own import archives, lines
from fedjax_tune.data.own.table import Table, split_of

_ENDINGS = {
  'csv': ('.csv', '.tsv'),
  'jsonl': ('.jsonl', '.ndjson'),
  'parquet': ('.parquet',),
  'npz': ('.npz',),
}
_READERS: dict[str, Callable[[pathlib.Path, str, Table], None]] = {
  'csv': lines.read_csv,
  'jsonl': lines.read_jsonl,
  'parquet': archives.read_parquet,
  'npz': archives.read_npz,
}


def find(kind: str, path: pathlib.Path) -> list[pathlib.Path]:
  """Returns the files of a kind at a path: one file, or those of a folder.

  Raises:
    ValueError: The folder has no such file.
  """
  if path.is_file():
    return [path]
  files = sorted(
    f
    for f in path.iterdir()
    if f.suffix.lower() in _ENDINGS[kind] and not f.name.startswith('.')
  )
  if not files:
    raise ValueError(f'{path} has no file {" or ".join(_ENDINGS[kind])}')
  return files


def read(kind: str, files: Sequence[pathlib.Path]) -> Table:
  """Reads the files of a table.

  Raises:
    ValueError: A file is not of its kind, or names no split although others
      do; or there are no rows, or no line is a row.
  """
  table = Table(files[0].parent)
  # MNLI has two validation splits; the first is that of its table.
  passed = [f for f in files if 'mismatched' in f.stem]
  if passed and len(passed) < len(files):
    files = [f for f in files if f not in passed]
    table.notes.append(
      f'{passed[0].name} is not read: GLUE judges by the others'
    )
  named = {file: split_of(file.stem) for file in files}
  unnamed = [file.name for file, split in named.items() if not split]
  if unnamed and len(unnamed) < len(files):
    raise ValueError(
      f'{files[0].parent}: {unnamed[0]} does not say by its name whether it is'
      ' for train or test, as the other files do'
    )
  for file, split in named.items():
    _READERS[kind](file, split, table)
  if not table.places:
    faults = [f'{place}: {reason}' for place, reason in table.faults]
    why = f': {notes.join_first(faults, "; ")}' if faults else ''
    raise ValueError(f'{files[0]} has no rows{why}')
  return table

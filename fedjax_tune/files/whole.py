"""Files and folders that appear, or change, in one piece."""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import shutil
import uuid


@contextlib.contextmanager
def file(path: pathlib.Path, *, shared: bool = False) -> Iterator[pathlib.Path]:
  """Yields where to write a file, which is moved to its place at the end.

  Readers see the old file, or all of the new one. If the enclosed code fails,
  the old file stays. Files left by a killed process begin with a dot.

  Args:
    path: The file; missing parent folders are made.
    shared: Whether several processes may write it at the same time.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  own = f'.{uuid.uuid4().hex}' if shared else ''
  part = path.with_name(f'.{path.name}{own}.part')
  try:
    yield part
    with part.open('rb') as written:
      os.fsync(written.fileno())
    part.replace(path)
  finally:
    part.unlink(missing_ok=True)


@contextlib.contextmanager
def folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields where to write a folder, which is moved to its place at the end.

  If the folder exists already, the new files are moved into it at the end, and
  its other files stay. If the enclosed code fails, nothing changes. Files left
  by a killed process begin with a dot.

  Args:
    path: The folder; missing parent folders are made.
  """
  path = path.resolve()
  there = path.exists()
  # Inside it, as it may be a file system of its own.
  beside = path if there else path.parent
  part = beside / f'.{path.name}.{uuid.uuid4().hex}.part'
  part.mkdir(parents=True)
  try:
    yield part
    if there:
      _move_into(part, path)
    else:
      part.replace(path)
  finally:
    shutil.rmtree(part, ignore_errors=True)


def _move_into(source: pathlib.Path, target: pathlib.Path) -> None:
  """Moves the files of a folder into another, replacing equally named ones."""
  target.mkdir(exist_ok=True)
  for one in sorted(source.iterdir()):
    if one.is_dir():
      _move_into(one, target / one.name)
    else:
      one.replace(target / one.name)


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a text in one piece, see `file`."""
  with file(path) as part:
    part.write_text(text, encoding='utf-8')

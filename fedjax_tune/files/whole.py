"""Files that appear, or change, in one piece."""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import uuid


@contextlib.contextmanager
def file(path: pathlib.Path, *, shared: bool = False) -> Iterator[pathlib.Path]:
  """Yields where to write a file, which takes its place at the end.

  Whoever reads sees the old file, or all of the new one. Where the enclosed code
  fails the old one stays; what a killed process leaves begins with a dot.

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


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a text as such a file."""
  with file(path) as part:
    part.write_text(text, encoding='utf-8')

"""Keeps folders of files that can be made again below a size."""

import contextlib
import os
import pathlib
import shutil
import time
from typing import NamedTuple

# Whoever found an entry this long ago may still be about to open it.
_IN_USE_S = 3600.0


class _Entry(NamedTuple):
  used: float
  size: int
  path: pathlib.Path


def touch(path: pathlib.Path) -> None:
  """Notes that an entry was used, if that is allowed."""
  with contextlib.suppress(OSError):
    os.utime(path)


def trim(folder: pathlib.Path, most: int) -> None:
  """Deletes entries until the rest has at most a given number of bytes.

  The entries used longest ago go first. Use means reading, as far as the file
  system records it, or `touch`. Entries used within the last hour stay, however
  large they are. Several processes may trim a folder at the same time; an entry
  that one cannot delete was deleted by another.

  Args:
    folder: A folder of files and folders, each an entry; may be absent.
    most: The number of bytes.
  """
  found = []
  for path in folder.iterdir() if folder.is_dir() else ():
    with contextlib.suppress(OSError):  # Gone meanwhile.
      found.append(_look(path))
  total, now = sum(entry.size for entry in found), time.time()
  for entry in sorted(found):
    if total <= most or now - entry.used < _IN_USE_S:
      return
    if entry.path.is_dir():
      shutil.rmtree(entry.path, ignore_errors=True)
    else:
      with contextlib.suppress(OSError):
        entry.path.unlink()
    total -= entry.size


def _look(path: pathlib.Path) -> _Entry:
  state = path.stat()
  # Where the system notes no reading, making or touching counts.
  used, size = max(state.st_atime, state.st_mtime), state.st_size
  if path.is_dir():
    used, inside = state.st_mtime, [p for p in path.rglob('*') if p.is_file()]
    size = sum(p.stat().st_size for p in inside)
  return _Entry(used, size, path)

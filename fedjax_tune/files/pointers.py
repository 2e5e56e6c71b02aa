"""Pointers of Git LFS, which stand for files that a clone did not fetch."""

import pathlib

_START = b'version https://git-lfs'


def found(data: bytes) -> bool:
  """Whether a file that begins with these bytes is a pointer.

  >>> found(b'version https://git-lfs.github.com/spec/v1')
  True
  """
  return data.startswith(_START)


def check(path: pathlib.Path) -> None:
  """Raises a ValueError if a file is a pointer."""
  with path.open('rb') as file:
    if found(file.read(len(_START))):
      raise ValueError(
        f'{path} is a pointer of Git LFS; must be the file itself, which `git lfs '
        'pull` fetches.'
      )

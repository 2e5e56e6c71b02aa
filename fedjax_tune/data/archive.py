"""Members of wheels and of npm's tarballs, read by name and within bounds.

Nothing is extracted, so an archive cannot decide where a file goes. Its sha256
is compared before anything in it is parsed. The bounds are a second protection:
they hold for any archive that a pin may name.
"""

from collections.abc import Iterable
import gzip
import hashlib
import io
import os
import stat
import tarfile
from typing import Any
import zipfile
import zlib

from fedjax_tune import commands

# The largest package has 522 members and 100 MB; none shrinks to a tenth.
MAX_MEMBERS = 10_000
MAX_BYTES = 1 << 30
MAX_RATIO = 100

# What the two libraries raise for bytes that they cannot read.
_UNREADABLE = (
  zipfile.BadZipFile,
  tarfile.TarError,
  zlib.error,
  gzip.BadGzipFile,
  EOFError,
  NotImplementedError,  # A compression method that zipfile lacks.
  RuntimeError,  # A member with a password.
)


def sha256(path: str | os.PathLike) -> str:
  """Returns the hex sha256 of a file."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def verify_sha256(path: str | os.PathLike, digest: str) -> None:
  """Raises ValueError unless the file at `path` has this hex sha256."""
  with open(path, 'rb') as file:
    _verify(file, path, digest)


def read_members(
  path: str | os.PathLike, digest: str, names: Iterable[str]
) -> dict[str, bytes]:
  """Returns the contents of some members of an archive.

  Args:
    path: A zip archive (a wheel), or a gzipped tarball if it ends in .tgz.
    digest: The archive's hex sha256.
    names: The members' full names.

  Raises:
    FileNotFoundError: There is no archive.
    ValueError: The archive has another sha256, is corrupt, lacks a member or
      has it twice; or a bound is exceeded; or a member is a link or a folder.
  """
  wanted = list(names)
  read = _read_tar if os.fspath(path).endswith('.tgz') else _read_zip
  with open(path, 'rb') as file:
    _verify(file, path, digest)
    file.seek(0)
    try:
      found = read(file, set(wanted))
    except _UNREADABLE as error:
      raise ValueError(f'{path} is not an archive, or corrupt: {error}') from (
        error
      )
    except ValueError as error:
      raise ValueError(f'{path}: {error}') from error
  for name in wanted:
    if name not in found:
      raise ValueError(f'{path}: has no member {name!r}')
  return found


def _verify(
  file: io.BufferedReader, path: str | os.PathLike, digest: str
) -> None:
  found = hashlib.file_digest(file, 'sha256').hexdigest()
  if found != digest:
    raise ValueError(
      f'{path} is incomplete or corrupt: its sha256 is {found}, wanted'
      f' {digest}. Delete it and run `{commands.start_of("prepare")}` again.'
    )


def _read_zip(file: io.BufferedReader, wanted: set[str]) -> dict[str, bytes]:
  found: dict[str, bytes] = {}
  with zipfile.ZipFile(file) as archive:
    members = archive.infolist()
    _check_count(len(members))
    for member in members:
      name = member.filename
      if name not in wanted:
        continue
      # The kind of a file is in the upper half, where Unix wrote the archive.
      kind = stat.S_IFMT(member.external_attr >> 16)
      _check_kind(name, kind in (0, stat.S_IFREG) and not member.is_dir())
      _check_once(name, found)
      _check_bytes(name, member.file_size, member.compress_size)
      found[name] = archive.read(member)
  return found


def _read_tar(file: io.BufferedReader, wanted: set[str]) -> dict[str, bytes]:
  found: dict[str, bytes] = {}
  packed = os.fstat(file.fileno()).st_size
  with gzip.open(file) as plain:
    # As a stream, so that the bounded reader sees every byte once.
    bounded: Any = _Bounded(plain, packed)
    with tarfile.open(fileobj=bounded, mode='r|') as archive:
      for number, member in enumerate(archive, start=1):
        _check_count(number)
        if member.name not in wanted:
          continue
        _check_kind(member.name, member.isreg())
        _check_once(member.name, found)
        content = archive.extractfile(member)
        assert content is not None, member.name
        found[member.name] = content.read()
  return found


class _Bounded:
  """Reads an unpacked stream, up to the bound for an archive of its size."""

  def __init__(self, stream: gzip.GzipFile, packed: int) -> None:
    self._stream = stream
    self._packed = packed
    self._read = 0

  def read(self, size: int) -> bytes:
    """Reads like a file; raises a ValueError over a bound."""
    data = self._stream.read(size)
    self._read += len(data)
    _check_bytes('the tarball', self._read, self._packed)
    return data


def _check_count(count: int) -> None:
  if count > MAX_MEMBERS:
    raise ValueError(f'has more than {MAX_MEMBERS} members')


def _check_kind(name: str, is_file: bool) -> None:
  if not is_file:
    raise ValueError(f'member {name!r} must be a file, not a link or a folder')


def _check_once(name: str, found: dict[str, bytes]) -> None:
  if name in found:
    raise ValueError(f'has two members {name!r}')


def _check_bytes(name: str, size: int, packed: int) -> None:
  # A small archive may shrink further: most of it is names and zeros.
  most = min(MAX_BYTES, MAX_RATIO * packed + (1 << 20))
  if size > most:
    raise ValueError(
      f'{name!r} has {size:,} bytes or more, which {packed:,} packed bytes must'
      f' not become: at most {MAX_RATIO} times as many, and {MAX_BYTES:,}'
    )

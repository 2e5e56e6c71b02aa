"""Files and folders as a user names them: on this machine or at an address."""

from collections.abc import Callable, Iterable, Iterator
import concurrent.futures
import contextlib
import functools
import hashlib
import os
import pathlib
import re
import shutil
from typing import NamedTuple, TypeVar
import uuid

from etils import epath

from fedjax_tune import endings
from fedjax_tune.files import bounded

T = TypeVar('T')
# Copies of objects at a time; each mostly waits.
_THREADS = 16
# Of all copies: beyond it those go that were used longest ago.
_MOST_COPIED = 64 << 30


class Object(NamedTuple):
  """One object below an address.

  Attributes:
    name: Its path below the address; '' is the address itself.
    size: Bytes.
    changed: When it was written, in seconds.
  """

  name: str
  size: int
  changed: int


def is_address(given: str | os.PathLike[str]) -> bool:
  """Whether a path names something on another machine."""
  return re.match(r'[A-Za-z][\w+.-]*://', os.fspath(given)) is not None


def local(name: str, given: str | os.PathLike[str]) -> pathlib.Path:
  """Returns a path of this machine; `~` is the user's home.

  Args:
    name: The name of the field or flag, for messages.
    given: The path, which need not exist.

  Raises:
    ValueError: The path is empty, invalid, or on another machine.
  """
  text = os.fspath(given)
  if not text.strip():
    raise ValueError(f'{name}={text!r} must name a folder.')
  if '\0' in text:
    raise ValueError(f'{name}={text!r} must not have a null character.')
  if is_address(text):
    raise ValueError(
      f'{name}={text!r} must be a folder of this machine: what is there is used'
      ' in place.'
    )
  try:
    return pathlib.Path(text).expanduser()
  except RuntimeError as error:  # There is no such user.
    raise ValueError(f'{name}={text!r}: {error}') from error


def here(name: str, given: str | os.PathLike[str]) -> pathlib.Path:
  """Returns a file or folder to read, which need not exist.

  Files at an address are copied to this machine first, unless they were copied
  before. A process looks at an address once, so that a run reads what was there
  when it began. An object counts as unchanged if its size and its time, in
  whole seconds, are the same.

  Raises:
    FileNotFoundError: There is nothing at the address.
    OSError: The address cannot be reached.
    ValueError: See `local`; or no package reads such addresses.
  """
  if is_address(given):
    return _copy(name, os.fspath(given))
  return local(name, given)


def at(name: str, address: str) -> epath.Path:
  """Returns what is at an address.

  Raises:
    ValueError: The address is of no known kind.
  """
  try:
    return epath.Path(address.rstrip('/'))
  except KeyError as error:
    raise ValueError(
      f'{name}={address!r} must be on this machine, or begin with gs:// or'
      ' s3://.'
    ) from error


@contextlib.contextmanager
def reaching(name: str, address: str) -> Iterator[None]:
  """Turns the errors of a store's package into one line.

  Raises:
    ValueError: No package reads such addresses.
    OSError: Anything else is wrong; Python's own kinds of error, such as a
      FileNotFoundError, keep their type.
  """
  try:
    yield
  except ImportError as error:
    raise ValueError(
      f'{name}={address!r}: no package that is installed reads it ({error});'
      " `pip install 'fedjax-tune[gcs]'` reads gs://."
    ) from error
  except (OSError, ValueError, endings.Interrupted):
    raise
  except Exception as error:  # Each store has errors of its own.
    raise OSError(
      f'{name}={address!r} cannot be reached: {type(error).__name__}: {error}'
    ) from error


def listed(place: epath.Path) -> list[Object]:
  """Lists the objects below an address, sorted by name.

  Raises:
    ValueError: A name would lead out of a folder.
  """
  state = place.stat()
  if not state.is_directory:
    return [Object('', state.length, int(state.mtime))]
  found: list[Object] = []
  for inside in place.iterdir():
    if inside == place:
      continue  # Some make an object that stands for the folder.
    if inside.name == '..':
      raise ValueError(f'{place} has an object of the name {inside.name!r}.')
    for name, size, changed in listed(inside):
      below = str(pathlib.PurePosixPath(inside.name, name))
      found.append(Object(below, size, changed))
  return sorted(found)


def fetch(
  place: epath.Path, objects: list[Object], folder: pathlib.Path
) -> None:
  """Copies objects below an address into a folder, which may have them."""

  def copy(found: Object) -> None:
    target = folder / found.name
    target.parent.mkdir(parents=True, exist_ok=True)
    source = place / found.name if found.name else place
    source.copy(target, overwrite=True)

  run_each(copy, objects)


def run_each(do: Callable[[T], object], items: Iterable[T]) -> None:
  """Runs a function on each item, several at a time; raises the first error."""
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    for done in [pool.submit(do, item) for item in items]:
      done.result()


def cache() -> pathlib.Path:
  """Returns the folder for files that belong to no run.

  It is $FEDJAX_TUNE_DATA, or else ~/.cache/fedjax_tune.
  """
  folder = os.environ.get('FEDJAX_TUNE_DATA') or '~/.cache/fedjax_tune'
  return local('FEDJAX_TUNE_DATA', folder)


@functools.cache
def _copy(name: str, address: str) -> pathlib.Path:
  place = at(name, address)
  with reaching(name, address):
    if not place.exists():
      raise FileNotFoundError(f'{name}={address!r} does not exist.')
    objects = listed(place)
    state = hashlib.sha256(repr((address, objects)).encode()).hexdigest()
    folder = cache() / 'copies' / state[:32]
    if folder.exists():
      bounded.touch(folder)
    else:
      part = folder.with_name(f'.{uuid.uuid4().hex}.part')
      try:
        part.mkdir(parents=True)
        fetch(place, objects, part / place.name)
        # Another process may have been faster.
        with contextlib.suppress(OSError):
          part.rename(folder)
      finally:
        shutil.rmtree(part, ignore_errors=True)
      bounded.trim(folder.parent, _MOST_COPIED)
  return folder / place.name

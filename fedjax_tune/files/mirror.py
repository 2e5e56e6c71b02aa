"""A folder to write to, whose files go to an address as whole objects."""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import re
import shutil
import socket
import tempfile
import threading
import uuid

from etils import epath

from fedjax_tune import endings
from fedjax_tune.files import paths

# Of a checkpoint: it goes last, so a checkpoint that has it is complete.
SEAL = 'about.json'
_OWNER = '.owner'


class Place:
  """A folder to write to.

  Attributes:
    folder: Where it is on this machine.
    shown: The name that the user gave, for messages.
  """

  def __init__(self, folder: pathlib.Path) -> None:
    self.folder, self.shown = folder, str(folder)

  def fetch(self) -> None:
    """Copies the address's files here, if the folder stands for an address."""

  def send(self) -> None:
    """Sends changed files, if the folder stands for an address."""

  def name_of(self, path: pathlib.Path) -> str:
    """Names something in the folder as the user would."""
    return str(path).replace(str(self.folder), self.shown, 1)


class Mirror(Place):
  """A folder on this machine that stands for a folder at an address.

  Names that begin with a dot stay here.

  Guarantees:
    - An object changes in one piece, as the store guarantees.
    - Files deleted here are deleted there, if they were sent or fetched.
    - A process killed while it sends leaves each checkpoint complete, or
      without its `about.json`; incomplete ones are not fetched.
    - There is no lock. The process that comes last takes the folder over, and
      one that had it before ends when it sends next.

  Attributes:
    begun: Whether anything was sent.
  """

  def __init__(self, name: str, address: str, folder: pathlib.Path) -> None:
    super().__init__(folder)
    self.shown, self._name = address, name
    self._there: epath.Path = paths.at(name, address)
    self._me = f'process {os.getpid()} on {socket.gethostname()}'
    self._token = f'{self._me}, {uuid.uuid4().hex}\n'
    self._sent: dict[str, tuple[int, int]] = {}
    self.begun, self._turn = False, threading.Lock()

  def check_new(self) -> None:
    """Raises a FileExistsError if the address has objects."""
    with paths.reaching(self._name, self.shown):
      if self._there.exists() and self._list():
        raise FileExistsError(
          f'{self._name}={self.shown} has files; choose a new or an empty folder.'
        )

  def _list(self) -> list[paths.Object]:
    found = paths.listed(self._there)
    return [one for one in found if not _is_hidden(one.name)]

  def fetch(self) -> None:
    """Copies the objects that are there, and counts them as sent."""
    with paths.reaching(self._name, self.shown):
      if not self._there.exists():
        return
      found = self._list()
      if any(not o.name for o in found):
        raise NotADirectoryError(
          f'{self._name}={self.shown} must be a folder, and is an object.'
        )
      names = {o.name for o in found}
      whole = [o for o in found if _is_whole(o.name, names)]
      paths.fetch(self._there, whole, self.folder)
    # Pieces of a checkpoint are deleted with the next one that is sent.
    self._sent = dict.fromkeys(names, (-1, -1)) | self._here()

  def send(self) -> None:
    """Sends what has changed.

    Raises:
      StorageError: The address cannot be written, or another process writes
        there.
    """
    with (
      self._turn,
      endings.storing(self.shown),
      paths.reaching(self._name, self.shown),
    ):
      self._hold()
      here = self._here()
      changed = [n for n, state in here.items() if self._sent.get(n) != state]
      sealing = [n for n in changed if n.endswith(f'/{SEAL}')]
      for names in ([n for n in changed if n not in sealing], sealing):
        paths.run_each(self._put, names)
        self._sent |= {name: here[name] for name in names}
      # Not before: of the checkpoints that were there one must stay whole.
      gone = self._sent.keys() - here.keys()
      for name in sorted(gone, key=lambda n: not n.endswith(f'/{SEAL}')):
        (self._there / name).unlink(missing_ok=True)
        del self._sent[name]

  def _hold(self) -> None:
    """Takes the folder over at first; later checks that it is still held."""
    place = self._there / _OWNER
    if not self.begun:
      self._there.mkdir(parents=True, exist_ok=True)
      place.write_text(self._token)
      self.begun = True
    elif (owner := place.read_text()) != self._token:
      raise endings.StorageError(
        f'{self._name}={self.shown} was taken over by'
        f' {owner.partition(",")[0]}; this one ends.'
      )

  def _here(self) -> dict[str, tuple[int, int]]:
    """Returns the files of the folder, each with a mark of its changes."""
    found = {}
    for root, folders, files in os.walk(self.folder):
      folders[:] = [name for name in folders if not name.startswith('.')]
      for name in files:
        path = pathlib.Path(root, name)
        with contextlib.suppress(FileNotFoundError):  # Deleted meanwhile.
          if not name.startswith('.'):
            state = path.stat()
            key = path.relative_to(self.folder).as_posix()
            found[key] = state.st_size, state.st_mtime_ns
    return found

  def _put(self, name: str) -> None:
    source, target = self.folder / name, self._there / name
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
      epath.Path(source).copy(target, overwrite=True)
    except FileNotFoundError:
      if source.exists():  # Else it was deleted meanwhile.
        raise


@contextlib.contextmanager
def opened(
  name: str, given: str | os.PathLike[str], *, new: bool = False
) -> Iterator[Place]:
  """Yields a folder to write to.

  If it was sent once, all of it is sent again at the end.

  Args:
    name: The name of the field or flag, for messages.
    given: A folder of this machine, or an address.
    new: Refuse an address that has objects.

  Raises:
    FileExistsError: The address has objects, but should be new.
    ValueError: `given` is neither a folder nor an address.
    StorageError: The address cannot be written; files not sent stay here.
  """
  if not paths.is_address(given):
    yield Place(paths.local(name, given))
    return
  folder = pathlib.Path(tempfile.mkdtemp(prefix='fedjax_tune-'))
  kept = False
  try:
    place = Mirror(name, os.fspath(given), folder)
    if new:
      place.check_new()
    try:
      with _named(place):
        yield place
    finally:
      if place.begun:
        place.send()
  except endings.StorageError as error:
    kept = True
    raise endings.StorageError(
      f'{error} What was not sent is in {folder}.'
    ) from error
  finally:
    if not kept:
      shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _named(place: Mirror) -> Iterator[None]:
  """Makes errors name the address, not the folder that stands for it."""
  try:
    yield
  except (ValueError, OSError, RuntimeError) as error:
    if (folder := str(place.folder)) not in str(error):
      raise
    text = str(error).replace(folder, place.shown)
    raise type(error)(text) from error


def _is_hidden(name: str) -> bool:
  return any(part.startswith('.') for part in pathlib.PurePath(name).parts)


def _is_whole(name: str, names: set[str]) -> bool:
  """Whether an object belongs to no checkpoint, or to a complete one."""
  of = re.match(r'(.*/)?checkpoints/\d+/', name)
  return of is None or f'{of[0]}{SEAL}' in names

"""A run's folder: whose it is, and a lock for one writing process at a time."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import json
import os
import pathlib
import socket
from typing import IO

from fedjax_tune import config, endings
from fedjax_tune.data import json_files
from fedjax_tune.files import locks, whole
from fedjax_tune.training import snapshot
from fedjax_tune.typing import Json

_LOCK, CONFIG = '.lock', 'config.json'
# What changes nothing that is trained: a run may go on with others.
_FREE = ('writers', 'eval_start', 'clients.report', 'clients.report_steps')


class Claim:
  """A folder that this process may write to, as long as it lives.

  Attributes:
    send: Sends changed files, if the folder stands for an address.
    locked: Whether other processes are kept away; False if the file system has
      no locks.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    lock: IO[bytes],
    send: Callable[[], None],
    *,
    locked: bool = True,
  ) -> None:
    self._workdir, self._lock, self.send = workdir, lock, send
    self.locked = locked

  def check(self) -> None:
    """Raises a StorageError if the folder is gone or was replaced."""
    try:
      there = os.stat(self._workdir / _LOCK)
    except OSError as error:
      raise endings.StorageError(
        f'workdir={self._workdir} is gone ({error.strerror}); the run ends.'
      ) from error
    if not os.path.samestat(there, os.fstat(self._lock.fileno())):
      raise endings.StorageError(
        f'workdir={self._workdir} was replaced by another folder; the run ends.'
      )


@contextlib.contextmanager
def claim(
  workdir: str | os.PathLike[str], send: Callable[[], None] = lambda: None
) -> Iterator[Claim]:
  """Claims a folder for this process, and makes it if absent.

  The system releases the lock when the process ends, however it ends.

  Args:
    workdir: The folder.
    send: Kept in the claim.

  Raises:
    RuntimeError: Another process has the folder; the message says which one.
    StorageError: The folder cannot be written.
  """
  folder = pathlib.Path(workdir)
  path = folder / _LOCK
  with contextlib.ExitStack() as stack:
    with endings.storing(path):
      folder.mkdir(parents=True, exist_ok=True)
      lock = stack.enter_context(_open(path))
      locked = _take(folder, lock)
      lock.truncate(0)
      owner = f'process {os.getpid()} on {socket.gethostname()}\n'
      lock.write(owner.encode())
    yield Claim(folder, lock, send, locked=locked)


def check(
  workdir: str | os.PathLike[str],
  experiment: Mapping[str, object],
  resume: bool,
) -> None:
  """Checks that an experiment may use a folder; writes nothing.

  Args:
    workdir: Folder of the run; may be absent.
    experiment: The experiment's fields, as `dataclasses.asdict` gives them.
    resume: Continue the same experiment; only its `rounds` may have grown.

  Raises:
    NotADirectoryError, PermissionError: If the folder, or the one of its
      checkpoints, cannot be made or written.
    RuntimeError: A run writes there now.
    ValueError: If the folder belongs to another experiment, or to this one and
      `resume` is off.
  """
  workdir = pathlib.Path(workdir)
  nearest = next(
    p for p in [workdir, *workdir.absolute().parents] if p.exists()
  )
  if not nearest.is_dir():
    raise NotADirectoryError(
      f'workdir={workdir} must be a folder: {nearest} is a file.'
    )
  if not os.access(nearest, os.W_OK | os.X_OK):
    raise PermissionError(f'workdir={workdir} must be writable.')
  inside = workdir / 'checkpoints'
  if inside.exists() and not inside.is_dir():
    raise NotADirectoryError(f'{inside} must be a folder, and is a file.')
  if (workdir / _LOCK).exists():
    with _open(workdir / _LOCK) as lock:
      _take(workdir, lock)
  check_begun(workdir, experiment, resume)


def check_begun(
  workdir: str | os.PathLike[str],
  experiment: Mapping[str, object],
  resume: bool,
) -> None:
  """Checks that the run in a folder, if there is one, may continue.

  The arguments are those of `check`.

  Raises:
    ValueError: The folder belongs to another experiment, or to this one and
      `resume` is off.
  """
  workdir = pathlib.Path(workdir)
  path = workdir / CONFIG
  if path.exists():
    check_same(_read(path), experiment, resume, str(path))
  begun = path.exists() or snapshot.list_rounds(workdir / 'checkpoints')
  if begun and not resume:
    raise ValueError(
      f'workdir={workdir} already has a run: pass --resume to go on with it, or '
      'choose another workdir.'
    )


def check_same(
  there: Mapping[str, object],
  here: Mapping[str, object],
  resume: bool,
  where: str,
) -> None:
  """Checks that two experiments are the same.

  Args:
    there: The fields of the experiment in the folder. Fields that it lacks,
      because an older version wrote it, have their defaults.
    here: The fields of the experiment to run.
    resume: Let `rounds` have grown, if no learning rate depends on them.
    where: Names the first.

  Raises:
    ValueError: They differ in fields that matter for training; the message has
      a line for each field.
  """
  old = _fields(dataclasses.asdict(config.Experiment())) | _fields(there)
  new = _fields(here)
  old |= {name: new[name] for name in _FREE if name in new}
  rounds = old.get('rounds')
  # A rate that falls to 0 in the last round has been another one so far.
  grows = new.get('local.over_rounds') != 'cosine'
  if resume and grows and type(rounds) is int and new['rounds'] > rounds:
    old['rounds'] = new['rounds']
  if lines := differences(old, new):
    raise ValueError(
      f'{where} is of another experiment (--resume lets only rounds grow):\n'
      + '\n'.join(lines)
    )


def differences(
  there: Mapping[str, object], here: Mapping[str, object]
) -> list[str]:
  """Returns a line for each name whose value differs."""
  say = lambda values, name: repr(values[name]) if name in values else 'nothing'
  return [
    f'  {name}: {say(there, name)} there, {say(here, name)} here'
    for name in {**there, **here}
    if say(there, name) != say(here, name)
  ]


def write_config(
  workdir: str | os.PathLike[str], experiment: Mapping[str, object]
) -> None:
  """Writes a run's `config.json`, in one piece."""
  path = pathlib.Path(workdir) / CONFIG
  with endings.storing(path):
    whole.write_text(path, json.dumps(experiment, indent=2) + '\n')


def _open(path: pathlib.Path) -> IO[bytes]:
  # Unbuffered: nothing is left to fail when it is closed.
  return path.open('ab+', buffering=0)


def _take(workdir: pathlib.Path, lock: IO[bytes]) -> bool:
  """Locks an open file until it is closed; returns whether there are locks."""
  try:
    return locks.take(lock, wait=False)
  except BlockingIOError as error:
    lock.seek(0)
    owner = lock.read().decode().strip() or 'another process'
    raise RuntimeError(
      f'workdir={workdir} is in use by {owner}; wait for it, stop it, or choose '
      'another workdir.'
    ) from error


def _read(path: pathlib.Path) -> Json:
  """Reads an experiment's fields."""
  try:
    found = json_files.read(path)
  except ValueError as error:
    raise ValueError(f'{path} must hold an experiment: {error}.') from error
  if not isinstance(found, dict):
    raise ValueError(f'{path} must hold an experiment, not a list or a value.')
  return found


def _fields(tree: Mapping[str, object], within: str = '') -> Json:
  """Flattens nested fields to `{'lora.rank': 8}`, as JSON reads them back."""
  flat = {}
  for name, value in tree.items():
    if isinstance(value, dict):
      flat |= _fields(value, f'{within}{name}.')
    else:
      flat[within + name] = list(value) if isinstance(value, tuple) else value
  return flat

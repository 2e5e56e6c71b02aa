"""One checkpoint on disk: a folder that names its run and shows damage.

Its name is the number of finished rounds. `state` is an Orbax checkpoint of the
leaves, `metrics.jsonl` holds the rows of these rounds, and `about.json` names
the run and has a hash of each file, because Orbax restores a flipped byte as
another number.
"""

from collections.abc import Mapping
import dataclasses
import errno
import hashlib
import json
import os
import pathlib
import re
import shutil
from typing import TYPE_CHECKING

import jax
import numpy as np

from fedjax_tune.data import json_files
from fedjax_tune.files import mirror
from fedjax_tune.typing import Record

if TYPE_CHECKING:
  import orbax.checkpoint as ocp

_STATE, _ROWS, _ABOUT = 'state', 'metrics.jsonl', mirror.SEAL
# What a killed process was about to write, or to delete.
_WRITING, _OLD = '.writing-', '.old-'


class Damaged(Exception):
  """A checkpoint is not what was written; says what is wrong with it."""


@dataclasses.dataclass(frozen=True)
class Snapshot:
  """What a checkpoint holds.

  Attributes:
    rounds: Number of finished rounds.
    run: What identifies the run of this checkpoint.
    rows: Lines of `metrics.jsonl` of these rounds.
    leaves: Arrays of the state by path.
  """

  rounds: int
  run: Record
  rows: str
  leaves: Mapping[str, np.ndarray]


def write(folder: pathlib.Path, snapshot: Snapshot) -> None:
  """Writes `folder`/ROUNDS, which appears by a rename when it is complete.

  Anything already there is renamed to ROUNDS.damaged.

  Args:
    folder: The folder of all checkpoints; made if absent, but its parent must
      exist.
    snapshot: What to write.

  Raises:
    OSError: The checkpoint could not be written; then nothing has changed.
  """
  folder.mkdir(exist_ok=True)
  part = folder / f'{_WRITING}{snapshot.rounds}'
  shutil.rmtree(part, ignore_errors=True)
  part.mkdir()
  _save(part / _STATE, snapshot.leaves)
  _write_through(part / _ROWS, snapshot.rows.encode())
  about = {
    'rounds': snapshot.rounds,
    'run': snapshot.run,
    'files': {name: _hash(part / name) for name in _files(part)},
  }
  sealed = json.dumps(about | {'seal': _seal(about)}, indent=2) + '\n'
  _write_through(part / _ABOUT, sealed.encode())
  _set_aside(folder / str(snapshot.rounds))
  part.rename(folder / str(snapshot.rounds))
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def read(folder: pathlib.Path, rounds: int) -> Snapshot:
  """Reads `folder`/ROUNDS.

  Raises:
    Damaged: A part of it is missing, or is not what was written.
  """
  place = folder / str(rounds)
  try:
    about = json_files.read(place / _ABOUT)
    seal = about.pop('seal')
    kept_rounds, run, hashes = about['rounds'], about['run'], about['files']
  except OSError as error:
    raise Damaged(f'{_ABOUT}: {error.strerror}') from error
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise Damaged(f'{_ABOUT} is not what was written') from error
  if seal != _seal(about):
    raise Damaged(f'{_ABOUT} is not what was written')
  if kept_rounds != rounds:
    raise Damaged(f'it is that of round {kept_rounds}')
  try:
    for name, wanted in hashes.items():
      if _hash(place / name) != wanted:
        raise Damaged(f'{name} is not what was written')
    for name in _files(place):
      # Orbax reads every file that lies there, listed or not.
      if name != _ABOUT and name not in hashes:
        raise Damaged(f'{name} was not written with it')
    rows = (place / _ROWS).read_text()
    leaves = _restore(place / _STATE)
  except OSError as error:
    path = pathlib.Path(str(error.filename or place))
    raise Damaged(f'{path.relative_to(place)}: {error.strerror}') from error
  return Snapshot(rounds, run, rows, leaves)


def _save(place: pathlib.Path, leaves: Mapping[str, np.ndarray]) -> None:
  """Writes leaves with Orbax; all its errors are reported as disk errors."""
  size = sum(leaf.nbytes for leaf in leaves.values())
  _check_room(place, size + _LEAF_BYTES * len(leaves) + _ORBAX_BYTES)
  try:
    with _orbax() as orbax:
      orbax.save(place.absolute(), dict(leaves))
  except OSError:
    raise
  except (ValueError, RuntimeError) as error:
    full = 'No space left' in str(error)
    code = errno.ENOSPC if full else errno.EIO
    raise OSError(code, os.strerror(code), str(place)) from error


def _orbax() -> 'ocp.StandardCheckpointer':
  # Here and not above: a run reaches its first round sooner without it.
  import orbax.checkpoint as ocp

  # Of several hosts this one alone has a hand in checkpoints: all that they
  # hold is whole on each host. By default Orbax would wait for the others.
  me = jax.process_index()
  return ocp.StandardCheckpointer(
    multiprocessing_options=ocp.options.MultiprocessingOptions(
      primary_host=me,
      active_processes={me},
      barrier_sync_key_prefix='fedjax_tune',
    )
  )


# Upper bounds of what Orbax writes besides the numbers, per leaf and in all.
_LEAF_BYTES, _ORBAX_BYTES = 1024, 96 * 1024


def _check_room(place: pathlib.Path, size: int) -> None:
  """Raises an OSError if a disk has no room.

  Orbax reports a full disk from several threads, each at length.
  """
  if shutil.disk_usage(place.parent).free < size:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(place))


def _restore(place: pathlib.Path) -> dict[str, np.ndarray]:
  with _orbax() as orbax:
    found = orbax.restore(place.absolute())
  return {name: np.asarray(leaf) for name, leaf in found.items()}


def _files(place: pathlib.Path) -> list[str]:
  """Names the files of a folder and of those in it, sorted."""
  paths = (path for path in place.rglob('*') if path.is_file())
  return sorted(path.relative_to(place).as_posix() for path in paths)


def list_rounds(folder: pathlib.Path) -> list[int]:
  """Lists the checkpoints, newest first, without reading them."""
  if not folder.is_dir():
    return []
  names = [path.name for path in folder.iterdir()]
  return sorted((int(n) for n in names if _is_number(n)), reverse=True)


def remove(folder: pathlib.Path, rounds: int) -> None:
  """Deletes a checkpoint; readers at the same time see it vanish at once."""
  if not (folder / str(rounds) / _ABOUT).exists():
    return  # A folder of the user's own.
  old = folder / f'{_OLD}{rounds}'
  shutil.rmtree(old, ignore_errors=True)
  (folder / str(rounds)).rename(old)
  shutil.rmtree(old)


def remove_leftovers(folder: pathlib.Path) -> None:
  """Deletes what a killed process began to write or to delete."""
  for prefix in (_WRITING, _OLD):
    for place in folder.glob(f'{prefix}*'):
      if _is_number(place.name.removeprefix(prefix)):
        shutil.rmtree(place)


def _is_number(name: str) -> bool:
  """Whether a name is one that `write` makes: '7' and not '07'."""
  return re.fullmatch('0|[1-9][0-9]{0,17}', name) is not None


def _set_aside(place: pathlib.Path) -> None:
  name, count = place.with_name(f'{place.name}.damaged'), 1
  while name.exists():
    count += 1
    name = place.with_name(f'{place.name}.damaged{count}')
  if place.exists():
    place.rename(name)


def _write_through(path: pathlib.Path, content: bytes) -> None:
  with path.open('wb') as file:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())


def _hash(path: pathlib.Path) -> str:
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _seal(about: Mapping[str, object]) -> str:
  text = json.dumps(about, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()

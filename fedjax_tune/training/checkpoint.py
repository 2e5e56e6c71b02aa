"""Checkpoints of a run's whole state; finds the newest undamaged one."""

from collections.abc import Callable, Mapping
import concurrent.futures
import os
import pathlib
import types
from typing import NamedTuple

import jax
from jax.typing import ArrayLike
import numpy as np

from fedjax_tune import endings
from fedjax_tune.training import snapshot
from fedjax_tune.typing import Tree

_KEEP = 2


class Found(NamedTuple):
  """What `find` finds.

  Attributes:
    newest: The newest whole checkpoint, if there is one.
    damaged: What is wrong with each newer one, by its round.
  """

  newest: snapshot.Snapshot | None
  damaged: dict[int, str]

  def describe(self) -> str:
    """Says what is wrong with the damaged ones."""
    return '; '.join(f'{n}: {what}' for n, what in self.damaged.items())


def find(workdir: str | os.PathLike[str]) -> Found:
  """Reads the newest whole checkpoint of a run, and changes nothing.

  The run may be under way: a checkpoint that its process deletes meanwhile does
  not count as damaged.

  Args:
    workdir: Folder of the run.
  """
  folder = _folder(workdir)
  damaged: dict[int, str] = {}
  for rounds in snapshot.list_rounds(folder):
    try:
      return Found(snapshot.read(folder, rounds), damaged)
    except snapshot.Damaged as error:
      if not (folder / str(rounds)).exists():
        return find(workdir)
      damaged[rounds] = str(error)
  return Found(None, damaged)


def fit(kept: snapshot.Snapshot, template: Tree, *, part: bool = False) -> Tree:
  """Returns the state that a checkpoint holds.

  Args:
    kept: The checkpoint.
    template: A state with the structure, shapes and dtypes of the saved one,
      such as a fresh run's.
    part: Whether the template may lack some of what was saved.

  Raises:
    ValueError: If the checkpoint does not fit the template.
  """
  fresh = _flat(template)
  saved = {key: _form(leaf) for key, leaf in kept.leaves.items()}
  wanted = {key: _form(leaf) for key, leaf in fresh.items() if np.size(leaf)}
  for key in wanted if part else {**saved, **wanted}:
    if saved.get(key) != wanted.get(key):
      raise ValueError(
        f'Checkpoint {kept.rounds} has {key}: {saved.get(key, "nothing")}, '
        f'which must be {wanted.get(key, "nothing")}.'
      )
  return jax.tree.unflatten(
    jax.tree.structure(template),
    [_like(kept.leaves.get(key, leaf), leaf) for key, leaf in fresh.items()],
  )


def length(kept: snapshot.Snapshot, key: str) -> int:
  """Returns the length of the array that a checkpoint has at a path, or 0."""
  return len(kept.leaves.get(key, ()))


class Checkpoints:
  """Writes a run's checkpoints in the background, and keeps the newest two.

  Use it as a context manager, with the folder claimed (`workdir.claim`);
  leaving it waits for the last save.

  Guarantees:
    - What `find` and `fit` return equals what `save` was given bit for bit,
      with the template's structure and leaf types (JAX or NumPy array, or
      scalar), or is called damaged.
    - A state given to `save` may be changed or donated right after.
    - A checkpoint appears by a rename once it is complete, and older ones are
      deleted only then, so a killed process leaves the last complete one
      readable.
    - An instance deletes only what it has written.
  """

  def __init__(
    self,
    workdir: str | os.PathLike[str],
    every: int,
    run: Mapping[str, object],
    send: Callable[[], None] = lambda: None,
  ) -> None:
    """Opens `workdir`/checkpoints for writing.

    Args:
      workdir: Folder of the run.
      every: Rounds from one checkpoint to the next.
      run: What identifies the run, as JSON data; kept in each checkpoint.
      send: Called, in the background, when a checkpoint was written.

    Raises:
      ValueError: If `every` is below 1.
    """
    if every < 1:
      raise ValueError(f'checkpoint_every={every} must be at least 1.')
    self._every, self._run, self._send = every, run, send
    self._folder = _folder(workdir)
    snapshot.remove_leftovers(self._folder)
    self._pool = concurrent.futures.ThreadPoolExecutor(1)
    self._pending: concurrent.futures.Future[None] | None = None
    self._saved: int | None = None

  def save(
    self, rounds: int, state: Tree, rows: str = '', *, force: bool = False
  ) -> None:
    """Keeps the state after so many rounds, in the background.

    Args:
      rounds: Number of finished rounds; unless `force`, only multiples of
        `every` are kept.
      state: Any pytree of arrays and numbers.
      rows: The lines of metrics of these rounds.
      force: Keep it regardless, as after the last round.

    Raises:
      StorageError: The previous checkpoint could not be written.
    """
    if self._pending and self._pending.done():
      self.wait()
    if rounds == self._saved or not (force or rounds % self._every == 0):
      return
    self.wait()
    # The copy is cheap next to a round; without it, a donated buffer could be
    # overwritten before the writing thread has read it.
    leaves = {
      key: np.array(leaf, order='C')
      for key, leaf in _flat(state).items()
      if np.size(leaf)
    }
    made = snapshot.Snapshot(rounds, self._run, rows, leaves)
    self._pending = self._pool.submit(self._write, made)
    self._saved = rounds

  def wait(self) -> None:
    """Waits for the last save.

    Raises:
      StorageError: The checkpoint could not be written.
    """
    if self._pending:
      pending, self._pending = self._pending, None
      pending.result()

  def _write(self, made: snapshot.Snapshot) -> None:
    with endings.storing(self._folder / str(made.rounds)):
      snapshot.write(self._folder, made)
      found = snapshot.list_rounds(self._folder)
      older = [rounds for rounds in found if rounds < made.rounds]
      for rounds in older[_KEEP - 1 :]:
        snapshot.remove(self._folder, rounds)
    self._send()

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: types.TracebackType | None,
  ) -> None:
    self._pool.shutdown()
    # An error of the folder is not reported twice.
    if not isinstance(error, endings.StorageError):
      self.wait()


def _folder(workdir: str | os.PathLike[str]) -> pathlib.Path:
  return pathlib.Path(workdir) / 'checkpoints'


def _flat(tree: Tree) -> dict[str, Tree]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _form(leaf: ArrayLike) -> str:
  array = np.asarray(leaf)
  return f'{array.dtype}{list(array.shape)}'


def _like(value: np.ndarray, leaf: Tree) -> Tree:
  if isinstance(leaf, jax.Array):
    return jax.device_put(value, leaf.sharding)
  return value if isinstance(leaf, np.ndarray) else type(leaf)(value)

"""A run's memory: its experiment, and checkpoints of its whole state."""

from collections.abc import Mapping
import json
import os
import pathlib
import shutil
import types
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from fedjax_tune.typing import Tree

_KEEP = 2
# Orbax writes this file last.
_COMPLETE = 'commit_success.txt'


class Checkpoints:
  """Asynchronous checkpoints of a run, the newest two on disk.

  Use it as a context manager; leaving it waits for the last save.

  Guarantees:
    - What `restore` returns equals what `save` was given bit for bit, with the
      template's structure and leaf types (JAX or NumPy array, or scalar).
    - A state given to `save` may be changed or donated right after.
    - A checkpoint appears by a rename when it is complete and older ones go
      after that, so a killed process leaves the last complete one readable.
  """

  def __init__(self, workdir: str | os.PathLike[str], every: int) -> None:
    """Opens `workdir`/checkpoints.

    Args:
      workdir: Folder of the run; made if absent.
      every: Rounds from one checkpoint to the next.

    Raises:
      ValueError: If `every` is below 1.
    """
    if every < 1:
      raise ValueError(f'checkpoint_every={every} must be at least 1.')
    self._every = every
    folder = pathlib.Path(workdir).resolve() / 'checkpoints'
    # Orbax would take a cut-off copy for the newest step, and it leaves behind
    # what a killed process had begun.
    for step in folder.glob('*/'):
      if not (step / _COMPLETE).exists():
        shutil.rmtree(step)
    self._manager = ocp.CheckpointManager(
      folder, options=ocp.CheckpointManagerOptions(max_to_keep=_KEEP)
    )

  def latest_round(self) -> int | None:
    """Returns the newest checkpoint's number of finished rounds, or None."""
    return self._manager.latest_step()

  def save(self, rounds: int, state: Tree, *, force: bool = False) -> None:
    """Keeps the state after so many rounds, in the background.

    Args:
      rounds: Number of finished rounds; unless `force`, only multiples of
        `every` are kept.
      state: Any pytree of arrays and numbers.
      force: Keep it regardless, as after the last round.
    """
    if rounds == self.latest_round() or not (
      force or rounds % self._every == 0
    ):
      return
    # The copy is small beside a round; without it, a donated buffer could be
    # overwritten before the writing thread has read it.
    leaves = {k: np.array(v) for k, v in _flat(state).items() if np.size(v)}
    self._manager.save(rounds, args=ocp.args.StandardSave(leaves), force=True)

  def restore(self, template: Tree, *, part: bool = False) -> Tree:
    """Reads the newest checkpoint.

    Args:
      template: A state with the structure, shapes and dtypes of the saved one,
        such as a fresh run's.
      part: Whether the template may lack some of what was saved.

    Returns:
      The saved state.

    Raises:
      FileNotFoundError: If there is no checkpoint.
      ValueError: If the checkpoint does not fit the template.
    """
    self._manager.wait_until_finished()
    rounds = self.latest_round()
    if rounds is None:
      raise FileNotFoundError(f'No checkpoint in {self._manager.directory}.')
    fresh = _flat(template)
    leaves = self._manager.restore(rounds, args=ocp.args.StandardRestore())
    saved = {key: _form(leaf) for key, leaf in leaves.items()}
    wanted = {key: _form(leaf) for key, leaf in fresh.items() if np.size(leaf)}
    for key in wanted if part else {**saved, **wanted}:
      if saved.get(key) != wanted.get(key):
        raise ValueError(
          f'Checkpoint {rounds} in {self._manager.directory} has {key}: '
          f'{saved.get(key, "nothing")}, which must be '
          f'{wanted.get(key, "nothing")}.'
        )
    return jax.tree.unflatten(
      jax.tree.structure(template),
      [_like(leaves.get(key, leaf), leaf) for key, leaf in fresh.items()],
    )

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: types.TracebackType | None,
  ) -> None:
    del kind, error, trace
    self._manager.close()


def check_workdir(
  workdir: str | os.PathLike[str], experiment: Mapping[str, Any], resume: bool
) -> None:
  """Checks that an experiment may have a folder, and writes nothing.

  Args:
    workdir: Folder of the run; may be absent.
    experiment: The experiment's fields, as `dataclasses.asdict` gives them.
    resume: Go on with the same experiment; only its `rounds` may have grown.

  Raises:
    NotADirectoryError, PermissionError: If the folder cannot be made or
      written.
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
  path = workdir / 'config.json'
  if path.exists():
    _check_same(path, json.loads(json.dumps(experiment)), resume)


def experiment_guard(
  workdir: str | os.PathLike[str], experiment: Mapping[str, Any], resume: bool
) -> None:
  """Takes a folder for one experiment and writes its `config.json`.

  The arguments and errors are those of `check_workdir`; the folder is made if
  absent.
  """
  check_workdir(workdir, experiment, resume)
  path = pathlib.Path(workdir) / 'config.json'
  path.parent.mkdir(parents=True, exist_ok=True)
  # Renamed into place, so that a killed process leaves no half a file.
  draft = path.with_suffix('.tmp')
  draft.write_text(json.dumps(experiment, indent=2) + '\n')
  draft.replace(path)


def _check_same(path: pathlib.Path, new: dict[str, Any], resume: bool) -> None:
  try:
    old = json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(f'{path} must hold an experiment: {error}.') from error
  if not isinstance(old, dict):
    raise ValueError(f'{path} must hold an experiment, not a list or a value.')
  there, here = _fields(old), _fields(new)
  differing = {
    name: (there.get(name), here.get(name))
    for name in {**there, **here}
    if there.get(name) != here.get(name)
  }
  if resume and here['rounds'] > there.get('rounds', 0):
    differing.pop('rounds', None)
  if differing:
    raise ValueError(
      f'{path} is of another experiment (--resume lets only rounds grow):'
      + ''.join(
        f'\n  {name}: {old!r} there, {now!r} here'
        for name, (old, now) in differing.items()
      )
    )
  if not resume:
    raise ValueError(
      f'workdir={path.parent} already has this experiment: pass --resume to go '
      'on with it, or choose another workdir.'
    )


def _fields(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Flattens nested fields to `{'lora.rank': 8}`."""
  flat = {}
  for name, value in tree.items():
    if isinstance(value, dict):
      flat |= _fields(value, f'{prefix}{name}.')
    else:
      flat[prefix + name] = value
  return flat


def _flat(tree: Tree) -> dict[str, Any]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _form(leaf: Any) -> str:
  array = np.asarray(leaf)
  return f'{array.dtype}{list(array.shape)}'


def _like(value: Any, leaf: Any) -> Any:
  if isinstance(leaf, jax.Array):
    return jax.device_put(value, leaf.sharding)
  return value if isinstance(leaf, np.ndarray) else type(leaf)(value)

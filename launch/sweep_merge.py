"""Finds the runs of other sweeps, for one table and plot of all."""

from collections import Counter
from collections.abc import Sequence
import pathlib
import re
from typing import NamedTuple

from fedjax_tune.deploy import results
from fedjax_tune.files import paths

from .sweep_plan import PlannedRun


class Gathered(NamedTuple):
  """The runs that folders hold.

  Attributes:
    runs: Finished runs. If several folders have the same label, the folder's
      name is put before it.
    left_out: Why each of the other runs is left out.
  """

  runs: list[PlannedRun]
  left_out: list[str]


def gather(given: Sequence[str]) -> Gathered:
  """Finds the runs in folders of sweeps or of single runs.

  Args:
    given: The folders, in the order of the table.

  Raises:
    ValueError: A folder has no finished run, or two with the same label and
      seed.
  """
  roots = [paths.local('merge', folder) for folder in given]
  left_out: list[str] = []
  found = [(root, run) for root in roots for run in _runs(root, left_out)]
  labels = {(root, run.label) for root, run in found}
  shared = Counter(label for _, label in labels)
  runs = [
    run if shared[run.label] == 1 else _named_apart(root, run)
    for root, run in found
  ]
  twice = [name for name, n in Counter(r.name for r in runs).items() if n > 1]
  if twice:
    raise ValueError(f'merge: {", ".join(twice)} must occur only once.')
  return Gathered(runs, left_out)


def _runs(root: pathlib.Path, left_out: list[str]) -> list[PlannedRun]:
  """Reads the runs of one folder; notes those that are not finished."""
  found = {path.parent: path.parents[1].name for path in _configs(root)}
  if (root / 'config.json').exists():
    # A run of a sweep is called by its label.
    of_sweep = re.fullmatch(r'seed\d+', root.name)
    found = {root: root.resolve().parent.name if of_sweep else root.name}
  runs = []
  for folder, label in found.items():
    try:
      own = results.read(folder).experiment
    except (FileNotFoundError, ValueError) as error:
      left_out.append(str(error))
    else:
      runs.append(PlannedRun(label, own.seed, (), folder, own))
  if not runs:
    raise ValueError(
      f'merge={root} must be the folder of a sweep, with finished runs in'
      ' LABEL/seedK, or that of a run.'
    )
  return runs


def _configs(root: pathlib.Path) -> list[pathlib.Path]:
  return sorted(root.glob('*/seed*/config.json'))


def _named_apart(root: pathlib.Path, run: PlannedRun) -> PlannedRun:
  label = f'{root.resolve().name}_{run.label}'
  return PlannedRun(label, run.seed, (), run.workdir, run.experiment)

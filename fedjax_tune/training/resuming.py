"""Finds where a resumed run continues, and checks what must not change."""

import os
import pathlib

from rich import console as rich_console

from fedjax_tune.data import json_files
from fedjax_tune.files import mirror
from fedjax_tune.report import writer
from fedjax_tune.training import build, checkpoint, identity, snapshot
from fedjax_tune.training import workdir as workdirs

PARTITION = 'partition.json'


def find(
  place: mirror.Place,
  own: identity.Identity,
  console: rich_console.Console,
  inexact: bool,
) -> snapshot.Snapshot | None:
  """Returns the newest whole checkpoint of a run, or None if it has none.

  Everything that is not as the run left it is reported on the console, a line
  each.

  Args:
    place: The run's folder.
    own: The run's identity in this process.
    console: Where to report.
    inexact: Allow another machine.

  Raises:
    ValueError: No checkpoint is whole, or the newest whole one belongs to
      another run.
  """
  say = lambda text: console.print(
    text, markup=False, highlight=False, soft_wrap=True
  )
  workdir = place.shown
  found = checkpoint.find(place.folder)
  kept = found.newest
  if kept is None and found.damaged:
    raise ValueError(
      f'workdir={workdir} has no whole checkpoint ({found.describe()}); delete '
      'its folder checkpoints to start again at round 0.'
    )
  if kept is None and not (place.folder / workdirs.CONFIG).exists():
    say(f'No run in {workdir} yet: starting at round 1.')
    return None
  if kept is None:
    say(f'No checkpoint in {workdir}: the run starts from the beginning.')
    return None
  where = f'Checkpoint {kept.rounds} in {workdir}'
  identity.check(kept.run, own, where, inexact=inexact)
  if found.damaged:
    say(
      f'Damaged checkpoints in {workdir} are passed over ({found.describe()});'
      f' the run goes on after round {kept.rounds}.'
    )
  if not writer.read_text(place.folder).startswith(kept.rows):
    say(
      f'metrics.jsonl in {workdir} is not what the run wrote; its'
      f' {kept.rounds} rows are restored from the checkpoint.'
    )
  say(f'Resuming after round {kept.rounds}, from {workdir}.')
  return kept


def check_partition(
  workdir: str | os.PathLike[str], setup: build.Setup
) -> None:
  """Checks that a run's `partition.json`, if it is there, is unchanged.

  Raises:
    ValueError: It has changed.
  """
  path = pathlib.Path(workdir) / PARTITION
  if not path.exists():
    return
  try:
    there = json_files.read(path)
  except ValueError:
    there = None
  if there != identity.partition(setup):
    raise ValueError(
      f'{path} is not how the examples are divided now: it was edited, or the '
      'data changed. Delete it to have it written anew.'
    )

"""Checks which folders models may be written to."""

import pathlib

from fedjax_tune.data import json_files
from fedjax_tune.models.heads import DEPLOYED as DEPLOYED
from fedjax_tune.models.heads import EXPORTED as EXPORTED

_OURS = {DEPLOYED, EXPORTED, 'curve.json', 'box.json'}


def check(folder: pathlib.Path, form: str = '') -> None:
  """Checks that a model may be written to a folder.

  Args:
    folder: The folder; it need not exist.
    form: The format of an export, since files of two formats in one folder
      would be taken for one model.

  Raises:
    FileExistsError: The folder has files that are not from an earlier
      deployment or export, or an export in another format.
    NotADirectoryError: It is not a folder.
  """
  if not folder.exists():
    return
  if not folder.is_dir():
    raise NotADirectoryError(f'out={folder} must be a folder.')
  names = sorted(p.name for p in folder.iterdir() if p.name[0] != '.')
  if names and not set(names) & _OURS:
    raise FileExistsError(
      f'out={folder} has files of something else ({", ".join(names[:3])});'
      ' choose a new or an empty folder.'
    )
  if EXPORTED in names:
    there = json_files.read_object(folder / EXPORTED).get('format')
    if there != form:
      raise FileExistsError(
        f'out={folder} has an export of format {there!r}; choose another folder.'
      )

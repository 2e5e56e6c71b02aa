"""Keeps a run's folder apart from its data."""

import pathlib

from fedjax_tune.data.own import sets
from fedjax_tune.files import paths


def check_data(workdir: str, name: object) -> None:
  """Checks that files written to a folder would not be read as data.

  Args:
    workdir: The folder, or address, as the user named it.
    name: `data.name`, of any set.

  Raises:
    ValueError: The folder is inside a folder whose pictures or texts are data,
      or is that folder, or is a folder of tables.
  """
  kind, _, path = name.partition(':') if isinstance(name, str) else ('', '', '')
  if kind not in sets.KINDS or not path.strip():
    return
  if paths.is_address(workdir) != paths.is_address(path):
    return
  if paths.is_address(path):
    here, there = map(pathlib.PurePosixPath, (workdir, path))
  else:
    here = paths.local('workdir', workdir).resolve()
    there = paths.local('data.name', path).resolve()
  # The tables of a folder lie in it, not deeper.
  if here == there or (kind == 'folder' and there in here.parents):
    raise ValueError(
      f'workdir={workdir} must not be in data.name={name!r}: what a run writes'
      ' would be read as data. Choose a folder outside.'
    )

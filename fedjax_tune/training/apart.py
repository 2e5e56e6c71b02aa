"""A run has a folder of its own: neither its data nor other files are in it."""

import pathlib
import re

from fedjax_tune.data.own import sets
from fedjax_tune.files import paths
from fedjax_tune.training import snapshot
from fedjax_tune.training import workdir as workdirs

# What a sweep, or a start that was killed, leaves before there is a config.json;
# other things that it leaves begin with a dot.
_BEFORE = re.compile(r'log(\.\d+)?\.txt|slurm_job\.txt')


def check_data(workdir: str, name: object) -> None:
  """Checks that nothing that is written to a folder would be read as data.

  Args:
    workdir: The folder, or address, as the user named it.
    name: `data.name`, of any set.

  Raises:
    ValueError: The folder is, or lies in, one whose pictures or texts are data;
      or it is that of tables.
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


def check_empty(workdir: pathlib.Path, shown: str = '') -> None:
  """Checks that a folder without a run has no other files; it may be absent.

  Args:
    workdir: The folder.
    shown: As the user named it.

  Raises:
    FileExistsError: It has some.
  """
  if not workdir.is_dir() or snapshot.list_rounds(workdir / 'checkpoints'):
    return
  names = sorted(p.name for p in workdir.iterdir() if p.name[0] != '.')
  others = [name for name in names if not _BEFORE.fullmatch(name)]
  if others and workdirs.CONFIG not in names:
    more = ', ...' if len(others) > 3 else ''
    raise FileExistsError(
      f'workdir={shown or workdir} holds other files'
      f' ({", ".join(others[:3])}{more}) and no run; a run needs a folder of its'
      ' own.'
    )

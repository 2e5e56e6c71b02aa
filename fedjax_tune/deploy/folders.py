"""Which folders models may be written to."""

import pathlib

from fedjax_tune.models.huggingface import EXPORTED as EXPORTED

DEPLOYED = 'deploy.json'
_OURS = {DEPLOYED, EXPORTED, 'curve.json', 'box.json'}


def check(folder: pathlib.Path) -> None:
  """Checks that a model may be written to a folder.

  Raises:
    FileExistsError: It has files, but none from an earlier deployment or export.
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

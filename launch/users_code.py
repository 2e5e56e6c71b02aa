"""Finds where in the user's own code an error arose."""

import pathlib
import site
import sysconfig
import traceback

# Where there is no code of a user's own; the checkout's own folders among them.
_TREE = pathlib.Path(__file__).parents[1]
_OURS = tuple(_TREE / name for name in ('fedjax_tune', 'launch'))
_INSTALLED = tuple(
  pathlib.Path(path)
  for path in {
    *site.getsitepackages(),
    *(sysconfig.get_paths()[name] for name in ('stdlib', 'purelib', 'platlib')),
  }
)


def trace(error: BaseException, *, whole: bool = False) -> str:
  """Returns the traceback of an error from the user's first line on.

  Args:
    error: The error, with the errors that caused it.
    whole: Start where the command starts, whoever wrote the code.

  Returns:
    Lines as Python writes them, or '' if none of the user's code took part.
    Also '' for errors whose message says enough: an OSError names its file, and
    a ValueError raised by the user's own code is in the user's words.
  """
  if whole:
    return ''.join(traceback.format_exception(error))
  cause: BaseException | None = error
  while cause is not None:
    frames = traceback.extract_tb(cause.__traceback__)
    own = [i for i, frame in enumerate(frames) if _is_users(frame.filename)]
    said = isinstance(cause, ValueError) and own[-1:] == [len(frames) - 1]
    if said or isinstance(cause, OSError):
      return ''
    if own:
      listed = traceback.format_list(frames[own[0] :])
      return 'Traceback (most recent call last):\n' + ''.join(listed)
    cause = cause.__cause__
  return ''


def _is_users(file: str) -> bool:
  if file.startswith('<'):  # Such as '<frozen importlib._bootstrap>'.
    return False
  path = pathlib.Path(file)
  return not any(path.is_relative_to(part) for part in (*_OURS, *_INSTALLED))

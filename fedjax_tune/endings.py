"""How a run ends before its last round; `launch/start.py` has the statuses."""

from collections.abc import Iterator
import contextlib
import errno
import os

_FULL = (errno.ENOSPC, errno.EDQUOT)


class Diverged(RuntimeError):
  """The server's state, or the result of an evaluation, is not finite."""


class Interrupted(RuntimeError):
  """A signal asked the run to stop; its state was saved first."""


class StorageError(OSError):
  """The run's folder can no longer be written: a full disk, a lost folder."""


@contextlib.contextmanager
def storing(
  path: str | os.PathLike[str], *, only_full: bool = False
) -> Iterator[None]:
  """Turns an OSError raised inside into a one-line StorageError.

  Args:
    path: What is being written.
    only_full: Convert only errors that report a full disk; for code that also
      reads.

  Raises:
    StorageError: Something could not be written.
  """
  try:
    yield
  except StorageError:
    raise
  except OSError as error:
    full = error.errno in _FULL
    if only_full and not full:
      raise
    first = 'make room there' if full else 'mend that'
    raise StorageError(
      f'cannot write {error.filename or path}: {error.strerror or error}; '
      f'{first}, then a run goes on with --resume.'
    ) from error

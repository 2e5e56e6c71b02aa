"""Locks files, if the file system has locks."""

import errno
import fcntl
from typing import IO

# Lustre that is mounted without, NFS whose server keeps none, and the like.
_NONE = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


def take(file: IO[bytes], *, wait: bool) -> bool:
  """Locks an open file until it is closed, or the process ends however it ends.

  Args:
    file: The file.
    wait: Whether to wait for another process that has the lock.

  Returns:
    Whether it is locked; False if the file system has no locks.

  Raises:
    BlockingIOError: Another process has the lock, and `wait` is off.
  """
  try:
    fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
  except OSError as error:
    if error.errno not in _NONE:
      raise
    return False
  return True

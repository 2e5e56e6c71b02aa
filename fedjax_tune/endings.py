"""How a run ends before its last round; `launch/start.py` has the statuses."""


class Diverged(RuntimeError):
  """The server's state, or what an evaluation found, is not finite."""


class Interrupted(RuntimeError):
  """A signal asked the run to stop; its state was saved first."""


class StorageError(OSError):
  """The run's folder can no longer be written: a full disk, a lost folder."""

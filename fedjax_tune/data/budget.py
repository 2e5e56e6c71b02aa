"""What several threads may hold together."""

from collections.abc import Iterator
import contextlib
import threading


class Budget:
  """Keeps the sum of what several threads hold under a limit."""

  def __init__(self, limit: int) -> None:
    """Sets the limit, in whatever unit `hold` counts."""
    self._limit = self._free = limit
    self._changed = threading.Condition()

  @contextlib.contextmanager
  def hold(self, amount: int) -> Iterator[None]:
    """Waits until there is room; what exceeds the limit has it all."""
    amount = min(amount, self._limit)
    with self._changed:
      self._changed.wait_for(lambda: self._free >= amount)
      self._free -= amount
    try:
      yield
    finally:
      with self._changed:
        self._free += amount
        self._changed.notify_all()

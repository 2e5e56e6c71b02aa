"""Turns Ctrl-C, SIGTERM and SIGHUP into a request to stop that a loop reads."""

from collections.abc import Iterator
import contextlib
import signal
import threading
import types
from typing import Any

from fedjax_tune import endings

# A preempted machine sends SIGTERM too, and a closed terminal SIGHUP.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
  """Ends the enclosed code at a signal: at once, or when it asks.

  Use it as a context manager. Handlers are installed only in the main thread
  and not for signals that are ignored (nohup), and are put back after.

  Guarantees:
    - Outside `patient`, a signal ends the enclosed code at once, with
      `endings.Interrupted`.
    - Inside it, the first signal only sets `asked`; a second one ends the code.
    - A signal lost outside, in code that drops exceptions (such as a callback
      of the garbage collector), ends the code at the entry to `patient`.

  Attributes:
    asked: Name of the signal that came, or ''.
  """

  def __init__(self) -> None:
    self.asked = ''
    self._patient = False
    self._before: dict[signal.Signals, Any] = {}

  @contextlib.contextmanager
  def patient(self) -> Iterator[None]:
    """Leaves it to the enclosed code to look at `asked` and to end."""
    if self.asked:
      raise KeyboardInterrupt
    self._patient = True
    try:
      yield
    finally:
      self._patient = False

  def __enter__(self) -> 'Interrupts':
    if threading.current_thread() is threading.main_thread():
      for number in _SIGNALS:
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
          self._before[number] = signal.signal(number, self._handle)
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: types.TracebackType | None,
  ) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)
    if isinstance(error, KeyboardInterrupt):
      raise endings.Interrupted(
        f'ended at once by {self.asked or "Ctrl-C"}; a run that has begun goes'
        ' on from its last checkpoint with --resume.'
      ) from None

  def _handle(self, number: int, frame: types.FrameType | None) -> None:
    del frame
    again, self.asked = bool(self.asked), _name(number)
    if again or not self._patient:
      # Not an Exception, which the enclosed code might catch.
      raise KeyboardInterrupt


def _name(number: int) -> str:
  return 'Ctrl-C' if number == signal.SIGINT else signal.Signals(number).name

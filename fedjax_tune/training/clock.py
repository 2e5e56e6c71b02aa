"""Where the time of a run goes: seconds by section, in each row of metrics.

A row has the seconds since the row before it. So the times of several processes
of a run add up, and rounds that are lost and trained again count once.
"""

from collections.abc import Callable, Iterable, Iterator
import contextlib
import threading
import time
from types import TracebackType
from typing import TypeVar

from jax import monitoring

from fedjax_tune.typing import Record

T = TypeVar('T')

# What happens in each section, by the name that rows and summaries have.
_DOING = {
  'training': 'training',
  'evaluation': 'evaluation',
  'compile': 'compiling',
  'data': 'waiting for data',
  'checkpoint': 'checkpoints',
  'other': 'other',
}
_COMPILED = '/jax/core/compile/backend_compile_duration'


class Clock:
  """Measures the seconds that each section of a run takes.

  Example:
    with Clock() as clock:
      with clock.section('evaluation'):
        ...
      row |= clock.lap()

  Guarantees:
    - The sections of a lap sum to its seconds. A section inside another counts
      for itself only, and 'other' is the time outside all sections.
    - Programs that XLA compiles in this thread count as 'compile' wherever
      that happens.
    - Nothing waits for the device.
  """

  def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
    """Starts the first lap.

    Args:
      now: Tells the time in seconds.
    """
    self._now, self._began = now, now()
    self._seconds: dict[str, float] = {}
    self._thread = threading.get_ident()

  def __enter__(self) -> 'Clock':
    monitoring.register_event_duration_secs_listener(self._heard)
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    monitoring.unregister_event_duration_listener(self._heard)

  @contextlib.contextmanager
  def section(self, name: str) -> Iterator[None]:
    """Counts the time inside, except in inner sections, as one of `_DOING`."""
    begin, before = self._now(), self._total()
    try:
      yield
    finally:
      self._add(name, self._now() - begin - (self._total() - before))

  def waits(self, items: Iterable[T]) -> Iterator[T]:
    """Yields items, and counts the waiting for each as 'data'."""
    left = iter(items)
    while True:
      with self.section('data'):
        found = next(left, _END)
      if found is _END:
        return
      yield found  # pyright: ignore[reportReturnType]

  def lap(self) -> Record:
    """Returns `time/SECTION_s` of every section, and starts a new lap."""
    end = self._now()
    rest = max(0.0, end - self._began - self._total())
    lap = dict.fromkeys(_DOING, 0.0) | self._seconds | {'other': rest}
    self._began, self._seconds = end, {}
    return {_column(name): seconds for name, seconds in lap.items()}

  def _add(self, name: str, seconds: float) -> None:
    self._seconds[name] = self._seconds.get(name, 0.0) + seconds

  def _total(self) -> float:
    return sum(self._seconds.values())

  def _heard(self, event: str, duration_secs: float, **_: str | int) -> None:
    if event == _COMPILED and threading.get_ident() == self._thread:
      self._add('compile', duration_secs)


_END = object()


def _column(name: str) -> str:
  return f'time/{name}_s'


def shares(rows: Iterable[Record]) -> tuple[float, dict[str, float]]:
  """Adds up where the time went.

  Args:
    rows: The rows of the whole run; those without times add none.

  Returns:
    All seconds until the last row was written, and the share of each section
    that occurred; no shares if no row has times.
  """
  spent = dict.fromkeys(_DOING, 0.0)
  for row in rows:
    for name in spent:
      spent[name] += row.get(_column(name), 0.0)
  total = sum(spent.values())
  return total, {name: s / total for name, s in spent.items() if s}


def describe(shares: dict[str, float]) -> str:
  """Says where the time went, most first: 'training 71 %, other 3 %'."""
  ranked = sorted(shares, key=lambda name: (name == 'other', -shares[name]))
  percent = {name: round(100 * shares[name]) for name in ranked}
  return ', '.join(f'{_DOING[n]} {p} %' for n, p in percent.items() if p)

"""What a run shows while it works: a bar of its rounds, and long waits."""

import collections
from collections.abc import Iterable, Iterator, Mapping, Sequence
import contextlib
import datetime
import math
from types import TracebackType

from rich import console as rich_console
from rich import progress as rich_progress
from rich import text

# Without a terminal: seconds between lines, and lines per run at least.
_LINE_EVERY_S = 10.0
_MIN_LINES = 10
# Clients that a line names at most.
_MAX_IDS = 8


class _Bar(rich_progress.Progress):
  """A bar with a quiet second line for the numbers of the last round."""

  status = ''

  def get_renderables(self) -> Iterable[rich_console.RenderableType]:
    yield self.make_tasks_table(self.tasks)
    if self.status:
      yield text.Text('  ' + self.status, style='dim', no_wrap=True)


class RoundProgress:
  """Shows round, loss, score, client-steps/s, time gone and time left.

  On a terminal this is a live bar with one line of numbers under it. Elsewhere
  (a log file, a pipe) it is one plain line about every ten seconds, and at
  least ten lines per run, or one per round if there are fewer rounds.

  Example:
    with RoundProgress(100, label='fedra seed 0') as progress:
      for rnd in range(100):
        ...
        progress.advance(loss=loss, client_steps_per_s=rate)
  """

  def __init__(
    self,
    num_rounds: int,
    start_round: int = 0,
    label: str = '',
    console: rich_console.Console | None = None,
    metric: str = 'accuracy',
  ) -> None:
    """Prepares the bar; nothing shows before the context is entered.

    Args:
      num_rounds: Rounds of the whole run.
      start_round: Rounds that are done already, when a run is resumed.
      label: What is running, shown in front.
      console: Where to draw; standard output by default.
      metric: What evaluations measure.

    Raises:
      ValueError: If start_round does not lie in [0, num_rounds].
    """
    if not 0 <= start_round <= num_rounds:
      raise ValueError(
        f'start_round={start_round} must lie in [0, num_rounds={num_rounds}].'
      )
    self._console = console or rich_console.Console()
    self._live = self._console.is_interactive
    self._bar = _Bar(
      rich_progress.TextColumn('[bold]{task.description}'),
      rich_progress.BarColumn(bar_width=None),
      rich_progress.MofNCompleteColumn(),
      rich_progress.TimeElapsedColumn(),
      rich_progress.TimeRemainingColumn(),
      rich_progress.TextColumn('left', style='progress.remaining'),
      console=self._console,
      expand=True,
      # Rounds take seconds, and those that evaluate take longer: average.
      speed_estimate_period=600.0,
      disable=not self._live,
    )
    self._label, self._metric = label, metric
    self._num_rounds = num_rounds
    self._start_round = start_round
    self._score: float | None = None
    self._printed_at: float | None = None
    # How often each client was rejected since the last line.
    self._rejected: collections.Counter[int] = collections.Counter()

  def __enter__(self) -> 'RoundProgress':
    self._task_id = self._bar.add_task(
      self._label, total=self._num_rounds, completed=self._start_round
    )
    self._bar.start()
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    self._bar.stop()

  def advance(
    self,
    *,
    loss: float,
    client_steps_per_s: float,
    score: float | None = None,
    rejected: Sequence[int] = (),
  ) -> None:
    """Counts one finished round.

    Args:
      loss: Mean training loss of the round; NaN if no client counts.
      client_steps_per_s: Local steps of all clients per second.
      score: Fraction of 1 if the round was evaluated; the last one given stays
        on display.
      rejected: The clients whose numbers were not finite. Without a terminal,
        a line names all since the previous one.
    """
    if score is not None:
      self._score = score
    parts = [f'loss {loss:.4f}' if math.isfinite(loss) else 'loss -']
    if self._score is not None:
      parts.append(f'{self._metric} {self._score:.1%}')
    parts.append(f'{client_steps_per_s:.1f} client-steps/s')
    self._rejected.update(rejected)
    if self._rejected:
      parts.append(f'rejected {_ids(self._rejected)}')
    self._bar.status = '   '.join(parts)
    self._bar.advance(self._task_id)
    if self._live:
      self._rejected.clear()
    else:
      self._print_line()

  def _print_line(self) -> None:
    task = self._bar.tasks[0]
    done, total = round(task.completed), self._num_rounds
    tenth = done * _MIN_LINES // total > (done - 1) * _MIN_LINES // total
    now = self._console.get_time()
    recent = (
      self._printed_at is not None and now - self._printed_at < _LINE_EVERY_S
    )
    if recent and not tenth:
      return
    self._printed_at = now
    self._rejected.clear()
    head = f'{self._label}  ' if self._label else ''
    line = f'{head}round {done}/{total}   {self._bar.status}'
    line += f'   {_clock(task.elapsed)} elapsed'
    if done < total and task.time_remaining is not None:
      line += f', {_clock(task.time_remaining)} left'
    self._console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def waiting(console: rich_console.Console, what: str) -> Iterator[None]:
  """Says what takes a while: a spinner on a terminal, elsewhere a line."""
  if console.is_interactive:
    with console.status(what):
      yield
  else:
    console.print(f'{what} ...', highlight=False, soft_wrap=True)
    yield


def _ids(counts: Mapping[int, int]) -> str:
  """Names clients: 'client 3', or 'clients 3, 7 (5 times)'."""
  shown = [str(client) for client in sorted(counts)[:_MAX_IDS]]
  more = ', ...' if len(counts) > len(shown) else ''
  times, some = sum(counts.values()), 's' if len(counts) > 1 else ''
  often = f' ({times} times)' if times > len(counts) else ''
  return f'client{some} {", ".join(shown)}{more}{often}'


def _clock(seconds: float | int | None) -> str:
  return str(datetime.timedelta(seconds=int(seconds or 0)))

"""The results of a run so far: a table, and figures where they are cheap.

A run that is under way, or was killed, has both; `summary.py` is for finished
runs.
"""

from collections.abc import Callable, Sequence
import pathlib
import time

from fedjax_tune import config, endings
from fedjax_tune.engine import personal
from fedjax_tune.report import tables
from fedjax_tune.report import writer as reporting
from fedjax_tune.typing import Record

TABLE = 'accuracy.md'
# Of a run's time that figures may take before its end, at most.
_SHARE = 0.01
# What the first drawing is taken to cost, with the import of Matplotlib.
_FIRST_S = 1.0


class Interim:
  """Writes the results of a run so far, each time that it is evaluated.

  Guarantees:
    - `accuracy.md` has every evaluation so far.
    - Figures that are drawn before the end take at most a hundredth of the
      run's time: a run of a minute has none before its end, a run of hours has
      new ones every minute or so.
  """

  def __init__(
    self,
    workdir: str,
    experiment: config.Experiment,
    rows: str,
    metric: str,
    draw: Callable[[], None],
    now: Callable[[], float] = time.perf_counter,
    start: Sequence[Record] = (),
  ) -> None:
    """Starts with the rounds that are done.

    Args:
      workdir: The run's folder.
      experiment: The run's experiment.
      rows: The lines of these rounds, as a checkpoint keeps them.
      metric: What a score is called.
      draw: Draws the figures from the folder.
      now: Tells the time in seconds.
      start: The evaluation before these rounds, if there is one: a row of round
        -1.
    """
    self._path = pathlib.Path(workdir) / TABLE
    self._title = f'{experiment.method} seed {experiment.seed}'
    self._last = experiment.rounds
    found = [*start, *reporting.parse(rows)]
    self._evaluations = [row for row in found if _is_evaluated(row)]
    self._metric, self._draw, self._now = metric, draw, now
    self._began, self._spent, self._cost = now(), 0.0, _FIRST_S
    self._tell()

  def write(self, rnd: int, metrics: Record, /) -> None:
    """Adds the row of a round, which `metrics.jsonl` has already.

    Raises:
      StorageError: The folder cannot be written.
    """
    if not _is_evaluated(metrics):
      return
    self._evaluations.append({'round': rnd, **metrics})
    self._tell()
    allowed = _SHARE * (self._now() - self._began)
    if self._spent + self._cost <= allowed:
      self.draw()

  def _tell(self) -> None:
    """Writes the table, if there is an evaluation."""
    if rows := self._evaluations:
      done = rows[-1]['round'] + 1
      title = f'{self._title}, {done} of {self._last} rounds'
      text = f'{title}\n\n{_table(rows, self._metric)}'
      if f'eval/{personal.WORST}/accuracy' in rows[-1]:
        text += (
          f"\nThe {self._metric} is the mean over clients, each one's own model on"
          ' data like its own.\n'
        )
      reporting.write_text(self._path, text)

  def draw(self) -> None:
    """Draws the figures now, if any round has been evaluated.

    Raises:
      StorageError: The folder cannot be written.
    """
    if not self._evaluations or self._evaluations[-1]['round'] < 0:
      return
    begin = self._now()
    with endings.storing(self._path):
      self._draw()
    self._cost = self._now() - begin
    self._spent += self._cost


def _is_evaluated(row: Record) -> bool:
  return 'eval/accuracy' in row


def _table(rows: list[Record], metric: str) -> str:
  """Returns the evaluations of a run as a Markdown table."""
  scores = {
    'eval/accuracy': f'{metric} %',
    'validation/accuracy': 'validation %',
  }
  prefix = 'eval/accuracy/'
  domains = [name for name in rows[0] if name.startswith(prefix)]
  if len(domains) > 1:  # Else it is the mean.
    scores |= {name: name.removeprefix(prefix) for name in domains}
  scores = {name: title for name, title in scores.items() if name in rows[0]}
  header = ['round', *scores.values(), 'train loss', 'up', 'down', 'training']
  percent = lambda value: '-' if value is None else f'{100 * value:.1f}'
  number = lambda value: '-' if value is None else tables.digits(value)
  return tables.markdown(
    header,
    [
      [
        str(row['round'] + 1),
        *(percent(row.get(name)) for name in scores),
        number(row.get('train/loss')),
        # Before the first round nothing is spent.
        tables.human_bytes(row.get('cost/uplink_bytes', 0)),
        tables.human_bytes(row.get('cost/downlink_bytes', 0)),
        tables.human_flops(row.get('cost/train_flops', 0)),
      ]
      for row in rows
    ],
  )

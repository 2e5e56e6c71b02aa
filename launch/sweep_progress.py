"""Shows the progress of a sweep, and of each run that is under way."""

import json
import pathlib
from types import TracebackType
from typing import Self

from rich import console as rich_console
from rich import progress as rich_progress

from fedjax_tune.report import tables

# Lines of a failed run's log that are shown.
_TAIL = 15


class SweepProgress:
  """A bar for the sweep, with time left, and one for each current run.

  On a terminal the bars are live; elsewhere runs are announced line by line.
  """

  def __init__(
    self, num_runs: int, num_done: int, console: rich_console.Console
  ) -> None:
    self._console = console
    self._num_done = num_done
    self._current: dict[str, tuple[pathlib.Path, rich_progress.TaskID]] = {}
    self._bars = rich_progress.Progress(
      rich_progress.TextColumn('{task.description}'),
      rich_progress.BarColumn(bar_width=None),
      rich_progress.TextColumn('{task.fields[count]}'),
      rich_progress.TimeElapsedColumn(),
      rich_progress.TimeRemainingColumn(),
      rich_progress.TextColumn('left', style='progress.remaining'),
      console=console,
      expand=True,
      speed_estimate_period=3600.0,
      disable=not console.is_interactive,
    )
    self._all = self._bars.add_task('[bold]sweep', total=num_runs, count='')

  def __enter__(self) -> Self:
    self.refresh()
    self._bars.start()
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    self._bars.stop()

  def start(self, name: str, workdir: pathlib.Path) -> None:
    """Adds a run that has begun."""
    self._current[name] = (
      workdir,
      self._bars.add_task(name, total=None, count=''),
    )
    if not self._console.is_interactive:
      self._say(f'{name} started')

  def refresh(self) -> None:
    """Reads from the runs' folders how many rounds are done."""
    parts = 0.0
    for workdir, task in self._current.values():
      done, total = _rounds(workdir)
      parts += done / total if total else 0.0
      count = f'{done}/{total}' if total else ''
      self._bars.update(task, completed=done, total=total, count=count)
    total = self._bars.tasks[0].total
    self._bars.update(
      self._all,
      completed=self._num_done + parts,
      count=f'{self._num_done}/{total:.0f}',
    )

  def finish(self, name: str) -> None:
    """Removes a run that has succeeded, and shows its score."""
    workdir, _ = self._current[name]
    summary = json.loads((workdir / 'summary.json').read_text())
    self._remove(name)
    accuracy = summary['accuracy']
    metric = tables.measured([summary])
    text = f'no {metric}' if accuracy is None else f'{metric} {accuracy:.1%}'
    self._say(f'{name} finished: {text}{self._left()}')

  def stop(self, name: str) -> None:
    """Removes a run that was interrupted."""
    self._remove(name)
    self._say(f'{name} stopped; what it has done is saved')

  def fail(
    self, name: str, code: int, log: pathlib.Path, problem: str = ''
  ) -> None:
    """Removes a run that has failed, and shows the end of its log."""
    self._remove(name)
    if problem:
      self._say(f'{name} was stopped: {problem}', 'bold red')
      return
    tail = log.read_text(errors='replace').splitlines()[-_TAIL:]
    self._say(f'{name} failed with exit code {code}; {log} ends:', 'bold red')
    for line in tail:
      self._say(f'  {line}', 'dim')

  def _remove(self, name: str) -> None:
    _, task = self._current.pop(name)
    self._bars.remove_task(task)
    self._num_done += 1
    self.refresh()

  def _left(self) -> str:
    sweep = self._bars.tasks[0]
    if sweep.time_remaining is None or sweep.finished:
      return ''
    return f' ({self._num_done} of {sweep.total:.0f}; about ' + (
      f'{max(1, round(sweep.time_remaining / 60))} min left)'
    )

  def _say(self, text: str, style: str = '') -> None:
    self._console.print(
      text, style=style, markup=False, highlight=False, soft_wrap=True
    )


def _rounds(workdir: pathlib.Path) -> tuple[int, int | None]:
  """Rounds done, and in all as soon as the run has written its config."""
  try:
    total = json.loads((workdir / 'config.json').read_text())['rounds']
    with (workdir / 'metrics.jsonl').open('rb') as file:
      return sum(1 for _ in file), total
  except (OSError, ValueError, LookupError, TypeError):
    return 0, None  # Not there yet, or damaged.

"""Metrics on disk: one JSON line per round, and TensorBoard events.

Names are `group/what_unit`. Every round a run writes `train/loss`,
`time/client_steps_per_s`, `time/round_s`, the running sums `cost/uplink_bytes`,
`cost/downlink_bytes`, `cost/train_flops` and `time/simulated_s` (on the
clients' devices, if they are given), and `coverage/layers` (owners of each
layer). If the round has an evaluation, it also writes `eval/accuracy` (mean
over domains) and `eval/accuracy/<domain>`, and in the same way
`validation/accuracy` if there is a validation split. The seconds since the row
before are divided into `time/training_s`, `time/evaluation_s`,
`time/compile_s`, `time/data_s` (waiting for data), `time/checkpoint_s` and
`time/other_s`. `train/clients` is how many of a round's clients count. Those
whose numbers are not finite enter no sum and no mean: `train/rejected` is their
number, and `train/rejected_clients` their ids.
"""

from collections.abc import Mapping
import contextlib
import json
import math
import os
import pathlib
from types import TracebackType

import numpy as np

from fedjax_tune import endings
from fedjax_tune.files import whole
from fedjax_tune.report import tensorboard
from fedjax_tune.typing import Record

_FILE = 'metrics.jsonl'
# What an evaluation before the first round found.
START = 'start.json'


class Rows:
  """Keeps the lines of a run's metrics, and writes nothing.

  Attributes:
    rows: The lines so far.
  """

  def __init__(self, rows: str = '') -> None:
    self.rows = rows

  def write(self, rnd: int, metrics: Record) -> None:
    """Appends one round.

    Args:
      rnd: The round, counted from 0.
      metrics: Numbers or arrays by name.
    """
    self.rows += _line(rnd, metrics)


class MetricsWriter(Rows):
  """Writes `metrics.jsonl` and TensorBoard events into a run's folder.

  Guarantees:
    - A line and its scalars are on their way to the disk before `write`
      returns.
    - Every line is valid JSON; a number that is not finite becomes null.
    - Opened with the rows of k rounds, the files hold these and nothing else.
      So the files of a resumed run equal those of an uninterrupted one, except
      for clock readings, and each scalar is there once.
  """

  def __init__(self, workdir: str | os.PathLike[str], rows: str = '') -> None:
    """Opens the folder's metrics for writing.

    Args:
      workdir: The run's folder; made if it is not there.
      rows: The lines of the rounds that are done, as a checkpoint keeps them.

    Raises:
      StorageError: The folder cannot be written.
    """
    super().__init__(rows)
    self._path = pathlib.Path(workdir) / _FILE
    write_text(self._path, rows)
    with endings.storing(self._path):
      self._file = self._path.open('a', encoding='utf-8')
    with endings.storing(self._path.parent / 'tensorboard'):
      self._board = tensorboard.Board(self._path.parent / 'tensorboard')
      for line in rows.splitlines():
        metrics = json.loads(line)
        self._board.write(metrics.pop('round'), metrics)
      self._board.flush()

  def __enter__(self) -> 'MetricsWriter':
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    # What a full disk did not take makes closing fail again.
    quietly = contextlib.suppress(OSError) if error else self._storing()
    with quietly, contextlib.closing(self._file):
      self._board.close()

  def write(self, rnd: int, metrics: Record) -> None:
    """Appends one round.

    Args:
      rnd: The round, counted from 0.
      metrics: Numbers or arrays by name; arrays stay out of TensorBoard.

    Raises:
      StorageError: The files could not be written, or `metrics.jsonl` is gone.
    """
    with self._storing():
      self._file.write(_line(rnd, metrics))
      self._file.flush()
      self._check_there()
      self._board.write(rnd, metrics)
      self._board.flush()
    super().write(rnd, metrics)

  def _check_there(self) -> None:
    there, mine = os.stat(self._path), os.fstat(self._file.fileno())
    if not os.path.samestat(there, mine):
      raise OSError('it was replaced by another file')

  def _storing(self) -> contextlib.AbstractContextManager[None]:
    return endings.storing(self._path)


def read_metrics(workdir: str | os.PathLike[str]) -> list[Record]:
  """Reads back what a run wrote, one dict per round.

  Args:
    workdir: The run's folder.

  Returns:
    The rounds in order; a last line torn by an interruption is left out.

  Raises:
    FileNotFoundError: If there is no `metrics.jsonl`.
    ValueError: If a line before the last one is not JSON.
  """
  path = pathlib.Path(workdir) / _FILE
  if not path.exists():
    raise FileNotFoundError(f'workdir={str(workdir)!r} holds no {_FILE}.')
  return _read(path)


def read_start(workdir: str | os.PathLike[str]) -> list[Record]:
  """Reads the evaluation before the first round, as a row of round -1.

  [] if there was none.
  """
  path = pathlib.Path(workdir) / START
  if not path.exists():
    return []
  return [{'round': -1, **json.loads(path.read_text(encoding='utf-8'))}]


def read_text(workdir: str | os.PathLike[str]) -> str:
  """Returns the text of a run's `metrics.jsonl`; '' if there is none."""
  path = pathlib.Path(workdir) / _FILE
  if not path.exists():
    return ''
  # errors: a torn line may end inside a character.
  return path.read_text(encoding='utf-8', errors='replace')


def parse(text: str) -> list[Record]:
  """Returns the rounds in the whole lines of `metrics.jsonl`."""
  return [json.loads(line) for line in text.splitlines()]


def write_json(path: str | os.PathLike[str], obj: object) -> None:
  """Writes readable JSON in one piece: the old file, or all of the new one.

  Args:
    path: The file; missing parent folders are made.
    obj: Plain Python and NumPy data; numbers not finite become null.
  """
  write_text(path, _dumps(obj, indent=2) + '\n')


def write_text(path: str | os.PathLike[str], text: str) -> None:
  """Writes text in one piece: the old file, or all of the new one.

  Args:
    path: The file; missing parent folders are made.
    text: Its new content.

  Raises:
    StorageError: The file could not be written.
  """
  with endings.storing(path):
    whole.write_text(pathlib.Path(path), text)


def _read(path: pathlib.Path) -> list[Record]:
  """Reads the whole lines of a metrics file."""
  lines = read_text(path.parent).splitlines()
  rows = []
  for number, line in enumerate(lines, 1):
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError as error:
      if number < len(lines):
        raise ValueError(f'{path}, line {number}, is not JSON.') from error
  return rows


def _line(rnd: int, metrics: Record) -> str:
  return _dumps({'round': rnd, **metrics}) + '\n'


def _dumps(obj: object, indent: int | None = None) -> str:
  return json.dumps(_plain(obj), indent=indent, allow_nan=False)


def _plain(obj: object) -> object:
  """Turns NumPy data into Python's, and numbers not finite into None."""
  if isinstance(obj, Mapping):
    return {str(key): _plain(value) for key, value in obj.items()}
  if isinstance(obj, list | tuple):
    return [_plain(value) for value in obj]
  if isinstance(obj, np.ndarray | np.generic) or hasattr(obj, '__array__'):
    return _plain(np.asarray(obj).tolist())
  if isinstance(obj, float) and not math.isfinite(obj):
    return None
  return obj

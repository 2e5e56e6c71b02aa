"""Metrics on disk: one JSON line a round, and TensorBoard beside it.

Names are `group/what_unit`. A run writes, every round, `train/loss`,
`time/client_steps_per_s`, `time/round_s`, the running sums
`cost/uplink_bytes`, `cost/downlink_bytes`, `cost/train_flops` and
`time/simulated_s` (on the clients' devices, if they are given), and
`coverage/layers` (owners of each layer); where it evaluates also
`eval/accuracy` (mean over domains) and `eval/accuracy/<domain>`.
"""

from collections.abc import Mapping
import json
import math
import os
import pathlib
from types import TracebackType
from typing import Any

import numpy as np
import tensorboardX

_FILE = 'metrics.jsonl'


class MetricsWriter:
  """Writes `metrics.jsonl` and TensorBoard events into a run's folder.

  Guarantees:
    - A line is on its way to the disk before `write` returns.
    - Every line is valid JSON; a number that is not finite becomes null.
    - Opened with start_round=k, only the lines of rounds below k stay, so a
      resumed run's file equals the uninterrupted one's, clock readings aside.
  """

  def __init__(
    self, workdir: str | os.PathLike[str], start_round: int = 0
  ) -> None:
    """Opens the folder's metrics for writing from `start_round` on.

    Args:
      workdir: The run's folder; made if it is not there.
      start_round: The first round that will be written.
    """
    path = pathlib.Path(workdir) / _FILE
    kept = [line for line, m in _read(path) if m['round'] < start_round]
    write_text(path, ''.join(kept))
    self._file = path.open('a', encoding='utf-8')
    # purge_step hides events of an earlier, longer attempt.
    self._board = tensorboardX.SummaryWriter(
      str(path.parent / 'tensorboard'), purge_step=start_round
    )

  def __enter__(self) -> 'MetricsWriter':
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    self._file.close()
    self._board.close()

  def write(self, rnd: int, metrics: Mapping[str, Any]) -> None:
    """Appends one round.

    Args:
      rnd: The round, counted from 0.
      metrics: Numbers or arrays by name; arrays stay out of TensorBoard.
    """
    self._file.write(_dumps({'round': rnd, **metrics}) + '\n')
    self._file.flush()
    for name, value in metrics.items():
      if np.ndim(value) == 0:
        self._board.add_scalar(name, float(value), rnd)


def read_metrics(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """Reads back what a run wrote, one dict a round.

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
  return [metrics for _, metrics in _read(path)]


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
  """Writes readable JSON in one piece: the old file, or all of the new one.

  Args:
    path: The file; missing parent folders are made.
    obj: Plain Python and NumPy data; numbers not finite become null.
  """
  write_text(path, _dumps(obj, indent=2) + '\n')


def write_text(path: str | os.PathLike[str], text: str) -> None:
  """Writes text in one piece: the old file stays, or all of the new is there.

  Args:
    path: The file; missing parent folders are made.
    text: What it shall hold.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_name(path.name + '.part')
  with part.open('w', encoding='utf-8') as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  part.replace(path)


def _read(path: pathlib.Path) -> list[tuple[str, dict[str, Any]]]:
  """The whole lines of a metrics file, as text and as data."""
  if not path.exists():
    return []
  # errors: a torn line may end inside a character.
  text = path.read_text(encoding='utf-8', errors='replace')
  lines = text.splitlines(keepends=True)
  rows = []
  for number, line in enumerate(lines, 1):
    try:
      rows.append((line.rstrip('\n') + '\n', json.loads(line)))
    except json.JSONDecodeError as error:
      if number < len(lines):
        raise ValueError(f'{path}, line {number}, is not JSON.') from error
  return rows


def _dumps(obj: Any, indent: int | None = None) -> str:
  return json.dumps(_plain(obj), indent=indent, allow_nan=False)


def _plain(obj: Any) -> Any:
  """Turns NumPy data into Python's, and what is not finite into None."""
  if isinstance(obj, Mapping):
    return {str(key): _plain(value) for key, value in obj.items()}
  if isinstance(obj, list | tuple):
    return [_plain(value) for value in obj]
  if isinstance(obj, np.ndarray | np.generic) or hasattr(obj, '__array__'):
    return _plain(np.asarray(obj).tolist())
  if isinstance(obj, float) and not math.isfinite(obj):
    return None
  return obj

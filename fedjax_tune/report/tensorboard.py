"""TensorBoard's events of a run, written at once and without a thread."""

import pathlib
import time

import numpy as np
from tensorboardX import event_file_writer, summary
from tensorboardX.proto import event_pb2

from fedjax_tune.typing import Record

_PREFIX = 'events'


class Board:
  """Writes scalars to one file of events.

  tensorboardX's own writer hands them to a thread, which loses what it holds
  when the process is killed, and blocks the run when the disk is full.
  """

  def __init__(self, folder: pathlib.Path) -> None:
    """Opens a file in `folder`, in place of those of earlier attempts."""
    folder.mkdir(exist_ok=True)
    for path in folder.glob(f'{_PREFIX}.out.tfevents.*'):
      path.unlink()
    self._file = event_file_writer.EventsWriter(str(folder / _PREFIX))

  def write(self, rnd: int, metrics: Record) -> None:
    """Adds the scalars among a round's metrics; None reads as NaN."""
    for name, value in metrics.items():
      if np.ndim(value) == 0:
        scalar = float('nan') if value is None else float(value)
        event = event_pb2.Event(  # pyright: ignore[reportAttributeAccessIssue]
          wall_time=time.time(),
          step=rnd,
          summary=summary.scalar(name, scalar),
        )
        self._file.write_event(event)

  def flush(self) -> None:
    """Hands what was written to the system."""
    self._file.flush()

  def close(self) -> None:
    """Closes the file."""
    self._file.close()

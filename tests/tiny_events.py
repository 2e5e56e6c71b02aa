"""Reads TensorBoard's events back, without TensorBoard."""

import pathlib
import struct
from typing import Any

from tensorboardX.proto import event_pb2

# The class is made when its module is imported.
_Event: Any = vars(event_pb2)['Event']


def read(workdir: pathlib.Path) -> list[tuple[str, int, float]]:
  """Returns all scalars of a run's folder: name, round and value."""
  found = []
  for path in sorted((workdir / 'tensorboard').iterdir()):
    data = path.read_bytes()
    while data:
      # Length, its checksum, the event, its checksum.
      (length,) = struct.unpack('Q', data[:8])
      event = _Event.FromString(data[12 : 12 + length])
      found += [
        (value.tag, event.step, value.simple_value)
        for value in event.summary.value
      ]
      data = data[16 + length :]
  return found

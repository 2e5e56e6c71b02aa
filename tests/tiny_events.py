"""Reads TensorBoard's events back, as tensorboardX defines them."""

import pathlib
import struct
from typing import Any

from tensorboardX import record_writer
from tensorboardX.proto import event_pb2

# The class is made when its module is imported.
_Event: Any = vars(event_pb2)['Event']


def read(workdir: pathlib.Path) -> list[tuple[str, int, float]]:
  """Returns all scalars of a run's folder: name, round and value."""
  found = []
  for path in sorted((workdir / 'tensorboard').iterdir()):
    data = path.read_bytes()
    while data:
      (length, check) = struct.unpack('<QI', data[:12])
      assert check == record_writer.masked_crc32c(data[:8])
      content = data[12 : 12 + length]
      (check,) = struct.unpack('<I', data[12 + length : 16 + length])
      assert check == record_writer.masked_crc32c(content)
      event = _Event.FromString(content)
      found += [
        (value.tag, event.step, value.simple_value)
        for value in event.summary.value
      ]
      data = data[16 + length :]
  return found

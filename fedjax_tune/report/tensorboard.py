"""TensorBoard's events of a run, written at once and without a thread.

They are written here field by field, because every package that writes them
imports PyTorch if it is installed, which costs each run a second and 220 MB.
"""

import os
import pathlib
import re
import socket
import struct
import time

import numpy as np

from fedjax_tune.typing import Record

_PREFIX = 'events.out.tfevents.'
# Of CRC-32C (RFC 3309), its bits reversed.
_POLYNOMIAL = 0x82F63B78
# How protobuf's wire format writes a value.
_VARINT, _DOUBLE, _BYTES, _FLOAT = 0, 1, 2, 5


class Board:
  """Writes scalars to one file of events.

  Other writers use a thread, which loses what it holds when the process is
  killed, and blocks the run when the disk is full.
  """

  def __init__(self, folder: pathlib.Path) -> None:
    """Opens a file in `folder`, in place of those of earlier attempts."""
    folder.mkdir(exist_ok=True)
    for path in folder.glob(f'{_PREFIX}*'):
      path.unlink()
    name = f'{_PREFIX}{int(time.time())}.{socket.gethostname()}'
    self._file = (folder / name).open('wb')
    self._file.write(record(_event(_field(3, _BYTES, b'brain.Event:2'))))

  def write(self, rnd: int, metrics: Record) -> None:
    """Adds the scalars among a round's metrics; None reads as NaN."""
    for name, value in metrics.items():
      if np.ndim(value) == 0:
        scalar = float('nan') if value is None else float(value)
        self._file.write(record(_scalar(name, scalar, rnd)))

  def flush(self) -> None:
    """Hands what was written to the disk."""
    self._file.flush()
    os.fsync(self._file.fileno())

  def close(self) -> None:
    """Closes the file."""
    self._file.close()


def record(content: bytes) -> bytes:
  """Returns a TFRecord: length and content, each followed by a checksum."""
  length = struct.pack('<Q', len(content))
  check = lambda part: struct.pack('<I', _masked_crc(part))
  return length + check(length) + content + check(content)


def _scalar(name: str, value: float, rnd: int) -> bytes:
  """Returns the event (event.proto, summary.proto) of one scalar."""
  tag = re.sub(r'[^-/\w.]', '_', name).lstrip('/')
  with np.errstate(over='ignore'):  # It is stored as infinite.
    content = np.array(value, '<f4').tobytes()
  entry = _field(1, _BYTES, tag.encode()) + _field(2, _FLOAT, content)
  summary = _field(5, _BYTES, _field(1, _BYTES, entry))
  return _event(_field(2, _VARINT, _varint(rnd)) + summary)


def _event(rest: bytes) -> bytes:
  return _field(1, _DOUBLE, struct.pack('<d', time.time())) + rest


def _field(number: int, kind: int, content: bytes) -> bytes:
  size = _varint(len(content)) if kind == _BYTES else b''
  return _varint(number << 3 | kind) + size + content


def _varint(value: int) -> bytes:
  """Writes seven bits a byte, the lowest first; the last byte has bit 7 off."""
  found = bytearray()
  while value > 0x7F:
    found.append(value & 0x7F | 0x80)
    value >>= 7
  return bytes([*found, value])


def _row(index: int) -> int:
  for _ in range(8):
    index = index >> 1 ^ (_POLYNOMIAL if index & 1 else 0)
  return index


_TABLE = tuple(map(_row, range(256)))


def _masked_crc(content: bytes) -> int:
  """Returns TFRecord's masked CRC-32C: rotated, and shifted by a constant."""
  crc = 0xFFFFFFFF
  for byte in content:
    crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
  crc ^= 0xFFFFFFFF
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF

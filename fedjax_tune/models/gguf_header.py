"""Checks the header of a GGUF file before anything trusts it.

The format: github.com/ggml-org/ggml, docs/gguf.md. The package `gguf` loops as
often as a count says and slices as far as a length says, even beyond the end of
the file. So every count, length, shape and offset is checked here first.
"""

import math
import mmap
import os
import pathlib
import struct

import gguf

_MAX_DIMS = 4  # GGML_MAX_DIMS.
_SIZES = {0: 1, 1: 1, 7: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9


class _Walker:
  """Reads numbers one after another, and never past the end."""

  def __init__(self, data: mmap.mmap, path: pathlib.Path) -> None:
    self.data, self.path, self.at = data, path, 0

  def skip(self, size: int, what: str) -> int:
    """Skips some bytes; returns where they begin."""
    begin = self.at
    if size > len(self.data) - begin:
      raise ValueError(
        f'{self.path} is cut short, or no GGUF file: {what} at byte {begin} '
        f'would take {size} bytes; there are {len(self.data) - begin}.'
      )
    self.at += size
    return begin

  def number(self, kind: str, what: str) -> int:
    size = struct.calcsize(kind)
    return struct.unpack_from(kind, self.data, self.skip(size, what))[0]

  def text(self, what: str) -> str:
    size = self.number('<Q', what)
    begin = self.skip(size, what)
    return self.data[begin : begin + size].decode('utf-8', 'replace')

  def value(self, what: str) -> None:
    """Skips a value of any type."""
    kind = self.number('<I', what)
    if kind == _STRING:
      self.text(what)
    elif kind == _ARRAY:
      self._array(what)
    else:
      self.skip(self._size(kind, what), what)

  def _array(self, what: str) -> None:
    kind, count = self.number('<I', what), self.number('<Q', what)
    if kind != _STRING:
      self.skip(count * self._size(kind, what), what)
      return
    self.bound(count, 8, what)
    for _ in range(count):
      self.text(what)

  def _size(self, kind: int, what: str) -> int:
    if kind not in _SIZES:
      raise ValueError(f'{self.path}: {what} has the unknown type {kind}.')
    return _SIZES[kind]

  def bound(self, count: int, least: int, what: str) -> None:
    """Checks that there is room for a count of items of `least` bytes each."""
    left = (len(self.data) - self.at) // least
    if count > left:
      raise ValueError(
        f'{self.path}: {what} counts {count}; the file has room for {left}.'
      )


def check(path: str | os.PathLike[str]) -> None:
  """Checks a GGUF file's header.

  Raises:
    FileNotFoundError: There is no such file.
    ValueError: It is not a GGUF file, or lacks data that its header promises;
      or a tensor has an unknown type, which is named.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(f'The weights {path} are missing.')
  if path.stat().st_size < 24:
    raise ValueError(f'{path} is no GGUF file: it has under 24 bytes.')
  with (
    open(path, 'rb') as file,
    mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
  ):
    walker = _Walker(data, path)
    begin = walker.skip(4, 'the magic number')
    magic, version = data[begin:4], walker.number('<I', 'the version')
    if magic != b'GGUF' or version not in (2, 3):
      raise ValueError(
        f'{path} is no little-endian GGUF file of version 2 or 3: it begins '
        f'with {magic!r} and version {version}.'
      )
    tensors = walker.number('<Q', 'the number of tensors')
    fields = walker.number('<Q', 'the number of fields')
    walker.bound(fields, 13, 'the number of fields')
    for _ in range(fields):
      walker.value(f'field {walker.text("the name of a field")!r}')
    walker.bound(tensors, 24, 'the number of tensors')
    ends = [_tensor_end(walker) for _ in range(tensors)]
    if walker.at + max(ends, default=0) > len(data):
      raise ValueError(
        f'{path} is cut short: its tensors take {max(ends)} bytes; there are '
        f'{len(data) - walker.at}.'
      )


def _tensor_end(walker: _Walker) -> int:
  """Skips a tensor's entry; returns its end, counted from where data begin."""
  what = f'tensor {walker.text("the name of a tensor")!r}'
  sides = walker.number('<I', what)
  if sides > _MAX_DIMS:
    raise ValueError(f'{walker.path}: {what} has {sides} sides.')
  shape = [walker.number('<Q', what) for _ in range(sides)]
  kind, offset = walker.number('<I', what), walker.number('<Q', what)
  if kind not in [k.value for k in gguf.GGMLQuantizationType]:
    raise ValueError(
      f'{walker.path}: {what} is of the unknown quantisation type {kind}.'
    )
  values, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
  if not all(shape) or (shape[:1] and shape[0] % values):
    raise ValueError(
      f'{walker.path}: {what} has shape {shape}; its first side must be a '
      f'multiple of {values}, and none empty.'
    )
  return offset + math.prod(shape) // values * size

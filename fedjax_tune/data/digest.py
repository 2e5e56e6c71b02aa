"""Hashes of values: the same in every process and on every platform."""

from collections.abc import Mapping
import dataclasses
import hashlib

import numpy as np


def of(*values: object) -> str:
  """Returns the hex sha256 of values.

  Arrays are hashed by shape, kind and little-endian bytes; strings, numbers and
  None by their value; sequences and dataclasses by their parts, in order;
  mappings sorted by name.

  Raises:
    TypeError: A value is, or contains, something else.

  >>> of('a', 'b') == of('ab')
  False
  """
  found = hashlib.sha256()
  for value in values:
    _add(found, value)
  return found.hexdigest()


def _add(found: 'hashlib._Hash', value: object) -> None:
  """Adds a value's kind, size and content, so that values stay separate."""
  match value:
    case np.ndarray():
      if value.dtype.kind not in 'biuf':
        return _add(found, [value.shape, [str(x) for x in value.flat]])
      kind = value.dtype.newbyteorder('<')
      found.update(f'array {kind.str} {value.shape};'.encode())
      found.update(np.ascontiguousarray(value, kind).data)
    case bytes() | str():
      content = value.encode() if isinstance(value, str) else value
      found.update(f'{type(value).__name__} {len(content)};'.encode())
      found.update(content)
    case bool() | int() | float() | None:
      found.update(f'{value!r};'.encode())
    case np.generic():
      _add(found, np.asarray(value))
    case Mapping():
      _add(found, sorted(value.items()))
    case list() | tuple():
      found.update(f'sequence {len(value)};'.encode())
      for part in value:
        _add(found, part)
    case _ if dataclasses.is_dataclass(value):
      for field in dataclasses.fields(value):
        _add(found, [field.name, getattr(value, field.name)])
    case _:
      raise TypeError(f'{type(value).__name__} has no digest')

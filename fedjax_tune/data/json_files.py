"""Reads JSON files from elsewhere, within bounds."""

import itertools
import json
import os
import pathlib
from typing import Any

from fedjax_tune.files import pointers
from fedjax_tune.typing import Json

# The largest such file is a tokenizer's vocabulary, at 20 MB.
MAX_BYTES = 256 << 20


def read(path: str | os.PathLike, most_bytes: int = MAX_BYTES) -> Any:
  """Returns the content of a JSON file.

  Raises:
    OSError: The file can't be read.
    ValueError: It is not JSON, too large, nested too deeply, has a field twice
      (readers differ in which one they take), or is a pointer to a file
      (`pointers`).
  """
  path = pathlib.Path(path)
  if (size := path.stat().st_size) > most_bytes:
    raise ValueError(
      f'{path} has {size:,} bytes; must be at most {most_bytes:,}'
    )
  pointers.check(path)
  return parse(path.read_bytes(), path)


def parse(text: str | bytes, source: str | os.PathLike) -> Any:
  """Parses JSON text; errors are those of `read`.

  Args:
    text: In UTF-8.
    source: Begins every message.
  """
  try:
    # Given bytes, json.loads would guess the encoding.
    text = text if isinstance(text, str) else text.decode()
    return json.loads(text, object_pairs_hook=_unique)
  except RecursionError as error:
    raise ValueError(f'{source} is nested too deeply to be read') from error
  except ValueError as error:
    raise ValueError(f'{source} is not valid JSON in UTF-8: {error}') from error


def read_object(path: str | os.PathLike, most_bytes: int = MAX_BYTES) -> Json:
  """Returns the object in a JSON file; errors are those of `read`."""
  value = read(path, most_bytes)
  if not isinstance(value, dict):
    raise ValueError(f'{path} must hold a JSON object')
  return value


def _unique(pairs: list[tuple[str, object]]) -> Json:
  found = dict(pairs)
  if len(found) < len(pairs):
    names = sorted(name for name, _ in pairs)
    twice = next(a for a, b in itertools.pairwise(names) if a == b)
    raise ValueError(f'it has the field {twice!r} twice')
  return found

"""Reads fields of config.json, with messages that explain a mistake.

JSON files have no types that a reader could rely on: a switch may be the word
'false', a count may be 12.0 or true, a number may be NaN. Only the intended
type is accepted.
"""

from collections.abc import Mapping
import math
import pathlib
from typing import Any

from fedjax_tune.data import json_files
from fedjax_tune.models.sizes import DecoderConfig, TextConfig
from fedjax_tune.typing import Json

# No count of a model is larger: positions and tokens are int32.
_LARGEST = 2**31 - 1
# Far above any config.json or index; a file beyond it is something else.
_MAX_BYTES = 16 * 2**20


def read_json(path: pathlib.Path) -> Json:
  """Reads a JSON object.

  Raises:
    FileNotFoundError: There is no such file.
    ValueError: It is too large, not JSON, no object, or has a field twice.
  """
  if not path.is_file():
    raise FileNotFoundError(f'{path} is missing.')
  return json_files.read_object(path, _MAX_BYTES)


def check_supported(raw: Json, supported: Json, path: pathlib.Path) -> None:
  """Raises a ValueError if a field is there and has another value."""
  for field, value in supported.items():
    found = raw.get(field, value)
    if type(found) is not type(value) or found != value:
      raise ValueError(
        f'{path}: {field}={found!r} is not supported, only {value!r}.'
      )


def integer(raw: Json, field: str, path: pathlib.Path, least: int = 1) -> int:
  """Returns a field that must be a whole number, of at least `least`."""
  value: object = raw.get(field)
  if type(value) is not int or not least <= value <= _LARGEST:
    rule = 'positive' if least else 'non-negative'
    raise ValueError(
      f'{path}: {field}={_short(value)} must be a {rule} whole number.'
    )
  return value


def square(raw: Json, field: str, path: pathlib.Path) -> int:
  """Returns the side of a square, which may be given as [height, width]."""
  value: object = raw.get(field)
  if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
    return integer({field: value[0]}, field, path)
  return integer(raw, field, path)


def number(
  raw: Json,
  field: str,
  path: pathlib.Path,
  *,
  above: float = -math.inf,
  least: float = -math.inf,
  most: float = 1e12,
) -> float:
  """Returns a field that must be a finite number in a range."""
  # Any, since pyright does not see what `type(value) in` says.
  value: Any = raw.get(field)
  fits = type(value) in (int, float) and above < value <= most
  if not fits or not value >= least:
    low = f'above {above:g}' if above > -math.inf else f'at least {least:g}'
    raise ValueError(
      f'{path}: {field}={_short(value)} must be a number {low} and at most '
      f'{most:g}.'
    )
  return float(value)


def boolean(raw: Json, field: str, path: pathlib.Path, default: bool) -> bool:
  """Returns a field that must be true or false if it is there."""
  value = raw.get(field, default)
  if type(value) is not bool:
    raise ValueError(
      f'{path}: {field}={_short(value)} must be true or false, without quotes.'
    )
  return value


def epsilon(raw: Json, field: str, path: pathlib.Path, default: float) -> float:
  """Returns the epsilon of a norm; with 0 a constant row would give NaN."""
  return number({field: default} | raw, field, path, above=0, most=0.5)


def block_sizes(
  raw: Json, path: pathlib.Path, names: Mapping[str, str] | None = None
) -> Json:
  """Reads the sizes of any encoder, under the given names or BERT's."""
  names = names or {}
  width, count, blocks = (
    names.get(name, name)
    for name in ('hidden_size', 'num_attention_heads', 'num_hidden_layers')
  )
  embed = integer(raw, width, path)
  heads = integer(raw, count, path)
  if embed % heads:
    raise ValueError(
      f'{path}: {width}={embed} must be a multiple of {count}={heads}.'
    )
  wide = raw.get('head_dim', embed // heads)
  if wide != embed // heads:
    raise ValueError(
      f'{path}: head_dim={wide} is not supported, only hidden_size // '
      f'num_attention_heads = {embed // heads}.'
    )
  depth = integer(raw, blocks, path)
  return {'depth': depth, 'embed': embed, 'heads': heads}


def _short(value: object) -> str:
  """Shows a value, or the beginning of a long one."""
  shown = repr(value)
  return shown if len(shown) <= 60 else shown[:57] + '...'


def check_padding(
  config: TextConfig | DecoderConfig, path: pathlib.Path
) -> None:
  """Raises a ValueError unless the vocabulary has the padding token."""
  if config.pad >= config.vocab:
    raise ValueError(
      f'{path}: pad_token_id={config.pad} must be below vocab_size='
      f'{config.vocab}.'
    )

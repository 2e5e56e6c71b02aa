"""Fields of config.json, read with what a reader should know of a mistake."""

import pathlib
from typing import Any

from fedjax_tune.models.sizes import DecoderConfig, TextConfig


def check_supported(
  raw: dict[str, Any], supported: dict[str, Any], path: pathlib.Path
) -> None:
  """Raises a ValueError where a field is there and has another value."""
  for field, value in supported.items():
    if raw.get(field, value) != value:
      raise ValueError(
        f'{path}: {field}={raw[field]!r} is not supported, only {value!r}.'
      )


def integer(
  raw: dict[str, Any], field: str, path: pathlib.Path, least: int = 1
) -> int:
  """Returns a field that must be a whole number, of at least `least`."""
  value = raw.get(field)
  if isinstance(value, list) and len(set(value)) == 1:  # A square [h, w].
    value = value[0]
  if type(value) is not int or value < least:
    rule = 'positive' if least else 'non-negative'
    raise ValueError(
      f'{path}: {field}={value!r} must be a {rule} whole number.'
    )
  return value


def check_padding(
  config: TextConfig | DecoderConfig, path: pathlib.Path
) -> None:
  """Raises a ValueError unless the vocabulary has the padding token."""
  if config.pad >= config.vocab:
    raise ValueError(
      f'{path}: pad_token_id={config.pad} must be below vocab_size='
      f'{config.vocab}.'
    )

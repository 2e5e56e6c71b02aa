"""Rotary positions in config.json, read as transformers 5 reads them.

Files of transformers 4 have `rope_theta` and `rope_scaling`, those of
transformers 5 `rope_parameters`; some have all three. A `rope_scaling` that is
not empty wins over `rope_parameters`, and a `rope_theta` inside wins over the
one outside (configuration_utils.py, `convert_rope_params_to_dict`).
"""

import pathlib

from fedjax_tune.models import hub_fields
from fedjax_tune.models.rope import KINDS, Rope
from fedjax_tune.typing import Json

_LENGTH = 'original_max_position_embeddings'
# The least value of each kind's options, and the options it can do without.
_REQUIRED: dict[str, dict[str, float]] = {
  'default': {},
  'linear': {'factor': 1},
  'dynamic': {'factor': 1},
  'llama3': {'factor': 1, 'low_freq_factor': 0, 'high_freq_factor': 0},
  'yarn': {'factor': 1},
}
_OPTIONAL = ('attention_factor', 'beta_fast', 'beta_slow')
_OPTIONAL += ('mscale', 'mscale_all_dim')
# All that may stand there; options of other kinds are ignored, as there.
_KNOWN = {'rope_type', 'type', 'rope_theta', 'partial_rotary_factor', _LENGTH}
_KNOWN |= {'truncate', 'low_freq_factor', 'high_freq_factor', 'factor'}
_KNOWN |= {'long_factor', 'short_factor', *_OPTIONAL}


def parse(raw: Json, positions: int, path: pathlib.Path) -> Rope:
  """Reads rotary positions.

  Args:
    raw: The content of config.json.
    positions: The number of the model's positions.
    path: Begins every message.

  Raises:
    ValueError: A kind is not supported, or an option is missing or out of
      range.
  """
  field, found = _find(raw, path)
  kind = found.get('rope_type', found.get('type', 'default'))
  if not isinstance(kind, str) or kind not in KINDS:
    raise ValueError(
      f'{path}: {field}={found!r} is not supported; its rope_type={kind!r} must '
      f'be one of {", ".join(KINDS)}.'
    )
  if odd := sorted(found.keys() - _KNOWN):
    raise ValueError(f'{path}: {field} must not have {odd[0]!r}.')
  for place in (found, raw):
    if place.get('partial_rotary_factor') not in (None, 1):
      raise ValueError(
        f'{path}: partial_rotary_factor={place["partial_rotary_factor"]!r} is '
        'not supported, only 1: rotary positions over the whole head.'
      )
  theta = found if 'rope_theta' in found else {'rope_theta': 10000.0} | raw
  base = hub_fields.number(theta, 'rope_theta', path, above=1)
  options = {
    name: hub_fields.number(found, name, path, least=least)
    for name, least in _REQUIRED[kind].items()
  }
  if kind in ('llama3', 'yarn'):
    length = {_LENGTH: positions} | found
    length |= {_LENGTH: raw[_LENGTH]} if _LENGTH in raw else {}
    options[_LENGTH] = hub_fields.integer(length, _LENGTH, path)
  if kind == 'llama3':
    low, high = options['low_freq_factor'], options['high_freq_factor']
    if not 0 < low < high:
      raise ValueError(
        f'{path}: {field}: low_freq_factor={low} must be positive, and below '
        f'high_freq_factor={high}.'
      )
  if kind == 'yarn':
    options |= {
      name: hub_fields.number(found, name, path, above=0)
      for name in _OPTIONAL
      if found.get(name) is not None
    }
    options['truncate'] = hub_fields.boolean(found, 'truncate', path, True)
  return Rope(base, kind, tuple(options.items()))


def _find(raw: Json, path: pathlib.Path) -> tuple[str, Json]:
  """Returns the field that has the rotary positions, and its content."""
  for field in ('rope_scaling', 'rope_parameters'):
    value = raw.get(field)
    if value is not None and not isinstance(value, dict):
      raise ValueError(f'{path}: {field}={value!r} must be an object.')
    if value:
      return field, value
  return 'rope_parameters', {}


def render(rope: Rope) -> Json:
  """Returns the fields for config.json, for readers of both versions."""
  said = {'rope_type': rope.kind} | dict(rope.options)
  parameters = said | {'rope_theta': rope.base}
  fields = {'rope_theta': rope.base, 'rope_parameters': parameters}
  return fields | ({'rope_scaling': said} if rope.kind != 'default' else {})

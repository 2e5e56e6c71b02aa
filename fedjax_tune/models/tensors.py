"""Checks the values of pretrained tensors, wherever they come from."""

from collections.abc import Mapping
import math

import numpy as np

from fedjax_tune.models.sizes import Config, DecoderConfig, TextConfig

_FLOATS = ('float16', 'bfloat16', 'float32', 'float64')
# Parameters that are zero in sound models: biases, RoBERTa's token types, the
# tokens and positions with which DeiT begins, and B with which LoRA does. If a
# kernel, a word table or a norm's scale is all zeros, the file was never filled.
_MAY_BE_ZERO = ('bias', 'prefix', 'position', 'type', 'lora_b')
# What config.json calls the sizes.
_NAMES = {
  'depth': 'num_hidden_layers',
  'embed': 'hidden_size',
  'ffn': 'intermediate_size',
}
_TEXT = {'vocab': 'vocab_size', 'positions': 'max_position_embeddings'}
_TEXT |= {'types': 'type_vocab_size'}
_DECODER = {'vocab': 'vocab_size', 'heads': 'num_key_value_heads'}
_DECODER |= {'head_dim': 'head_dim', 'group': 'num_attention_heads'}
_IMAGE = {'patch': 'patch_size', 'num_tokens': 'image_size'}


def check(
  name: str, value: np.ndarray, parameter: str, source: str
) -> np.ndarray:
  """Returns a tensor in float32.

  Args:
    name: The tensor's name in the file.
    value: Its values.
    parameter: Last part of our name of it, which decides what it may hold.
    source: Begins every message.

  Raises:
    ValueError: It has no floating-point type, has a NaN or an infinity, or is
      all zeros, which it is in no sound model.
  """
  if value.dtype.name not in _FLOATS:
    raise ValueError(
      f'{source}: tensor {name!r} is of type {value.dtype.name}; weights must be '
      f'of {", ".join(_FLOATS)}: whole numbers and 8-bit types are quantised.'
    )
  with np.errstate(over='ignore', invalid='ignore'):
    found = np.asarray(value, np.float32)
  finite = np.isfinite(found)
  if not finite.all():
    first = tuple(map(int, np.argwhere(~finite)[0]))
    raise ValueError(
      f'{source}: tensor {name!r} has {np.sum(~finite)} values that are not '
      f'finite in float32, the first {value[first]} at {first}.'
    )
  if parameter not in _MAY_BE_ZERO and not found.any():
    raise ValueError(
      f'{source}: tensor {name!r} is zero throughout; weights other than biases '
      'and positions must not be.'
    )
  return found


def check_counts(
  shapes: Mapping[str, tuple[int, ...]], config: Config, source: str
) -> None:
  """Checks sizes against the tensors that exist, before anything is built.

  Args:
    shapes: Shapes of the tensors, by name.
    config: The sizes.
    source: Begins every message.

  Raises:
    ValueError: There are more blocks than tensors, or a size is larger than the
      number of all values.
  """
  if config.depth > len(shapes):
    raise ValueError(
      f'{source}: num_hidden_layers={config.depth} is more than the weights '
      f'hold: they have {len(shapes)} tensors.'
    )
  values = sum(math.prod(shape) for shape in shapes.values())
  own = _IMAGE
  if isinstance(config, TextConfig):
    own = _TEXT
  elif isinstance(config, DecoderConfig):
    own = _DECODER
  for field, name in (_NAMES | own).items():
    size = getattr(config, field)
    if size > values:
      raise ValueError(
        f'{source}: {name} asks for {size} of a kind; the weights have '
        f'{values} values in all.'
      )

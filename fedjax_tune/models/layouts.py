"""Where parameters lie in Hugging Face's files, for reading and for writing.

One table of names serves both directions. A parameter that is stacked here, on
'layer' or 'prefix', is one tensor a row there.
"""

import math
from typing import NamedTuple

from flax import nnx
import numpy as np

from fedjax_tune.models.sizes import Config, TextConfig, ViTConfig
from fedjax_tune.typing import Path

# Names of modules, and of parameters outside any: first those in the hub's
# files, then those of the modules of transformers 5.
_Names = dict[str, tuple[str, ...]]

_IMAGE_ATTENTION: _Names = {
  'attn.q': ('attention.attention.query', 'attention.q_proj'),
  'attn.k': ('attention.attention.key', 'attention.k_proj'),
  'attn.v': ('attention.attention.value', 'attention.v_proj'),
  'attn.proj': ('attention.output.dense', 'attention.o_proj'),
}
_VIT: _Names = {
  'norm1': ('layernorm_before',),
  'norm2': ('layernorm_after',),
  'mlp.fc1': ('intermediate.dense', 'mlp.fc1'),
  'mlp.fc2': ('output.dense', 'mlp.fc2'),
}
_DINOV2: _Names = {
  'norm1': ('norm1',),
  'norm2': ('norm2',),
  'mlp.fc1': ('mlp.fc1',),
  'mlp.fc2': ('mlp.fc2',),
  'scale1': ('layer_scale1.lambda1',),
  'scale2': ('layer_scale2.lambda1',),
}
_BERT: _Names = {
  'attn.q': ('attention.self.query',),
  'attn.k': ('attention.self.key',),
  'attn.v': ('attention.self.value',),
  'attn.proj': ('attention.output.dense',),
  'norm1': ('attention.output.LayerNorm',),
  'mlp.fc1': ('intermediate.dense',),
  'mlp.fc2': ('output.dense',),
  'norm2': ('output.LayerNorm',),
}
_DISTILBERT: _Names = {
  'attn.q': ('attention.q_lin',),
  'attn.k': ('attention.k_lin',),
  'attn.v': ('attention.v_lin',),
  'attn.proj': ('attention.out_lin',),
  'norm1': ('sa_layer_norm',),
  'mlp.fc1': ('ffn.lin1',),
  'mlp.fc2': ('ffn.lin2',),
  'norm2': ('output_layer_norm',),
}
_LLAMA: _Names = {
  'norm1': ('input_layernorm',),
  'attn.q': ('self_attn.q_proj',),
  'attn.k': ('self_attn.k_proj',),
  'attn.v': ('self_attn.v_proj',),
  'attn.proj': ('self_attn.o_proj',),
  'norm2': ('post_attention_layernorm',),
  'mlp.gate': ('mlp.gate_proj',),
  'mlp.up': ('mlp.up_proj',),
  'mlp.down': ('mlp.down_proj',),
}
# What the tensors of a block begin with, and its parts.
_IMAGE_BLOCK = ('encoder.layer.{}', 'layers.{}')
_BLOCKS: dict[str, tuple[tuple[str, ...], _Names]] = {
  'vit': (_IMAGE_BLOCK, _IMAGE_ATTENTION | _VIT),
  'deit': (_IMAGE_BLOCK, _IMAGE_ATTENTION | _VIT),
  'dinov2': (_IMAGE_BLOCK, _IMAGE_ATTENTION | _DINOV2),
  'bert': (('encoder.layer.{}',), _BERT),
  'roberta': (('encoder.layer.{}',), _BERT),
  'distilbert': (('transformer.layer.{}',), _DISTILBERT),
  'llama': (('layers.{}',), _LLAMA),
}
_IMAGE: _Names = {
  'embed.patch': ('embeddings.patch_embeddings.projection',),
  'embed.position': ('embeddings.position_embeddings',),
  'norm': ('layernorm',),
  'head': ('classifier',),
}
_PREFIX = ('embeddings.cls_token', 'embeddings.distillation_token')
_TEXT: _Names = {
  'embed.word': ('embeddings.word_embeddings.weight',),
  'embed.position': ('embeddings.position_embeddings.weight',),
  'embed.type': ('embeddings.token_type_embeddings.weight',),
  'embed.norm': ('embeddings.LayerNorm',),
}
_OTHERS: dict[str, _Names] = {
  'vit': _IMAGE,
  'deit': _IMAGE,
  'dinov2': _IMAGE,
  'bert': _TEXT | {'pooler': ('pooler.dense',), 'head': ('classifier',)},
  'roberta': _TEXT
  | {'pooler': ('classifier.dense',), 'head': ('classifier.out_proj',)},
  'distilbert': _TEXT
  | {'pooler': ('pre_classifier',), 'head': ('classifier',)},
  'llama': {
    'embed.word': ('embed_tokens.weight',),
    'norm': ('norm',),
    'head': ('score',),
    'lm_head': ('lm_head',),
  },
}
_LEAVES = {'kernel': 'weight', 'scale': 'weight', 'bias': 'bias'}

FAMILIES = tuple(_BLOCKS)
# What a model with a head puts before the names of its family's base model.
PREFIXES = {family: f'{family}.' for family in FAMILIES} | {'llama': 'model.'}


class Place(NamedTuple):
  """Where one parameter lies, and how.

  Attributes:
    rows: For each of its rows the names that the tensor can have; the first is
      the one to write. A parameter that is not stacked has one row.
    shape: Of a tensor.
    order: The tensor's dimensions in our order.
    stacked: Whether rows are the parameter's leading axis.
  """

  rows: tuple[tuple[str, ...], ...]
  shape: tuple[int, ...]
  order: tuple[int, ...]
  stacked: bool

  def pack(self, value: np.ndarray) -> list[np.ndarray]:
    """Returns the tensors of a parameter, one a row."""
    rows = value if self.stacked else [value]
    shape = [self.shape[dim] for dim in self.order]
    back = np.argsort(self.order)
    return [
      np.ascontiguousarray(row.reshape(shape).transpose(back)) for row in rows
    ]

  def unpack(
    self, tensors: list[np.ndarray], shape: tuple[int, ...]
  ) -> np.ndarray:
    """Returns the parameter of this shape; the inverse of `pack`."""
    rows = [tensor.transpose(self.order) for tensor in tensors]
    return np.stack(rows).reshape(shape)


def place(config: Config, path: Path, variable: nnx.Variable) -> Place:
  """Finds the place of one of a model's variables.

  Args:
    config: The model's sizes.
    path: Our path to the variable.
    variable: It, or its shape, with the names of its axes.
  """
  stacked = variable.get_metadata('axes')[0] in ('layer', 'prefix')
  inner = variable.shape[stacked:]
  names = _find_names(config, path)
  if path[-1] == 'prefix':
    rows = tuple((name,) for name in names[: variable.shape[0]])
  elif path[0] == 'blocks':
    rows = tuple(
      tuple(name.format(layer) for name in names)
      for layer in range(config.depth)
    )
  else:
    rows = (names,)
  return Place(rows, *_find_form(config, path, inner), stacked)


def is_head(config: Config, path: Path) -> bool:
  """Whether a parameter lies in the classifier, beside the family's model."""
  if path[0] == 'pooler':
    return config.family != 'bert'
  return path[0] in ('head', 'lm_head')


def _find_names(config: Config, path: Path) -> tuple[str, ...]:
  """Returns a parameter's full names, with a field for the layer."""
  if path[-1] == 'prefix':
    return _PREFIX
  blocks, parts = _BLOCKS[config.family]
  others = _OTHERS[config.family]
  if isinstance(config, TextConfig) and config.span:
    others = others | {'head': ('qa_outputs',)}
  inside = path[0] == 'blocks'
  table, own = (parts, path[1:]) if inside else (others, path)
  if '.'.join(own) in table:
    names = table['.'.join(own)]
  else:
    stems = table['.'.join(own[:-1])]
    names = tuple(f'{stem}.{_LEAVES[own[-1]]}' for stem in stems)
  if not inside:
    return names
  return tuple(f'{block}.{name}' for name in names for block in blocks)


def _find_form(
  config: Config, path: Path, inner: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """Returns the shape of a tensor, and its dimensions in our order."""
  if isinstance(config, ViTConfig) and path == ('embed', 'patch', 'kernel'):
    # A convolution [D, channel, row, column] is a product with flat patches.
    return (inner[1], 3, config.patch, config.patch), (2, 3, 1, 0)
  if path[-1] == 'kernel':
    ins = len(inner) - 1 if path[-2] == 'proj' else 1
    return (math.prod(inner[ins:]), math.prod(inner[:ins])), (1, 0)
  if path[-1] == 'bias':
    return (math.prod(inner),), (0,)
  if path[-1] == 'prefix':
    return (1, 1, *inner), (0, 1, 2)
  if isinstance(config, ViTConfig) and path[-1] == 'position':
    return (1, *inner), (0, 1, 2)
  return inner, tuple(range(len(inner)))

"""Where parameters are in Hugging Face's files, for reading and for writing.

One table of names, in `families`, serves both directions. A parameter that is
stacked here, on 'layer' or 'prefix', is one tensor per row there.
"""

import math
from typing import NamedTuple

from flax import nnx
import numpy as np

from fedjax_tune.models.families import FAMILIES
from fedjax_tune.models.sizes import Config, TextConfig, ViTConfig
from fedjax_tune.typing import Path

_PREFIX = ('embeddings.cls_token', 'embeddings.distillation_token')
_LEAVES = {'kernel': 'weight', 'scale': 'weight', 'bias': 'bias'}


class Place(NamedTuple):
  """Where one parameter is in a file, and in which layout.

  Attributes:
    rows: For each row of the parameter the names that its tensor can have; the
      first is the one to write. A parameter that is not stacked has one row.
    shape: Shape of a tensor.
    order: The tensor's dimensions in our order.
    stacked: Whether rows are the parameter's leading axis.
  """

  rows: tuple[tuple[str, ...], ...]
  shape: tuple[int, ...]
  order: tuple[int, ...]
  stacked: bool

  def pack(self, value: np.ndarray) -> list[np.ndarray]:
    """Returns the tensors of a parameter, one per row."""
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
    variable: The variable, or its shape, with the names of its axes.
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


def place_lora(
  config: Config, path: Path, a: tuple[int, ...], b: tuple[int, ...]
) -> tuple[Place, Place]:
  """Finds the places of A and B of an adapted map in peft's files.

  Args:
    config: The model's sizes.
    path: Our path to the map.
    a: Shape of its A, [*stack, *ins, rank].
    b: Shape of its B, [*stack, rank, *outs].
  """
  stacked = path[0] == 'blocks'
  ins, outs = a[stacked:], b[stacked:]
  form_a = _find_form(config, (*path, 'kernel'), ins)
  form_b = (math.prod(outs[1:]), outs[0]), (1, 0)
  if path == ('embed', 'patch'):
    form_b = (outs[1], outs[0], 1, 1), (2, 3, 1, 0)  # A convolution, too.
  rows = [
    tuple(tuple(f'{n}.{part}.weight' for n in names) for names in modules)
    for modules in [find_modules(config, path)]
    for part in ('lora_A', 'lora_B')
  ]
  return Place(rows[0], *form_a, stacked), Place(rows[1], *form_b, stacked)


def find_modules(config: Config, path: Path) -> tuple[tuple[str, ...], ...]:
  """Returns for each row of a parameter, or map, the names that it can have.

  They are the names in a `transformers` model with a head, whose file may use
  others; the first is that of transformers 5.

  Args:
    config: The model's sizes.
    path: Our path to the parameter, or to a map for the names of modules.
  """
  family = FAMILIES[config.family]
  prefix = '' if is_head(config, path) else family.prefix
  stems = _find_stems(config, path)[::-1]
  if path[0] != 'blocks':
    return (tuple(prefix + stem for stem in stems),)
  blocks = dict.fromkeys((family.modules or family.blocks[0], *family.blocks))
  pairs = [f'{prefix}{block}.{stem}' for stem in stems for block in blocks]
  return tuple(
    tuple(name.format(layer) for name in pairs) for layer in range(config.depth)
  )


def is_head(config: Config, path: Path) -> bool:
  """Whether a parameter belongs to the classifier, not to the base model."""
  if path[0] == 'pooler':
    return config.family != 'bert'
  return path[0] in ('head', 'lm_head')


def _find_names(config: Config, path: Path) -> tuple[str, ...]:
  """Returns a parameter's full names, with a field for the layer."""
  if path[-1] == 'prefix':
    return _PREFIX
  names = _find_stems(config, path)
  if path[0] != 'blocks':
    return names
  blocks = FAMILIES[config.family].blocks
  return tuple(f'{block}.{name}' for name in names for block in blocks)


def _find_stems(config: Config, path: Path) -> tuple[str, ...]:
  """Returns a parameter's names, or a map's, without those of its block."""
  family = FAMILIES[config.family]
  others = family.others
  if isinstance(config, TextConfig) and config.span:
    others = others | {'head': ('qa_outputs',)}
  inside = path[0] == 'blocks'
  table, own = (family.parts, path[1:]) if inside else (others, path)
  if '.'.join(own) in table:
    return table['.'.join(own)]
  stems = table['.'.join(own[:-1])]
  return tuple(f'{stem}.{_LEAVES[own[-1]]}' for stem in stems)


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

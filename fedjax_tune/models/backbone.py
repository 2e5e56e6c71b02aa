"""A pretrained backbone, assembled from tensors under Hugging Face's names."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math

import jax
import numpy as np

from fedjax_tune.models import vit
from fedjax_tune.typing import Tree

Tensors = Mapping[str, np.ndarray]

# Channel means and standard deviations of ImageNet, in [0, 1].
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """The frozen part of a vision transformer.

  Attributes:
    config: Its sizes; `mean` and `std` are those that it was trained with.
      `num_classes` is 0: the head is new.
    params: Nested dict of float32 arrays, keyed as `vit.ViT` names them, with
      blocks stacked on a leading layer axis.
    source: Where the weights come from, for messages.
  """

  config: vit.ViTConfig
  params: Tree
  source: str


# Where a block lies, and what its parts are called: first as in the files on
# the hub, then as in the modules of transformers 5. ViT and DeiT call their
# parts differently from DINOv2; no name means two things.
_BLOCK = ('encoder.layer.{}', 'layers.{}')
_PARTS = {
  'norm1': ('layernorm_before', 'norm1'),
  'norm2': ('layernorm_after', 'norm2'),
  'attn.q': ('attention.attention.query', 'attention.q_proj'),
  'attn.k': ('attention.attention.key', 'attention.k_proj'),
  'attn.v': ('attention.attention.value', 'attention.v_proj'),
  'attn.proj': ('attention.output.dense', 'attention.o_proj'),
  'mlp.fc1': ('intermediate.dense', 'mlp.fc1'),
  'mlp.fc2': ('output.dense', 'mlp.fc2'),
  'scale1': ('layer_scale1',),
  'scale2': ('layer_scale2',),
}


def block_stems(layer: int, part: str) -> list[str]:
  """Lists what the tensors of one part of a block can be called.

  >>> block_stems(3, 'scale1')
  ['encoder.layer.3.layer_scale1', 'layers.3.layer_scale1']
  """
  blocks = [pattern.format(layer) for pattern in _BLOCK]
  return [f'{block}.{name}' for name in _PARTS[part] for block in blocks]


# Reads the tensor '<stem>.<leaf>' of the given shape, from the stem that is
# there.
_Take = Callable[[Sequence[str], str, tuple[int, ...]], np.ndarray]


def _reader(tensors: Tensors, source: str) -> _Take:
  def take(
    stems: Sequence[str], leaf: str, shape: tuple[int, ...]
  ) -> np.ndarray:
    names = [f'{stem}.{leaf}' for stem in stems]
    found = [name for name in names if name in tensors]
    if not found:
      raise ValueError(
        f'{source}: there is no tensor {" or ".join(map(repr, names))}.'
      )
    value = tensors[found[0]]
    if value.shape != shape:
      raise ValueError(
        f'{source}: tensor {found[0]!r} has shape {value.shape}; the '
        f'configuration asks for {shape}.'
      )
    return np.asarray(value, np.float32)

  return take


def _linear(
  take: _Take, stems: Sequence[str], ins: tuple, outs: tuple
) -> dict[str, np.ndarray]:
  fan_in, fan_out = math.prod(ins), math.prod(outs)
  kernel = take(stems, 'weight', (fan_out, fan_in)).T.reshape(*ins, *outs)
  return {
    'kernel': kernel,
    'bias': take(stems, 'bias', (fan_out,)).reshape(outs),
  }


def _norm(take: _Take, stems: Sequence[str], width: int) -> Tree:
  return {
    'scale': take(stems, 'weight', (width,)),
    'bias': take(stems, 'bias', (width,)),
  }


def _block(take: _Take, config: vit.ViTConfig, layer: int) -> Tree:
  D, F = (config.embed,), (config.ffn,)
  inner = (config.heads, config.embed // config.heads)

  def linear(part: str, ins: tuple, outs: tuple) -> Tree:
    return _linear(take, block_stems(layer, part), ins, outs)

  block = {
    'norm1': _norm(take, block_stems(layer, 'norm1'), config.embed),
    'attn': {name: linear(f'attn.{name}', D, inner) for name in 'qkv'},
    'norm2': _norm(take, block_stems(layer, 'norm2'), config.embed),
    'mlp': {'fc1': linear('mlp.fc1', D, F), 'fc2': linear('mlp.fc2', F, D)},
  }
  block['attn']['proj'] = linear('attn.proj', inner, D)
  if config.layer_scale:
    for part in ('scale1', 'scale2'):
      block[part] = take(block_stems(layer, part), 'lambda1', D)
  return block


def _embedding(take: _Take, config: vit.ViTConfig) -> Tree:
  D, P, stems = config.embed, config.patch, ['embeddings']
  tokens = ['cls_token', 'distillation_token'][: config.num_prefix]
  prefix = [take(stems, token, (1, 1, D))[0] for token in tokens]
  shape = (1, config.num_tokens, D)
  projection = ['embeddings.patch_embeddings.projection']
  # A convolution [D, channel, row, column] is a product with flat patches.
  weight = take(projection, 'weight', (D, 3, P, P)).transpose(2, 3, 1, 0)
  return {
    'patch': {
      'kernel': weight.reshape(-1, D),
      'bias': take(projection, 'bias', (D,)),
    },
    'prefix': np.concatenate(prefix),
    'position': take(stems, 'position_embeddings', shape)[0],
  }


def assemble(
  tensors: Tensors, config: vit.ViTConfig, source: str
) -> Pretrained:
  """Assembles a backbone from tensors under Hugging Face's names.

  Args:
    tensors: Arrays in torch's layout (weights are [out, in]), under the names
      of `transformers`' ViTModel, DeiTModel or Dinov2Model; others are left.
    config: The sizes at which the weights were trained.
    source: Begins every message.

  Raises:
    ValueError: If a tensor is missing or has another shape; it is named.
  """
  take = _reader(tensors, source)
  blocks = [_block(take, config, layer) for layer in range(config.depth)]
  params = {
    'embed': _embedding(take, config),
    'blocks': jax.tree.map(lambda *leaves: np.stack(leaves), *blocks),
    'norm': _norm(take, ['layernorm'], config.embed),
  }
  return Pretrained(config, params, source)

"""A transformer block, stacked over layers, with norms before or after."""

from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp

from fedjax_tune.models import linear, primitives, prompts
from fedjax_tune.models.bottleneck import FedAdapter
from fedjax_tune.models.sizes import Axes, BlockSizes, ViTConfig, kind

# For each adapted linear map ('attn.proj', 'mlp.fc2', ...) its LoRA, a
# `Lora`; for each adapted sublayer ('attn', 'mlp') its `Bottleneck`.
Adapters = Mapping[str, Any]
# The axes of a map's inputs, or of its outputs.
_Sides = tuple[linear.Axis, ...]


class Keys:
  """Dropout keys of one block, derived from their purpose."""

  _TAGS = (
    'embed.patch',
    'attn.q',
    'attn.k',
    'attn.v',
    'attn.proj',
    'mlp.fc1',
    'mlp.fc2',
    'mlp.gate',
    'mlp.up',
    'mlp.down',
    # The backbone's own dropout.
    'embed.output',
    'attn.weights',
    'attn.output',
    'mlp.output',
    'head.input',
    'head.hidden',
  )

  def __init__(self, key: jax.Array | None, layer: Array | int) -> None:
    self._key = None if key is None else primitives.fold_in(key, layer)

  def __call__(self, name: str) -> jax.Array | None:
    """Returns the key of one dropout, or None without any."""
    if self._key is None:
      return None
    return primitives.fold_in(self._key, self._TAGS.index(name))


def maps(
  sublayer: str,
  config: BlockSizes,
  adapters: Adapters,
  rngs: nnx.Rngs,
  *,
  bias: bool = True,
) -> Callable[[str, _Sides, _Sides], linear.Linear]:
  """Returns a function that builds a sublayer's linear maps, stacked by layer.

  Args:
    sublayer: 'attn' or 'mlp', as in the names of `adapters`.
    config: The model's sizes.
    adapters: The adapters of the maps.
    rngs: Draws the maps.
    bias: Whether the maps have biases.

  Returns:
    build(name, ins, outs), given a map's name and axes.
  """

  def build(name, ins, outs):
    return linear.Linear(
      ins,
      outs,
      stack=(Axes.of(config).layer,),
      kind=kind(config),
      adapter=adapters.get(f'{sublayer}.{name}'),
      bias=bias,
      rngs=rngs,
    )

  return build


class Attention(nnx.Module):
  """Multi-head self-attention with separate q, k and v."""

  def __init__(
    self, config: BlockSizes, adapters: Adapters, rngs: nnx.Rngs
  ) -> None:
    axes, build = Axes.of(config), maps('attn', config, adapters, rngs)
    query, value = (axes.heads, axes.qk_dim), (axes.heads, axes.v_dim)
    self.q = build('q', (axes.embed,), query)
    self.k = build('k', (axes.embed,), query)
    self.v = build('v', (axes.embed,), value)
    self.proj = build('proj', value, (axes.embed,))
    self.prefix = prompts.Prefix(config, rngs) if config.prefixes else None
    self.dropout = config.dropout
    # Hugging Face's DistilBERT has none here.
    self.drops_output = config.family != 'distilbert'

  def __call__(
    self,
    x_BxTxD: Array,
    queries: int,
    keys: 'Keys',
    real_BxT: Array | None = None,
  ) -> Array:
    """Attends from the first `queries` tokens to all that are real."""
    q = self.q(x_BxTxD[:, :queries], keys('attn.q'))
    k = self.k(x_BxTxD, keys('attn.k'))
    v = self.v(x_BxTxD, keys('attn.v'))
    if self.prefix is not None:
      k, v, real_BxT = self.prefix(k, v, real_BxT)
    mixed = primitives.attention(
      q, k, v, real_BxT, key=keys('attn.weights'), rate=self.dropout
    )
    y = self.proj(mixed, keys('attn.proj'))
    rate = self.dropout if self.drops_output else 0.0
    return primitives.dropout(y, keys('attn.output'), rate)


class Mlp(nnx.Module):
  """Two linear maps with an exact GELU between."""

  def __init__(
    self, config: BlockSizes, adapters: Adapters, rngs: nnx.Rngs
  ) -> None:
    axes, build = Axes.of(config), maps('mlp', config, adapters, rngs)
    self.fc1 = build('fc1', (axes.embed,), (axes.ffn,))
    self.fc2 = build('fc2', (axes.ffn,), (axes.embed,))
    self.dropout = config.dropout

  def __call__(self, x: Array, keys: 'Keys') -> Array:
    """Maps [..., D] to [..., D]."""
    hidden = primitives.gelu(self.fc1(x, keys('mlp.fc1')))
    y = self.fc2(hidden, keys('mlp.fc2'))
    return primitives.dropout(y, keys('mlp.output'), self.dropout)


class Block(nnx.Module):
  """A pre-norm block with LayerScale; as built, a stack of them."""

  def __init__(
    self, config: ViTConfig, adapters: Adapters, rngs: nnx.Rngs
  ) -> None:
    axes, of = Axes.of(config), kind(config)
    self.norm1 = _norm(config)
    self.attn = Attention(config, adapters, rngs)
    self.norm2 = _norm(config)
    self.mlp = Mlp(config, adapters, rngs)
    if config.layer_scale:
      ones = jnp.ones((config.depth, config.embed))
      wide = (axes.layer, axes.embed)
      self.scale1 = linear.variable(of, ones, wide)
      self.scale2 = linear.variable(of, ones, wide)
    add_fedadapters(self, config, adapters, rngs)

  def __call__(
    self,
    x_BxTxD: Array,
    queries: int,
    keys: 'Keys',
    real_BxT: Array | None = None,
  ) -> Array:
    """Updates the first `queries` tokens; the others only serve as keys."""
    x, read = x_BxTxD[:, :queries], self.norm1(x_BxTxD)
    branch = self.attn(read, queries, keys, real_BxT)
    branch = self._scaled('scale1', branch)
    x = x + adapted(self, 'attn', read[:, :queries], branch)
    read = self.norm2(x)
    branch = self._scaled('scale2', self.mlp(read, keys))
    return x + adapted(self, 'mlp', read, branch)

  def _scaled(self, name: str, x: Array) -> Array:
    scale = getattr(self, name, None)
    return x if scale is None else x * scale[...]


class PostNormBlock(nnx.Module):
  """A block that normalises after each residual sum, as BERT's do."""

  def __init__(
    self, config: BlockSizes, adapters: Adapters, rngs: nnx.Rngs
  ) -> None:
    self.attn = Attention(config, adapters, rngs)
    self.norm1 = _norm(config)
    self.mlp = Mlp(config, adapters, rngs)
    self.norm2 = _norm(config)
    add_fedadapters(self, config, adapters, rngs)

  def __call__(
    self,
    x_BxTxD: Array,
    queries: int,
    keys: 'Keys',
    real_BxT: Array | None = None,
  ) -> Array:
    """Updates the first `queries` tokens; the others only serve as keys."""
    x = x_BxTxD[:, :queries]
    branch = self.attn(x_BxTxD, queries, keys, real_BxT)
    x = self.norm1(x + adapted(self, 'attn', x, branch))
    branch = self.mlp(x, keys)
    return self.norm2(x + adapted(self, 'mlp', x, branch))


def _norm(config: BlockSizes) -> linear.LayerNorm:
  axes = Axes.of(config)
  return linear.LayerNorm(
    axes.embed, stack=(axes.layer,), eps=config.eps, kind=kind(config)
  )


def add_fedadapters(
  block: nnx.Module, config: BlockSizes, adapters: Adapters, rngs: nnx.Rngs
) -> None:
  """Gives a block the FedAdapters that its sublayers have."""
  for name in ('attn', 'mlp'):
    if name in adapters:
      setattr(
        block, f'{name}_adapter', FedAdapter(config, adapters[name], rngs)
      )


def adapted(block: nnx.Module, name: str, read: Array, branch: Array) -> Array:
  """Returns a sublayer's output, with its FedAdapter applied if it has one."""
  adapter = getattr(block, f'{name}_adapter', None)
  return branch if adapter is None else adapter(read, branch)

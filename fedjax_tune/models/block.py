"""A pre-norm transformer block, stacked over layers."""

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp

from fedjax_tune.models import linear, primitives
from fedjax_tune.models.sizes import Axes, ViTConfig

# For each adapted linear map ('attn.proj', 'mlp.fc2', ...) its LoRA.
Adapters = dict[str, linear.Adapter]


class Keys:
  """Dropout keys of one block, derived from what they are for."""

  _TAGS = (
    'embed.patch',
    'attn.q',
    'attn.k',
    'attn.v',
    'attn.proj',
    'mlp.fc1',
    'mlp.fc2',
  )

  def __init__(self, key: jax.Array | None, layer: Array | int) -> None:
    self._key = None if key is None else jax.random.fold_in(key, layer)

  def __call__(self, name: str) -> jax.Array | None:
    """Returns the key of one linear map, or None without dropout."""
    if self._key is None:
      return None
    return jax.random.fold_in(self._key, self._TAGS.index(name))


class Attention(nnx.Module):
  """Multi-head self-attention with separate q, k and v."""

  def __init__(self, axes: Axes, adapters: Adapters, rngs: nnx.Rngs) -> None:
    inner = (axes.heads, axes.head_dim)

    def build(name, ins, outs):
      return linear.Linear(
        ins,
        outs,
        stack=(axes.layer,),
        adapter=adapters.get(f'attn.{name}'),
        rngs=rngs,
      )

    self.q = build('q', (axes.embed,), inner)
    self.k = build('k', (axes.embed,), inner)
    self.v = build('v', (axes.embed,), inner)
    self.proj = build('proj', inner, (axes.embed,))

  def __call__(self, x_BxTxD: Array, queries: int, keys: 'Keys') -> Array:
    """Attends from the first `queries` tokens to all of them."""
    q = self.q(x_BxTxD[:, :queries], keys('attn.q'))
    k = self.k(x_BxTxD, keys('attn.k'))
    v = self.v(x_BxTxD, keys('attn.v'))
    return self.proj(primitives.attention(q, k, v), keys('attn.proj'))


class Mlp(nnx.Module):
  """Two linear maps with an exact GELU between."""

  def __init__(self, axes: Axes, adapters: Adapters, rngs: nnx.Rngs) -> None:
    def build(name, ins, outs):
      return linear.Linear(
        (ins,),
        (outs,),
        stack=(axes.layer,),
        adapter=adapters.get(f'mlp.{name}'),
        rngs=rngs,
      )

    self.fc1 = build('fc1', axes.embed, axes.ffn)
    self.fc2 = build('fc2', axes.ffn, axes.embed)

  def __call__(self, x: Array, keys: 'Keys') -> Array:
    """Maps [..., D] to [..., D]."""
    hidden = primitives.gelu(self.fc1(x, keys('mlp.fc1')))
    return self.fc2(hidden, keys('mlp.fc2'))


class Block(nnx.Module):
  """A pre-norm transformer block; as built, a stack of them."""

  def __init__(
    self, config: ViTConfig, adapters: Adapters, rngs: nnx.Rngs
  ) -> None:
    axes = Axes.of(config)
    stack = (axes.layer,)
    self.norm1 = linear.LayerNorm(axes.embed, stack=stack, eps=config.eps)
    self.attn = Attention(axes, adapters, rngs)
    self.norm2 = linear.LayerNorm(axes.embed, stack=stack, eps=config.eps)
    self.mlp = Mlp(axes, adapters, rngs)
    if config.layer_scale:
      ones = jnp.ones((config.depth, config.embed))
      wide = (axes.layer, axes.embed)
      self.scale1 = linear.variable(linear.Frozen, ones, wide)
      self.scale2 = linear.variable(linear.Frozen, ones, wide)

  def __call__(self, x_BxTxD: Array, queries: int, keys: 'Keys') -> Array:
    """Updates the first `queries` tokens; the others only serve as keys."""
    x = x_BxTxD[:, :queries]
    branch = self.attn(self.norm1(x_BxTxD), queries, keys)
    x = x + self._scaled('scale1', branch)
    branch = self.mlp(self.norm2(x), keys)
    return x + self._scaled('scale2', branch)

  def _scaled(self, name: str, x: Array) -> Array:
    scale = getattr(self, name, None)
    return x if scale is None else x * scale[...].astype(x.dtype)

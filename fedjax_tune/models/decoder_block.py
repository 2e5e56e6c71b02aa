"""A block of a decoder, stacked over layers; see `decoder.py`."""

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

from fedjax_tune.models import linear, primitives, prompts
from fedjax_tune.models.block import (
  Adapters,
  Keys,
  adapted,
  add_fedadapters,
  maps,
)
from fedjax_tune.models.rope import Rope
from fedjax_tune.models.sizes import Axes, DecoderConfig, kind


def rotate(x: Float[Array, 'B T ... E'], rope: Rope) -> Float[Array, '...']:
  """Rotates channel pairs (i, i + E/2) by the positions 0, -1, -2, ..."""
  tokens, half = x.shape[1], x.shape[-1] // 2
  frequency_P, factor = rope.frequencies(x.shape[-1])
  angle_TxP = -np.outer(np.arange(tokens), frequency_P)
  shape = (tokens, *[1] * (x.ndim - 3), half)
  cos, sin = (
    jnp.asarray(factor * f(angle_TxP).reshape(shape), x.dtype)
    for f in (np.cos, np.sin)
  )
  return _turn(x, cos, sin)


def rotate_back(
  prefix_BxPxHxE: Float[Array, 'B P H E'], real_BxT: Array, rope: Rope
) -> Float[Array, 'B P H E']:
  """Rotates keys without a position back by the position of the last word.

  In a text of n words after P such keys, the last word is at position P + n -
  1, and peft does not rotate the keys. Here the last word is at position 0, so
  the keys are rotated by 1 - P - n, because scores depend on differences.

  Args:
    prefix_BxPxHxE: The keys.
    real_BxT: Which tokens are real; a text's last word comes first.
    rope: The model's rotary positions; their scaling is not applied to these
      keys.
  """
  last_B = jnp.max(jnp.where(real_BxT, np.arange(real_BxT.shape[1]), 0), axis=1)
  frequency_P, _ = rope.frequencies(prefix_BxPxHxE.shape[-1])
  back_B = -(last_B + prefix_BxPxHxE.shape[1]).astype(jnp.float32)
  angle = jnp.outer(back_B, jnp.asarray(frequency_P))[:, None, None]
  return _turn(prefix_BxPxHxE, jnp.cos(angle), jnp.sin(angle))


def _turn(x: Array, cos: Array, sin: Array) -> Array:
  a, b = jnp.split(x, 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


class Attention(nnx.Module):
  """Causal self-attention; each head of keys and values serves a group."""

  def __init__(
    self, config: DecoderConfig, adapters: Adapters, rngs: nnx.Rngs
  ) -> None:
    axes, group = Axes.of(config), ('group', config.group)
    build = maps('attn', config, adapters, rngs, bias=False)
    self.rope = config.rope
    self.q = build('q', (axes.embed,), (axes.heads, group, axes.qk_dim))
    self.k = build('k', (axes.embed,), (axes.heads, axes.qk_dim))
    self.v = build('v', (axes.embed,), (axes.heads, axes.v_dim))
    self.proj = build('proj', (axes.heads, group, axes.v_dim), (axes.embed,))
    self.prefix = prompts.Prefix(config, rngs) if config.prefixes else None

  def __call__(
    self, x_BxTxD: Array, queries: int, keys: Keys, real_BxT: Array
  ) -> Array:
    """Attends from the first `queries` tokens to these and later ones."""
    q = rotate(self.q(x_BxTxD[:, :queries], keys('attn.q')), self.rope)
    k = rotate(self.k(x_BxTxD, keys('attn.k')), self.rope)
    v = self.v(x_BxTxD, keys('attn.v'))
    # A group's queries read the same keys: they are so many more tokens.
    B, Q, H, G, E = q.shape
    q = jnp.moveaxis(q, 3, 2).reshape(B, Q * G, H, E)
    query_QG = jnp.arange(Q * G) // G
    seen_QGxT = jnp.arange(x_BxTxD.shape[1]) >= query_QG[:, None]
    real_BxS = real_BxT
    if self.prefix is not None:
      turn = lambda key: rotate_back(key, real_BxT, self.rope)
      k, v, real_BxS = self.prefix(k, v, real_BxT, turn)
      seen_QGxT = prompts.extend(seen_QGxT, len(self.prefix.key[...]), 0)
    mixed = primitives.attention(q, k, v, real_BxS, seen_QGxT)
    mixed = jnp.moveaxis(mixed.reshape(B, Q, G, H, -1), 2, 3)
    return self.proj(mixed, keys('attn.proj'))


class Mlp(nnx.Module):
  """A linear map of silu(gate) * up."""

  def __init__(
    self, config: DecoderConfig, adapters: Adapters, rngs: nnx.Rngs
  ) -> None:
    axes = Axes.of(config)
    build = maps('mlp', config, adapters, rngs, bias=False)
    self.gate = build('gate', (axes.embed,), (axes.ffn,))
    self.up = build('up', (axes.embed,), (axes.ffn,))
    self.down = build('down', (axes.ffn,), (axes.embed,))

  def __call__(self, x: Array, keys: Keys) -> Array:
    """Maps [..., D] to [..., D]."""
    gate = jax.nn.silu(self.gate(x, keys('mlp.gate')))
    return self.down(gate * self.up(x, keys('mlp.up')), keys('mlp.down'))


class DecoderBlock(nnx.Module):
  """A pre-norm block; as built, a stack of them."""

  def __init__(
    self, config: DecoderConfig, adapters: Adapters, rngs: nnx.Rngs
  ) -> None:
    self.norm1 = norm(config, (Axes.of(config).layer,))
    self.attn = Attention(config, adapters, rngs)
    self.norm2 = norm(config, (Axes.of(config).layer,))
    self.mlp = Mlp(config, adapters, rngs)
    add_fedadapters(self, config, adapters, rngs)

  def __call__(
    self, x_BxTxD: Array, queries: int, keys: Keys, real_BxT: Array
  ) -> Array:
    """Updates the first `queries` tokens; the others only serve as keys."""
    x, read = x_BxTxD[:, :queries], self.norm1(x_BxTxD)
    branch = self.attn(read, queries, keys, real_BxT)
    x = x + adapted(self, 'attn', read[:, :queries], branch)
    read = self.norm2(x)
    return x + adapted(self, 'mlp', read, self.mlp(read, keys))


def norm(
  config: DecoderConfig, stacked: tuple[linear.Axis, ...] = ()
) -> linear.RMSNorm:
  """Builds a norm over the model's width."""
  width = Axes.of(config).embed
  return linear.RMSNorm(width, stack=stacked, eps=config.eps, kind=kind(config))

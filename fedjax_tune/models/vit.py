"""A vision transformer that runs any selection of its blocks.

Blocks are stacked on a leading layer axis. A client that holds the blocks
`layers` gets a stack of adapters with that many layers; the frozen weights stay
one shared stack, from which the scan takes each block by its id.
"""

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from fedjax_tune.models import (
  common_head,
  linear,
  primitives,
  prompts,
  stack,
)
from fedjax_tune.models.block import Adapters, Block, Keys
from fedjax_tune.models.sizes import ViTConfig as ViTConfig
from fedjax_tune.models.sizes import kind

# Channel means and standard deviations of ImageNet, in [0, 1].
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Embedding(nnx.Module):
  """Turns patches into tokens, with prefix tokens in front and positions."""

  def __init__(
    self, config: ViTConfig, adapters: Adapters, rngs: nnx.Rngs
  ) -> None:
    embed = ('embed', config.embed)
    self.config = config
    self.patch = linear.Linear(
      (('patch', config.patch**2 * 3),),
      (embed,),
      kind=kind(config),
      adapter=adapters.get('embed.patch'),
      rngs=rngs,
    )
    prefix = (('prefix', config.num_prefix), embed)
    position = (('token', config.num_tokens), embed)
    self.prefix = linear.variable(
      kind(config), jnp.zeros((config.num_prefix, config.embed)), prefix
    )
    self.position = linear.variable(
      kind(config), jnp.zeros((config.num_tokens, config.embed)), position
    )
    if config.prompts:
      bound = prompts.image_bound(config.patch, config.embed)
      self.prompt = prompts.draw(config.prompts, config.embed, bound, rngs)

  def __call__(self, images: Array, key: jax.Array | None) -> Array:
    """Maps images [B, h, w, 3] to tokens, with prompts; normalises uint8."""
    c = self.config
    if images.dtype == jnp.uint8:
      mean, std = (np.asarray(s, np.float32) * 255 for s in (c.mean, c.std))
      images = (images.astype(jnp.float32) - mean) / std
    grid = c.image_size // c.patch
    patches = images.reshape(-1, grid, c.patch, grid, c.patch, 3)
    patches = patches.swapaxes(2, 3).reshape(-1, grid * grid, c.patch**2 * 3)
    # Layer id -1 would be negative; depth is free, since ids end below it.
    keys = Keys(key, c.depth)
    tokens = self.patch(patches, keys('embed.patch'))
    prefix = self.prefix[...]
    prefix = jnp.broadcast_to(prefix, (tokens.shape[0], *prefix.shape))
    tokens = jnp.concatenate([prefix, tokens], axis=1)
    tokens = tokens + self.position[...]
    tokens = primitives.dropout(tokens, keys('embed.output'), c.dropout)
    if c.prompts:
      tokens = prompts.insert(tokens, self.prompt, c.num_prefix)
    return tokens


class ViT(nnx.Module):
  """A vision transformer for classification by its class token."""

  def __init__(
    self,
    config: ViTConfig,
    adapters: Adapters | None = None,
    *,
    remat: bool = False,
    unroll: bool = False,
    rngs: nnx.Rngs,
  ) -> None:
    adapters = adapters or {}
    embed = ('embed', config.embed)
    self.remat, self.unroll = remat, unroll
    self.embed = Embedding(config, adapters, rngs)
    self.blocks = Block(config, adapters, rngs)
    self.norm = linear.LayerNorm(embed, eps=config.eps, kind=kind(config))
    self.head = common_head.head(config, rngs)

  def start(
    self, images: Array, key: jax.Array | None = None
  ) -> tuple[Float[Array, 'B T D'], None]:
    """Returns what the first block reads, and that no token is padding."""
    return self.embed(images, key), None

  def features(
    self, x_BxTxD: Float[Array, 'B T D'], key: jax.Array | None = None
  ) -> Float[Array, 'B D']:
    """Returns what the head reads of the tokens after the last block."""
    del key
    return self.norm(x_BxTxD[:, 0])

  def tokens(
    self,
    images: Array,
    layers_N: Int[Array, ' N'],
    *,
    key: jax.Array | None = None,
  ) -> Float[Array, 'B T D']:
    """Returns all tokens but prompts after the blocks and the final norm."""
    x, _ = self._run(images, layers_N, key, pool=False)
    c = self.embed.config
    return prompts.remove(self.norm(x), c.prompts, c.num_prefix)

  def class_tokens(
    self,
    images: Array,
    layers_N: Int[Array, ' N'],
    *,
    key: jax.Array | None = None,
  ) -> Float[Array, 'N B D']:
    """Returns the class token after each selected block, normalised.

    In the last block only the class token has a query, an output projection
    and an MLP: nothing reads the other tokens.

    Args:
      images: uint8 or normalised float [B, h, w, 3].
      layers_N: Ids of the blocks to run, in this order.
      key: Turns dropout on.
    """
    last_Bx1xD, exits_MxBxD = self._run(images, layers_N, key, pool=True)
    stacked = jnp.concatenate([exits_MxBxD, last_Bx1xD[None, :, 0]])
    return self.norm(stacked)

  def __call__(
    self,
    images: Array,
    layers_N: Int[Array, ' N'],
    *,
    key: jax.Array | None = None,
  ) -> Float[Array, 'B K']:
    """Returns the logits after the selected blocks."""
    last_Bx1xD, _ = self._run(images, layers_N, key, pool=True)
    return self.head(self.features(last_Bx1xD))

  def _run(self, images, layers_N, key, pool):
    """Runs the blocks; returns the tokens and the earlier class tokens."""
    x_BxTxD, _ = self.start(images, key)
    return stack.run_blocks(
      self.blocks,
      x_BxTxD,
      layers_N,
      key,
      pool=pool,
      remat=self.remat,
      unroll=self.unroll,
    )

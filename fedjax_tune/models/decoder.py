"""Decoders of the Llama architecture, running any selection of their blocks.

They have RMSNorm before each branch, rotary positions, grouped-query attention
and a gated MLP (arXiv 2302.13971, 2104.09864, 2305.13245, 2002.05202), without
biases. Blocks are stacked and selected as in `vit.py`.

Inside, texts run backwards: the last real token comes first, and padding stays
behind. So the token that the head reads is the first one, as in every other
model here. Attention is not affected, since rotary scores depend only on
distances; a token sees itself and what comes *after* it. Trained tokens are in
front of the words, as in peft (`prompts.py`), and therefore behind them in the
reversed order.
"""

from flax import nnx
from jax import Array
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int
import numpy as np

from fedjax_tune.models import (
  common_head,
  linear,
  primitives,
  prompts,
  stack,
)
from fedjax_tune.models.block import Adapters
from fedjax_tune.models.decoder_block import DecoderBlock, norm
from fedjax_tune.models.sizes import DecoderConfig, kind
from fedjax_tune.typing import Tokens


class Embedding(nnx.Module):
  """The word table, and prompts if there are any."""

  def __init__(self, config: DecoderConfig, rngs: nnx.Rngs) -> None:
    self.config = config
    axes = (('vocab', config.vocab), ('embed', config.embed))
    shape = (config.vocab, config.embed)
    self.word = linear.variable(kind(config), jnp.zeros(shape), axes)
    if config.prompts:
      bound = prompts.text_bound()
      self.prompt = prompts.draw(config.prompts, config.embed, bound, rngs)

  def __call__(self, ids_BxT: Int[Array, 'B T']) -> Float[Array, 'B T D']:
    """Maps token numbers to tokens.

    Raises:
      ValueError: The texts are longer than the model's positions.
    """
    longest = self.config.max_tokens
    if ids_BxT.shape[1] > longest:
      raise ValueError(
        f'inputs.ids has {ids_BxT.shape[1]} tokens; the model has positions '
        f'for {longest}.'
      )
    # A number beyond the table gives NaN, which no loss overlooks.
    return jnp.take(self.word[...], ids_BxT, axis=0).astype(jnp.float32)


class Decoder(nnx.Module):
  """A decoder with a head that classifies, or one that predicts tokens.

  The classifier is new and reads the last real token, like Hugging Face's
  `LlamaForSequenceClassification`. The head that predicts tokens is pretrained:
  `lm_head`, or the word table if the two are tied.
  """

  def __init__(
    self,
    config: DecoderConfig,
    adapters: Adapters | None = None,
    *,
    remat: bool = False,
    unroll: bool = False,
    rngs: nnx.Rngs,
  ) -> None:
    embed = (('embed', config.embed),)
    self.config = config
    self.remat, self.unroll = remat, unroll
    self.embed = Embedding(config, rngs)
    self.blocks = DecoderBlock(config, adapters or {}, rngs)
    self.norm = norm(config)
    if config.num_classes:
      self.head = common_head.head(config, rngs, bias=False)
    elif not config.tied:
      words = (('vocab', config.vocab),)
      self.lm_head = linear.Linear(
        embed, words, kind=kind(config), bias=False, rngs=rngs
      )

  def start(
    self, inputs: Tokens, key: Array | None = None
  ) -> tuple[Float[Array, 'B N D'], Bool[Array, 'B N']]:
    """Returns what the first block reads, reversed, and which tokens are real.

    There are N = T tokens, plus the prompts if there are any.
    """
    del key
    order_BxN, num = self.order(inputs), self.config.prompts
    if not num:
      ids_BxT = jnp.take_along_axis(inputs.ids, order_BxN, axis=1)
      return self.embed(ids_BxT), ids_BxT != self.config.pad
    x_BxTxD = self.embed(jnp.asarray(inputs.ids))
    x_BxNxD = prompts.insert(x_BxTxD, self.embed.prompt, 0)
    real_BxN = prompts.extend(inputs.ids != self.config.pad, num, 0)
    return (
      jnp.take_along_axis(x_BxNxD, order_BxN[..., None], axis=1),
      jnp.take_along_axis(real_BxN, order_BxN, axis=1),
    )

  def features(
    self, x_BxTxD: Float[Array, 'B T D'], key: Array | None = None
  ) -> Float[Array, 'B D']:
    """Returns what the head reads of the tokens after the last block."""
    del key
    return self.norm(x_BxTxD[:, 0])

  def tokens(
    self,
    inputs: Tokens,
    layers_N: Int[Array, ' N'],
    *,
    key: Array | None = None,
  ) -> Float[Array, 'B T D']:
    """Returns all tokens after the selected blocks, normalised."""
    order_BxN = self.order(inputs)
    x_BxNxD, _ = self._run(inputs, layers_N, key, pool=False)
    x_BxNxD = jnp.take_along_axis(x_BxNxD, order_BxN[..., None], axis=1)
    return self.norm(prompts.remove(x_BxNxD, self.config.prompts, 0))

  def class_tokens(
    self,
    inputs: Tokens,
    layers_N: Int[Array, ' N'],
    *,
    key: Array | None = None,
  ) -> Float[Array, 'N B D']:
    """Returns the last real token after each selected block, normalised.

    Args:
      inputs: Texts [B, T].
      layers_N: Ids of the blocks to run, in this order.
      key: Turns dropout on.
    """
    last_Bx1xD, exits_MxBxD = self._run(inputs, layers_N, key, pool=True)
    return self.norm(jnp.concatenate([exits_MxBxD, last_Bx1xD[None, :, 0]]))

  def __call__(
    self,
    inputs: Tokens,
    layers_N: Int[Array, ' N'],
    *,
    key: Array | None = None,
  ) -> Float[Array, 'B K'] | Float[Array, 'B T V']:
    """Returns the logits of the classes, or of each next token."""
    if self.config.num_classes:
      last_Bx1xD, _ = self._run(inputs, layers_N, key, pool=True)
      return self.head(self.features(last_Bx1xD))
    x_BxTxD = self.tokens(inputs, layers_N, key=key)
    if self.config.tied:
      flat = x_BxTxD.reshape(-1, x_BxTxD.shape[-1])
      word = self.embed.word
      mixed = isinstance(word, linear.Mixed)
      logits = primitives.dense(flat, word[...], mixed=mixed, back=True)
      return logits.reshape(*x_BxTxD.shape[:-1], -1)
    return self.lm_head(x_BxTxD)

  def order(self, inputs: Tokens) -> Int[Array, 'B N']:
    """Returns the order that reverses each text; it is its own inverse.

    Prompts, if there are any, come first in the original order.
    """
    words, num = inputs.ids.shape[1], self.config.prompts
    real_BxT = inputs.ids != self.config.pad
    last_B = jnp.max(jnp.where(real_BxT, np.arange(words), 0), axis=1)
    token_N = np.arange(num + words)
    return (last_B[:, None] + num - token_N) % len(token_N)

  def _run(self, inputs, layers_N, key, pool):
    """Runs blocks on reversed texts; returns tokens and earlier last ones."""
    x_BxTxD, real_BxT = self.start(inputs)
    return stack.run_blocks(
      self.blocks,
      x_BxTxD,
      layers_N,
      key,
      real_BxT,
      pool=pool,
      remat=self.remat,
      unroll=self.unroll,
    )

"""BERT, RoBERTa and DistilBERT, running any selection of their blocks.

The three differ in their embedding, and in what is between the first token and
the head. Blocks are stacked and selected as in `vit.py`.
"""

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from fedjax_tune.models import (
  common_head,
  linear,
  primitives,
  prompts,
  stack,
)
from fedjax_tune.models.block import Adapters, Keys, PostNormBlock
from fedjax_tune.models.sizes import TextConfig as TextConfig
from fedjax_tune.models.sizes import kind
from fedjax_tune.typing import Tokens


class Embedding(nnx.Module):
  """Sums of word, position and type, normalised."""

  def __init__(self, config: TextConfig, rngs: nnx.Rngs) -> None:
    self.config = config

    def table(name: str, rows: int) -> nnx.Variable:
      axes = ((name, rows), ('embed', config.embed))
      return linear.variable(
        kind(config), jnp.zeros((rows, config.embed)), axes
      )

    self.word = table('vocab', config.vocab)
    self.position = table('token', config.positions)
    if config.types:
      self.type = table('type', config.types)
    self.norm = linear.LayerNorm(
      ('embed', config.embed), eps=config.eps, kind=kind(config)
    )
    if config.prompts:
      bound = prompts.text_bound()
      self.prompt = prompts.draw(config.prompts, config.embed, bound, rngs)

  def __call__(
    self,
    inputs: Tokens,
    real_BxT: Bool[Array, 'B T'],
    key: Array | None = None,
  ) -> Array:
    """Maps token numbers to tokens [B, T, D], with prompts among them.

    Prompts are normalised like words.

    Raises:
      ValueError: The texts are longer than the model's positions.
    """
    longest = self.config.max_tokens
    if inputs.ids.shape[1] > longest:
      raise ValueError(
        f'inputs.ids has {inputs.ids.shape[1]} tokens; the model has positions '
        f'for {longest}.'
      )
    # A number beyond a table gives NaN, which no loss overlooks.
    x_BxTxD = jnp.take(self.word[...], inputs.ids, axis=0).astype(jnp.float32)
    if self.config.types:
      x_BxTxD += jnp.take(self.type[...], inputs.types, axis=0)
    x_BxTxD += self._positions(real_BxT)
    if self.config.prompts:
      x_BxTxD = prompts.insert(x_BxTxD, self.prompt, 1)
    return primitives.dropout(self.norm(x_BxTxD), key, self.config.dropout)

  def _positions(self, real_BxT: Array) -> Array:
    """Returns the vectors of positions; RoBERTa counts only real tokens."""
    if self.config.family != 'roberta':
      return self.position[: real_BxT.shape[1]]
    number_BxT = jnp.cumsum(real_BxT, axis=1) * real_BxT + self.config.pad
    return jnp.take(self.position[...], number_BxT, axis=0)


class TextEncoder(nnx.Module):
  """A text encoder with Hugging Face's head for texts, or for spans.

  BERT's pooler is pretrained; the dense map before RoBERTa's and DistilBERT's
  classifier is new, and therefore trains with the head.
  """

  def __init__(
    self,
    config: TextConfig,
    adapters: Adapters | None = None,
    *,
    remat: bool = False,
    unroll: bool = False,
    rngs: nnx.Rngs,
  ) -> None:
    embed = ('embed', config.embed)
    self.config = config
    self.remat, self.unroll = remat, unroll
    self.embed = Embedding(config, rngs)
    self.blocks = PostNormBlock(config, adapters or {}, rngs)
    new = config.family != 'bert'
    # A common head takes the place of what is new.
    if not config.span and not (new and config.code):
      self.pooler = linear.Linear(
        (embed,),
        (embed,),
        kind=nnx.Param if new else kind(config),
        rngs=rngs,
      )
    self.head = common_head.head(config, rngs)

  def start(
    self, inputs: Tokens, key: Array | None = None
  ) -> tuple[Float[Array, 'B T D'], Bool[Array, 'B T']]:
    """Returns what the first block reads, and which tokens are real."""
    real_BxT = inputs.ids != self.config.pad
    x_BxTxD = self.embed(inputs, real_BxT, self._keys(key)('embed.output'))
    return x_BxTxD, prompts.extend(real_BxT, self.config.prompts, 1)

  def features(
    self, x_BxTxD: Float[Array, 'B T D'], key: Array | None = None
  ) -> Float[Array, 'B D']:
    """Returns what the head reads of the tokens after the last block."""
    return self._pool(x_BxTxD[:, 0], self._keys(key))

  def tokens(
    self,
    inputs: Tokens,
    layers_N: Int[Array, ' N'],
    *,
    key: Array | None = None,
  ) -> Float[Array, 'B T D']:
    """Returns all tokens but prompts after the selected blocks."""
    x, _ = self._run(inputs, layers_N, key, pool=False)
    return prompts.remove(x, self.config.prompts, 1)

  def class_tokens(
    self,
    inputs: Tokens,
    layers_N: Int[Array, ' N'],
    *,
    key: Array | None = None,
  ) -> Float[Array, 'N B D']:
    """Returns the first token after each selected block, ready for the head.

    Args:
      inputs: Texts [B, T].
      layers_N: Ids of the blocks to run, in this order.
      key: Turns dropout on.
    """
    last_Bx1xD, exits_MxBxD = self._run(inputs, layers_N, key, pool=True)
    exits_NxBxD = jnp.concatenate([exits_MxBxD, last_Bx1xD[None, :, 0]])
    return self._pool(exits_NxBxD, self._keys(key))

  def spans(
    self,
    inputs: Tokens,
    layers_N: Int[Array, ' N'],
    *,
    key: Array | None = None,
  ) -> Float[Array, 'B T K']:
    """Returns the head's outputs for every token."""
    tokens_BxTxD = self.tokens(inputs, layers_N, key=key)
    if self.config.family == 'distilbert':  # Alone among the three.
      rate, before = self.config.dropout, self._keys(key)('head.input')
      tokens_BxTxD = primitives.dropout(tokens_BxTxD, before, rate)
    return self.head(tokens_BxTxD)

  def __call__(
    self,
    inputs: Tokens,
    layers_N: Int[Array, ' N'],
    *,
    key: Array | None = None,
  ) -> Float[Array, 'B K'] | Float[Array, 'B T K']:
    """Returns the logits after the selected blocks, or of each token."""
    if self.config.span:
      return self.spans(inputs, layers_N, key=key)
    last_Bx1xD, _ = self._run(inputs, layers_N, key, pool=True)
    return self.head(self.features(last_Bx1xD, key))

  def _pool(self, x: Array, keys: Keys) -> Array:
    """Returns what the head reads."""
    family, rate = self.config.family, self.config.dropout
    act = jax.nn.relu if family == 'distilbert' else jnp.tanh
    if not hasattr(self, 'pooler'):
      return _drop(x, keys('head.input'), rate)
    if family == 'roberta':
      x = _drop(x, keys('head.hidden'), rate)
    return _drop(act(self.pooler(x)), keys('head.input'), rate)

  def _keys(self, key: Array | None) -> Keys:
    """Returns the keys outside the blocks, whose ids end below the depth."""
    return Keys(key, self.config.depth)

  def _run(self, inputs, layers_N, key, pool):
    """Runs the blocks; returns the tokens and the earlier first tokens."""
    x_BxTxD, real_BxT = self.start(inputs, key)
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


def _drop(
  x: Float[Array, '... B D'], key: Array | None, rate: float
) -> Float[Array, '... B D']:
  """Drops features of texts, for several blocks or for one.

  The keys of texts go along the first axis, so texts are moved there.
  """
  by_text = primitives.dropout(jnp.moveaxis(x, -2, 0), key, rate)
  return jnp.moveaxis(by_text, 0, -2)

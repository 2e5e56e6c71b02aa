"""Trained tokens: prompts in the sequence, prefixes in every block.

Both call the axis of these tokens 'prompt'.
"""

from collections.abc import Callable
import math

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fedjax_tune.models import linear
from fedjax_tune.models.sizes import Axes, BlockSizes

# Of BERT's parameters before pretraining (arXiv 1810.04805, the code).
DEVIATION = 0.02


def draw(num: int, embed: int, bound: float, rngs: nnx.Rngs) -> nnx.Variable:
  """Draws prompts [num, embed], uniform within the bound.

  Prompt tuning: Lester, Al-Rfou, Constant, arXiv 2104.08691; for images
  VPT-shallow, Jia et al., arXiv 2203.12119. Prompts stand behind the class
  token (and DeiT's distillation token), have no position, and leave the
  positions of other tokens as they are; every token attends to them, and no
  head reads them.

  peft's prompt tuning differs for encoders: it puts prompts in front of the
  words. So they take the first positions, all words move on by `num`, and
  BERT's pooler reads the first prompt instead of the class token. In decoders
  prompts are where peft has them: the head reads the last word, and only
  distances of positions matter.
  """
  shape = (num, embed)
  value = jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound)
  return linear.variable(nnx.Param, value, (('prompt', num), ('embed', embed)))


def image_bound(patch: int, embed: int) -> float:
  """Returns VPT's bound: Xavier's, of a map from a patch to a token."""
  return math.sqrt(6 / (3 * patch**2 + embed))


def text_bound() -> float:
  """Returns the bound of the uniform distribution with the words' deviation."""
  return DEVIATION * math.sqrt(3)


def repeat(trained: nnx.Variable, x: Array) -> Array:
  """Returns a parameter once for each example of `x`."""
  value = trained[...]
  return jnp.broadcast_to(value, (len(x), *value.shape))


def insert(
  x_BxTxD: Float[Array, 'B T D'], prompt: nnx.Variable, at: int
) -> Float[Array, 'B N D']:
  """Puts prompts before token `at`."""
  prompt_BxPxD = repeat(prompt, x_BxTxD)
  return jnp.concatenate([x_BxTxD[:, :at], prompt_BxPxD, x_BxTxD[:, at:]], 1)


def remove(
  x_BxNxD: Float[Array, 'B N D'], num: int, at: int
) -> Float[Array, 'B T D']:
  """Takes the `num` prompts out that begin at token `at`."""
  if not num:
    return x_BxNxD
  return jnp.concatenate([x_BxNxD[:, :at], x_BxNxD[:, at + num :]], 1)


def extend(
  real_BxT: Bool[Array, 'B T'], num: int, at: int
) -> Bool[Array, 'B N']:
  """Marks `num` more tokens, put before token `at`, as real."""
  if not num:
    return real_BxT
  more_BxP = jnp.ones((len(real_BxT), num), bool)
  return jnp.concatenate([real_BxT[:, :at], more_BxP, real_BxT[:, at:]], 1)


class Prefix(nnx.Module):
  """Trained keys and values of each block, to which every token attends.

  Prefix tuning: Li and Liang, arXiv 2101.00190, without its reparametrisation
  (as in P-tuning v2, arXiv 2110.07602, and in peft by default); a relative of
  VPT-deep (arXiv 2203.12119), whose prompts of each block are tokens, from
  which the block makes keys and values. Positions of words stay as they are;
  peft's BERT counts them from the end of the prefix. So does peft's Llama,
  whose queries are rotated by these positions, and so does ours
  (`decoder_block.py`).

  Both are drawn from a normal distribution with deviation 0.02, so that keys
  and values of a prefix start close to 0; peft's deviation is 1.

  Attributes:
    key: [layer, prompt, heads, qk_dim].
    value: [layer, prompt, heads, v_dim].
  """

  def __init__(self, config: BlockSizes, rngs: nnx.Rngs) -> None:
    axes, prompt = Axes.of(config), ('prompt', config.prefixes)

    def tokens(width: linear.Axis) -> nnx.Variable:
      wide = (axes.layer, prompt, axes.heads, width)
      shape = tuple(size for _, size in wide)
      drawn = DEVIATION * jax.random.normal(rngs.params(), shape)
      return linear.variable(nnx.Param, drawn, wide)

    self.key, self.value = tokens(axes.qk_dim), tokens(axes.v_dim)

  def __call__(
    self,
    k_BxSxHxE: Array,
    v_BxSxHxV: Array,
    real_BxS: Bool[Array, 'B S'] | None,
    turn: Callable[[Array], Array] = lambda key: key,
  ) -> tuple[Array, Array, Bool[Array, 'B N'] | None]:
    """Puts one block's prefix before its keys and values, as real tokens.

    Args:
      k_BxSxHxE: Keys.
      v_BxSxHxV: Values.
      real_BxS: Which tokens are real; None if all are.
      turn: A function applied to the prefix's keys first.
    """
    k = jnp.concatenate([turn(repeat(self.key, k_BxSxHxE)), k_BxSxHxE], 1)
    v = jnp.concatenate([repeat(self.value, v_BxSxHxV), v_BxSxHxV], 1)
    if real_BxS is not None:
      real_BxS = extend(real_BxS, len(self.key[...]), 0)
    return k, v, real_BxS

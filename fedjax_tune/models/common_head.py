"""A head that models of different width share, on a common code.

This is ours, not HeteroTune's, whose public text says nothing about heads. A
model's features f, which its own head would read, become z = (f - mean) A, and
the head reads z. `mean` and A belong to one model and never change;
`alignment.py` computes them so that z means the same in every model.
"""

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp

from fedjax_tune.models import linear
from fedjax_tune.models.sizes import Config


class CommonHead(linear.Linear):
  """Logits of a code, zero at first, so that no client's draw is used by all.

  Attributes:
    mean: [D], frozen; map: [D, code], frozen.
    kernel: [code, class]; bias: [class].
  """

  def __init__(self, config: Config, rngs: nnx.Rngs) -> None:
    embed, code = ('embed', config.embed), ('code', config.code)
    classes = ('class', config.num_classes)
    super().__init__((code,), (classes,), kind=nnx.Param, rngs=rngs)

    def zeros(kind: type[linear.V], *names: linear.Axis) -> linear.V:
      shape = tuple(size for _, size in names)
      return linear.variable(kind, jnp.zeros(shape), names)

    self.kernel = zeros(nnx.Param, code, classes)
    self.bias = zeros(nnx.Param, classes)
    self.mean = zeros(linear.Frozen, embed)
    self.map = zeros(linear.Frozen, embed, code)

  def __call__(self, x: Array, key: jax.Array | None = None) -> Array:
    """Maps features [..., D] to logits [..., K]."""
    return super().__call__((x - self.mean[...]) @ self.map[...], key)


def head(config: Config, rngs: nnx.Rngs, *, bias: bool = True) -> linear.Linear:
  """Builds a model's head: its own, or a common one if the sizes say so.

  Args:
    config: The model's sizes.
    rngs: Draws the model's own head.
    bias: Whether the model's own head has a bias; a common head has one.
  """
  if config.code:
    return CommonHead(config, rngs)
  ins, outs = ('embed', config.embed), ('class', config.num_classes)
  return linear.Linear((ins,), (outs,), kind=nnx.Param, bias=bias, rngs=rngs)

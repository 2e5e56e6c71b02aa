"""A head that models of different width have in common, on a common code.

Ours, not HeteroTune's: its public text says nothing of heads. A model's
features f, what its own head would read, become z = (f - mean) A, and the head
reads z. `mean` and A belong to one model and never change; `alignment.py`
computes them so that z means the same in every model.
"""

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp

from fedjax_tune.models import linear
from fedjax_tune.models.sizes import Config


class CommonHead(linear.Linear):
  """Logits of a code, zero at first, so that nobody's draw is everyone's.

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
  """Builds a model's head: its own, or where the sizes say so a common one.

  Args:
    config: The model's sizes.
    rngs: Draws a head of the model's own.
    bias: Whether that has a bias; a common one has.
  """
  if config.code:
    return CommonHead(config, rngs)
  ins, outs = ('embed', config.embed), ('class', config.num_classes)
  return linear.Linear((ins,), (outs,), kind=nnx.Param, bias=bias, rngs=rngs)

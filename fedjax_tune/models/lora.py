"""LoRA on a linear map: its rank and scale, and how A and B start."""

import dataclasses
import math

from flax import nnx
import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Lora:
  """LoRA on one linear map, arXiv 2106.09685.

  Attributes:
    rank: The rank; a client may hold less.
    scale: alpha / rank.
    dropout: Rate of the dropout on the adapter's input.
    own_scale: Whether a client's scale is alpha over the rank that it holds;
      otherwise all clients have `scale`.
  """

  rank: int
  scale: float
  dropout: float
  own_scale: bool = False

  def scale_of(self, rank: int) -> float:
    """Returns the scale of a client that holds some of the ranks."""
    return self.scale * self.rank / rank if self.own_scale else self.scale

  def init(
    self,
    stack: tuple[int, ...],
    ins: tuple[int, ...],
    outs: tuple[int, ...],
    rngs: nnx.Rngs,
  ) -> tuple[jax.Array, jax.Array]:
    """Returns A [*stack, *ins, rank] and B [*stack, rank, *outs] at the start.

    B is 0, so that the adapted map is the pretrained one. A is U(+-1/sqrt(n))
    of n inputs, peft's kaiming_uniform(a=sqrt(5)).
    """
    bound = 1 / math.sqrt(math.prod(ins))
    a = jax.random.uniform(
      rngs.params(), (*stack, *ins, self.rank), minval=-bound, maxval=bound
    )
    return a, jnp.zeros((*stack, self.rank, *outs))

"""Linear maps and norms whose parameters name their axes."""

import math
from typing import Any, TypeVar

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from fedjax_tune.models import primitives
from fedjax_tune.models.lora import Lora


class Frozen(nnx.Variable):
  """A parameter of the foundation model that no client trains."""


class Tuned(nnx.Param):
  """A parameter of the foundation model that clients train."""


class Mixed(Tuned):
  """A tuned kernel whose products have bfloat16 factors.

  The kernel itself and its gradient are float32. It has no adapter.
  """


V = TypeVar('V', bound=nnx.Variable)

# One axis of a parameter: its name and its size.
Axis = tuple[str, int]


def _sizes(axes: tuple[Axis, ...]) -> tuple[int, ...]:
  return tuple(size for _, size in axes)


def _names(axes: tuple[Axis, ...]) -> tuple[str, ...]:
  return tuple(name for name, _ in axes)


def variable(kind: type[V], value: Array, axes: tuple[Axis, ...]) -> V:
  """Wraps an array in an NNX variable that carries its axis names."""
  return kind(value, axes=_names(axes))


class Linear(nnx.Module):
  """y = x W + b over named input and output axes, with LoRA if adapted.

  Attributes:
    kernel: [*stack, *ins, *outs]; bias: [*stack, *outs], or None.
    lora_a: [*stack, *ins, rank]; lora_b: [*stack, rank, *outs].
  """

  def __init__(
    self,
    ins: tuple[Axis, ...],
    outs: tuple[Axis, ...],
    *,
    stack: tuple[Axis, ...] = (),
    kind: type = Frozen,
    adapter: Lora | None = None,
    bias: bool = True,
    rngs: nnx.Rngs,
  ) -> None:
    self.num_ins = len(ins)
    self.adapter = adapter
    # U(+-1/sqrt(fan_in)) is torch's Linear default. Pretrained weights are
    # loaded afterwards.
    bound = 1 / math.sqrt(math.prod(_sizes(ins)))

    def uniform(axes: tuple[Axis, ...]) -> Array:
      shape = _sizes(axes)
      return jax.random.uniform(
        rngs.params(), shape, minval=-bound, maxval=bound
      )

    new = not issubclass(kind, (Frozen, Tuned))
    fill = uniform if new else lambda a: jnp.zeros(_sizes(a))
    self.kernel = variable(kind, fill(stack + ins + outs), stack + ins + outs)
    biases = variable(kind, fill(stack + outs), stack + outs) if bias else None
    # Any, since a layer without one asks before it reads.
    self.bias: Any = biases
    if adapter:
      rank = (('rank', adapter.rank),)
      axes_a, axes_b = stack + ins + rank, stack + rank + outs
      a, b = adapter.init(_sizes(stack), _sizes(ins), _sizes(outs), rngs)
      self.lora_a: nnx.Variable = variable(nnx.LoRAParam, a, axes_a)
      self.lora_b = variable(nnx.LoRAParam, b, axes_b)

  def __call__(self, x: Array, key: jax.Array | None = None) -> Array:
    """Maps [..., *ins] to [..., *outs]; `key` turns the adapter's dropout on."""
    kernel = self.kernel[...]
    outs = kernel.shape[self.num_ins :]
    lead = x.shape[: x.ndim - self.num_ins]
    width = math.prod(kernel.shape[: self.num_ins])
    flat = x.reshape(-1, width)
    kernel = kernel.reshape(width, -1)
    if self.adapter is None:
      mixed = isinstance(self.kernel, Mixed)
      y: Array = primitives.dense(flat, kernel, mixed=mixed)
    else:
      rate, seed = 0.0, jnp.zeros(2, jnp.uint32)
      if key is not None and self.adapter.dropout:
        rate, seed = self.adapter.dropout, primitives.words(key)
      y = primitives.lora_dense(
        flat,
        kernel,
        self.lora_a[...].reshape(width, -1),
        self.lora_b[...].reshape(-1, kernel.shape[1]),
        seed,
        self.adapter.scale_of(self.lora_a[...].shape[-1]),
        rate,
      )
    y = y.reshape(*lead, *outs)
    return y if self.bias is None else y + self.bias[...]


class LayerNorm(nnx.Module):
  """Layer normalisation over the model width."""

  def __init__(
    self,
    width: Axis,
    *,
    stack: tuple[Axis, ...] = (),
    eps: float,
    kind: type = Frozen,
  ) -> None:
    self.eps = eps
    shape = _sizes((*stack, width))
    self.scale = variable(kind, jnp.ones(shape), (*stack, width))
    self.bias = variable(kind, jnp.zeros(shape), (*stack, width))

  def __call__(self, x: Array) -> Array:
    """Normalises the last axis."""
    return primitives.layer_norm(x, self.scale[...], self.bias[...], self.eps)


class RMSNorm(nnx.Module):
  """Division by the root mean square over the model width."""

  def __init__(
    self,
    width: Axis,
    *,
    stack: tuple[Axis, ...] = (),
    eps: float,
    kind: type = Frozen,
  ) -> None:
    self.eps = eps
    shape = _sizes((*stack, width))
    self.scale = variable(kind, jnp.ones(shape), (*stack, width))

  def __call__(self, x: Array) -> Array:
    """Normalises the last axis."""
    return primitives.rms_norm(x, self.scale[...], self.eps)

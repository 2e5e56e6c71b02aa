"""What a client of each class holds, moves and computes."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_tune import selection
from fedjax_tune.engine.client import Batch
from fedjax_tune.engine.flops import count_flops
from fedjax_tune.engine.group import Signature
from fedjax_tune.foundation import Models, num_params
from fedjax_tune.typing import Axes, Tree


@dataclasses.dataclass(frozen=True)
class Cost:
  """Cost of one client of one signature.

  Attributes:
    base_params: Frozen parameters on the device.
    theta_params: Trainable parameters, which it receives and sends.
    theta_bytes: Their bytes, one way.
    flops: Floating-point operations of one local step.
  """

  base_params: int
  base_bytes: int
  theta_params: int
  theta_bytes: int
  flops: int


class Traffic(NamedTuple):
  """Bytes that one client moves in one round."""

  uplink: int
  downlink: int


def client_cost(
  foundation: Models,
  method: Any,
  theta: Tree,
  axes: Axes,
  sig: Signature,
  batch: Batch,
) -> Cost:
  """Derives a client's cost from the shapes of its selection.

  Args:
    foundation: The model.
    method: For its loss.
    theta: Server parameters; only shapes are read.
    axes: Their axes.
    sig: How much the client holds.
    batch: Shapes of one local batch.
  """
  own, prefix = allocation_shapes(sig), dict(sig.prefix)
  local = held_shapes(theta, axes, sig)
  held = jax.eval_shape(
    lambda base, own: foundation.held(base, {**own, **prefix}),
    foundation.base,
    own,
  )
  key = jax.eval_shape(lambda: jax.random.key(0))

  def gradient(local, base, own, batch, key):
    alloc = {**own, **prefix}

    def objective(local):
      view = method.view(sig, local, alloc)
      model = foundation.assemble(base, view, alloc)
      loss, _ = method.loss(sig, model, alloc, batch, key, jnp.int32(0))
      return loss

    return jax.grad(objective)(local)

  flops = count_flops(gradient, local, foundation.base, own, batch, key)
  return Cost(
    num_params(held),
    num_bytes(held),
    num_params(local),
    num_bytes(local),
    flops,
  )


def held_shapes(tree: Tree, axes: Axes, sig: Signature) -> Tree:
  """Returns the shapes of what a client holds of a tree."""
  prefix = dict(sig.prefix)
  hold = lambda t, own: selection.select_within(t, axes, {**own, **prefix})
  return jax.eval_shape(hold, tree, allocation_shapes(sig))


def allocation_shapes(
  sig: Signature, clients: int | None = None
) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the shapes of an allocation's indices, of a client or a slab."""
  lead = () if clients is None else (clients,)
  return {
    axis: jax.ShapeDtypeStruct((*lead, n), np.int32) for axis, n in sig.amounts
  }


def num_bytes(tree: Tree) -> int:
  """Counts the bytes of a tree of arrays, or of shapes."""
  leaves = jax.tree.leaves(tree)
  return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)

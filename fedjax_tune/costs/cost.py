"""What a client of each class holds, moves and computes."""

import dataclasses

import jax
import jax.numpy as jnp

from fedjax_tune import selection
from fedjax_tune.costs.flops import count_flops
from fedjax_tune.engine.algorithm import Algorithm, Context
from fedjax_tune.engine.client import Batch
from fedjax_tune.engine.group import (
  InfoShapes,
  Signature,
)
from fedjax_tune.models.foundation import num_bytes, num_params
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


def client_cost(
  algorithm: Algorithm,
  sig: Signature,
  batch: Batch,
  info: InfoShapes | None = None,
) -> Cost:
  """Derives a client's cost from the shapes of its selection.

  Args:
    algorithm: The method; of its model only shapes are read.
    sig: How much the client holds.
    batch: Shapes of one local batch.
    info: Shapes of what it is told; None tells it nothing.
  """
  model, client = algorithm.model, algorithm.client
  own = sig.shapes()
  local = held_shapes(model.theta, model.axes, sig)
  held = jax.eval_shape(model.held, model.base, own)
  key = jax.eval_shape(lambda: jax.random.key(0))

  state = client.state(0) if client.state else ()
  memory = jax.eval_shape(algorithm.aggregator.init, model.theta)

  def gradient(local, base, own, info, memory, batch, key):
    lr, rnd = jnp.float32(0), jnp.int32(0)
    context = Context(sig, own, info, memory, state, lr, rnd)

    def objective(local):
      seen = client.params(local, context)
      loss, _ = client.loss(
        model.assemble(base, seen, own), batch, context, key
      )
      return loss

    return jax.grad(objective)(local)

  flops = count_flops(
    gradient, local, model.base, own, info or {}, memory, batch, key
  )
  return Cost(
    num_params(held),
    num_bytes(held),
    num_params(local),
    num_bytes(local),
    flops,
  )


def held_shapes(tree: Tree, axes: Axes, sig: Signature) -> Tree:
  """Returns the shapes of what a client holds of a tree."""
  hold = lambda t, own: selection.select_within(t, axes, own)
  return jax.eval_shape(hold, tree, sig.shapes())

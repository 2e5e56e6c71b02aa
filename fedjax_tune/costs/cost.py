"""What a client of each class holds, moves and computes."""

import dataclasses

import jax
from jax.extend.core import Jaxpr
import numpy as np
import optax

from fedjax_tune import selection
from fedjax_tune.costs import flops, memory
from fedjax_tune.engine.algorithm import Algorithm, Context
from fedjax_tune.engine.client import Batch
from fedjax_tune.engine.slabs import InfoShapes, Signature
from fedjax_tune.models.foundation import num_bytes, num_params
from fedjax_tune.typing import Axes, Tree


@dataclasses.dataclass(frozen=True)
class Cost:
  """Cost of one client of one signature.

  Attributes:
    base_params: Frozen parameters on the device.
    theta_params: Trainable parameters, which it receives and sends.
    theta_bytes: Their bytes, one way.
    flops: Floating-point operations of one local step, of a whole batch.
    memory: Bytes at the peak of a local step, on a device that holds only its
      own part: weights, gradients, the optimizer's state, activations and a
      batch. An estimate (`memory.py`), within 10% of the compiler's figure.
  """

  base_params: int
  base_bytes: int
  theta_params: int
  theta_bytes: int
  flops: int
  memory: int


def client_cost(
  algorithm: Algorithm,
  sig: Signature,
  batch: Batch,
  info: InfoShapes | None = None,
  optimizer: optax.GradientTransformation | None = None,
  place: jax.sharding.Sharding | None = None,
) -> Cost:
  """Derives a client's cost from the shapes of its selection.

  Args:
    algorithm: The method; of its model only shapes are read.
    sig: How much the client holds.
    batch: Shapes of one local batch.
    info: Shapes of what the client is told; None tells it nothing.
    optimizer: The client's optimizer; None counts no memory for its state.
    place: Placement of the arrays of a slab's program that exists already, so
      that its trace can be used here too.
  """
  model = algorithm.model
  local = held_shapes(model.theta, model.axes, sig)
  held = jax.eval_shape(model.held, model.base, sig.shapes())
  program, fixed = _program(algorithm, sig, batch, info, place)
  moments = jax.eval_shape(optimizer.init, local) if optimizer else ()
  # What it started from stays, since a client sends what it changed.
  lasting = (held, local, local, moments, batch)
  return Cost(
    num_params(held),
    num_bytes(held),
    num_params(local),
    num_bytes(local),
    flops.count(program),
    num_bytes(lasting) + memory.peak(program, fixed),
  )


def step_flops(
  algorithm: Algorithm,
  sig: Signature,
  batch: Batch,
  info: InfoShapes | None = None,
  place: jax.sharding.Sharding | None = None,
) -> int:
  """Counts the operations of one local step alone; see `client_cost`."""
  return flops.count(_program(algorithm, sig, batch, info, place)[0])


def _program(
  algorithm: Algorithm,
  sig: Signature,
  batch: Batch,
  info: InfoShapes | None,
  place: jax.sharding.Sharding | None,
) -> tuple[Jaxpr, list[bool]]:
  """Traces the gradient of a step.

  Returns:
    The program, and which of its inputs are there without being computed.
  """
  model, client = algorithm.model, algorithm.client
  own = sig.shapes()
  local = held_shapes(model.theta, model.axes, sig)
  key = jax.eval_shape(lambda: jax.random.key(0))

  state = client.state(0) if client.state else ()
  server = jax.eval_shape(algorithm.aggregator.init, model.theta)

  def gradient(local, base, own, info, server, state, lr, rnd, batch, key):
    context = Context(sig, own, info, server, state, lr, rnd)
    known = context._replace(sig=None)
    return algorithm.gradient(sig, base, known, local, batch, key)[1]

  def placed(x):
    return jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=place)

  weights = local, model.base, own, info or {}, server, state
  weights = (*weights, np.float32(0), np.int32(0))
  given = jax.tree.map(placed, (*weights, batch, key))
  program = flops.trace(gradient, *given)
  known = len(jax.tree.leaves(weights))
  return program, [i < known for i in range(len(program.invars))]


def held_shapes(tree: Tree, axes: Axes, sig: Signature) -> Tree:
  """Returns the shapes of what a client holds of a tree."""
  hold = lambda t, own: selection.select_within(t, axes, own)
  return jax.eval_shape(hold, tree, sig.shapes())

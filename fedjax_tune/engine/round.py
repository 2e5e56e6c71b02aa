"""One round on the device: step each slab, add the sums, merge."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_tune import selection
from fedjax_tune.engine.client import Batch
from fedjax_tune.engine.cost import allocation_shapes
from fedjax_tune.engine.group import Signature
from fedjax_tune.engine.plan import RoundPlan
from fedjax_tune.engine.server import ServerState, build_server_step
from fedjax_tune.engine.step import Programs, Schedule, build_slab_step
from fedjax_tune.foundation import Foundation
from fedjax_tune.typing import Axes, Tree


class Engine:
  """The device side of a run: compiled programs and what they work on.

  Example:
    engine = Engine(foundation, method, theta, axes, optimizer, server_opt)
    engine.compile(schedules, widths, batch)
    state = engine.init()
    state, metrics = engine.round(state, plan, key, lr)

  Attributes:
    foundation: The model.
    theta: What is trained, at the start.
    axes: Axes of `theta`.
    programs: The slab programs, one per signature.
  """

  def __init__(
    self,
    foundation: Foundation,
    method: Any,
    theta: Tree,
    axes: Axes,
    local_opt: optax.GradientTransformation,
    server_opt: optax.GradientTransformation,
    *,
    prox: float = 0.0,
  ) -> None:
    self.foundation = foundation
    self.method = method
    self.theta = theta
    self.axes = axes
    self._server_opt = server_opt
    self.programs = Programs(
      build_slab_step(foundation.graph, method, local_opt, axes, prox=prox)
    )
    self._server_step = jax.jit(build_server_step(method, server_opt))
    self._add = jax.jit(lambda a, b: jax.tree.map(jnp.add, a, b))

  def init(self) -> ServerState:
    """Returns the state before the first round."""
    memory = self.method.init_memory(self.theta)
    return ServerState(self.theta, self._server_opt.init(self.theta), memory)

  def compile(
    self,
    widths: Mapping[Signature, int],
    batches: Batch,
    mode: str = 'auto',
    chunk: int = 1,
  ) -> None:
    """Compiles the program of every signature, side by side.

    Args:
      widths: Clients per slab of each signature.
      batches: Shapes of one client's batches [S, B, ...].
      mode: `engine.mode` of the configuration.
      chunk: `engine.chunk`.
    """
    schedules = {
      sig: Schedule.choose(mode, chunk, width) for sig, width in widths.items()
    }
    selected = {axis for sig in widths for axis, _ in sig.amounts}
    zero = jax.jit(
      lambda: selection.zero_sum(self.theta, self.axes, selected)
    )()
    # The same zeros every round: sums are added to them, never into them.
    self._zeros = {self.method.bucket(sig): zero for sig in widths}

    def arguments(sig):
      width = widths[sig]
      lead = lambda x: jax.ShapeDtypeStruct((width, *x.shape), x.dtype)
      scalar = lambda t: jax.ShapeDtypeStruct((), t)
      return (
        self.foundation.base,
        self.theta,
        allocation_shapes(sig, width),
        jax.ShapeDtypeStruct((width,), np.float32),
        jax.ShapeDtypeStruct((width,), np.int32),
        jax.tree.map(lead, batches),
        jax.random.key(0),
        scalar(np.float32),
        scalar(np.int32),
      )

    self.programs.compile(schedules, arguments)

  def round(
    self, state: ServerState, plan: RoundPlan, key: jax.Array, lr: float
  ) -> tuple[ServerState, dict[str, jax.Array]]:
    """Runs one planned round.

    Args:
      state: The server's state.
      plan: Slabs with their arrays on the device.
      key: The run's key; the round's is derived from it.
      lr: The clients' learning rate.

    Returns:
      The next state, and the clients' metrics summed over the cohort. Neither
      has been waited for.
    """
    round_key = jax.random.fold_in(key, plan.rnd)
    scalars = jax.device_put((np.float32(lr), np.int32(plan.rnd)))
    totals, reports = dict(self._zeros), []
    for work in plan.works:
      part, metrics = self.programs(
        work.slab.sig,
        self.foundation.base,
        state.theta,
        *work[1:],
        round_key,
        *scalars,
      )
      bucket = self.method.bucket(work.slab.sig)
      totals[bucket] = self._add(totals[bucket], part)
      reports.append(jax.tree.map(jnp.sum, metrics))
    return (
      self._server_step(state, totals),
      jax.tree.map(lambda *xs: sum(xs), *reports),
    )

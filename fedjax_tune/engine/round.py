"""One round on the device: step each slab, add the sums, merge."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_tune import selection
from fedjax_tune.engine import finite
from fedjax_tune.engine.client import Batch, RateSchedule
from fedjax_tune.engine.cost import allocation_shapes
from fedjax_tune.engine.group import Signature
from fedjax_tune.engine.plan import RoundPlan
from fedjax_tune.engine.server import (
  ServerState,
  build_reorder,
  build_server_step,
)
from fedjax_tune.engine.step import Programs, Schedule, build_slab_step
from fedjax_tune.foundation import Models, ground
from fedjax_tune.typing import Allocation, Axes, Tree


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
    programs: The slab programs, one per signature; there once compiled.
  """

  def __init__(
    self,
    foundation: Models,
    method: Any,
    theta: Tree,
    axes: Axes,
    local_opt: optax.GradientTransformation,
    server_opt: optax.GradientTransformation,
    *,
    prox: float = 0.0,
    schedule: RateSchedule | None = None,
  ) -> None:
    self.foundation = foundation
    self.method = method
    self.theta = theta
    self.axes = axes
    self._server_opt = server_opt
    self._local_opt = local_opt
    self._prox = prox
    self._schedule = schedule
    self._server_step = jax.jit(build_server_step(method, server_opt))
    self._finish = jax.jit(_build_finish(build_reorder(method, axes)))
    self._add = jax.jit(lambda a, b: jax.tree.map(jnp.add, a, b))
    self._ground = jax.jit(ground)

  def init(self) -> ServerState:
    """Returns the state before the first round."""
    memory = self.method.init_memory(self.theta)
    opt_state = self._server_opt.init(self.theta)
    state, _ = self._finish(ServerState(self.theta, opt_state, memory))
    # Where the sums lie, too; else the first step compiles for itself alone.
    return jax.device_put(state, jax.local_devices()[0])

  def base(self, state: ServerState) -> Tree:
    """Returns the frozen parameters, with what the server added to them."""
    added = self.method.ground(state.memory)
    frozen = self.foundation.base
    return self._ground(frozen, added) if added else frozen

  def compile(
    self,
    widths: Mapping[Signature, int],
    batches: Callable[[Signature], Batch],
    mode: str = 'auto',
    chunk: int = 1,
    devices: int = 1,
  ) -> None:
    """Compiles the program of every signature, side by side.

    Args:
      widths: Clients per slab of each signature.
      batches: Gives the shapes of one client's batches [S, B, ...].
      mode: `engine.mode` of the configuration.
      chunk: `engine.chunk`.
      devices: Among how many devices a slab may be split.
    """
    schedules = {
      sig: Schedule.choose(mode, chunk, width, devices)
      for sig, width in widths.items()
    }
    self._shardings = {sig: s.shardings for sig, s in schedules.items()}
    self._copies = self._spread(self.foundation.base)
    selected = {axis for sig in widths for axis in self._counted(sig)}
    like, names = self.method.sums(self.theta, self.axes)
    zero = jax.jit(lambda: selection.zero_sum(like, names, selected))()
    # The same zeros every round: sums are added to them, never into them.
    self._zeros = {self.method.bucket(sig): zero for sig in widths}

    memory = jax.eval_shape(self.method.init_memory, self.theta)

    def arguments(sig):
      width = widths[sig]
      lead = lambda x: jax.ShapeDtypeStruct((width, *x.shape), x.dtype)
      scalar = lambda t: jax.ShapeDtypeStruct((), t)
      shapes = (
        self.foundation.base,
        self.theta,
        memory,
        allocation_shapes(sig, width),
        jax.ShapeDtypeStruct((width,), np.float32),
        jax.ShapeDtypeStruct((width,), np.int32),
        jax.tree.map(lead, batches(sig)),
        jax.random.key(0),
        scalar(np.float32),
        scalar(np.int32),
      )
      return jax.tree.map(_placed, self._shardings[sig], shapes)

    step = build_slab_step(
      self.foundation.assemble,
      self.method,
      self._local_opt,
      self.axes,
      prox=self._prox,
      schedule=self._schedule,
      selected=selected,
    )
    self.programs = Programs(step)
    self.programs.compile(schedules, arguments)

  def round(
    self, state: ServerState, plan: RoundPlan, key: jax.Array, lr: float
  ) -> tuple[ServerState, dict[str, Any]]:
    """Runs one planned round.

    Args:
      state: The server's state.
      plan: Slabs with their arrays on the device.
      key: The run's key; the round's is derived from it.
      lr: The clients' learning rate.

    Returns:
      The next state, and the clients' metrics summed over the cohort; with
      them `rejected`, for each slab of the plan which clients were left out,
      bool [C], and `finite`, whether all of the state is. Nothing has been
      waited for.
    """
    round_key = jax.random.fold_in(key, plan.rnd)
    scalars = jax.device_put((np.float32(lr), np.int32(plan.rnd)))
    totals, reports, rejected = dict(self._zeros), [], []
    base, copies = self.base(state), self._copies
    if base is not self.foundation.base:
      copies = self._spread(base)
    for work in plan.works:
      sig = work.slab.sig
      places = self._shardings[sig]
      sent = (copies[places[0]], state.theta, state.memory)
      args = jax.device_put((*sent, *work[1:], round_key, *scalars), places)
      part, metrics = self.programs(sig, *args)
      bucket = self.method.bucket(sig)
      # Slabs of other widths may lie on other sets of devices.
      part, metrics = jax.device_put((part, metrics), jax.local_devices()[0])
      totals[bucket] = self._add(totals[bucket], part)
      rejected.append(metrics.pop('rejected'))
      reports.append(jax.tree.map(jnp.sum, metrics))
    state, is_finite = self._finish(self._server_step(state, totals))
    sums = jax.tree.map(lambda *xs: sum(xs), *reports)
    return state, {**sums, 'rejected': rejected, 'finite': is_finite}

  def _counted(self, sig: Signature) -> Allocation:
    """Returns the axes along which what a client sends is selected."""
    count = lambda own: self.method.counts({**own, **dict(sig.prefix)})
    return jax.eval_shape(count, allocation_shapes(sig))

  def _spread(self, base: Tree) -> dict[jax.sharding.Sharding, Tree]:
    """Copies the frozen weights to each set of devices, not once a call."""
    places = {places[0] for places in self._shardings.values()}
    return {place: jax.device_put(base, place) for place in places}


def _build_finish(
  reorder: Callable[[ServerState], ServerState],
) -> Callable[[ServerState], tuple[ServerState, jax.Array]]:
  """Builds the end of a round: the next state, and whether it is finite."""

  def finish(state):
    state = reorder(state)
    return state, finite.all_finite(state)

  return finish


def _placed(sharding: jax.sharding.Sharding, tree: Tree) -> Tree:
  """Returns the shapes of a tree whose arrays lie as told."""
  shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
  return jax.tree.map(shape, tree)

"""One round on the device: step each slab, add the sums, merge."""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
import numpy as np
import optax

from fedjax_tune import selection
from fedjax_tune.engine import batches as batching
from fedjax_tune.engine import divided, finite, hosts, join, store
from fedjax_tune.engine.algorithm import Algorithm
from fedjax_tune.engine.client import Batch, RateSchedule
from fedjax_tune.engine.plan import RoundPlan
from fedjax_tune.engine.programs import Programs
from fedjax_tune.engine.schedule import Schedule
from fedjax_tune.engine.server import (
  ServerState,
  anybody,
  build_reorder,
  build_server_step,
)
from fedjax_tune.engine.slabs import InfoShapes, Signature
from fedjax_tune.engine.step import (
  Own,
  Shared,
  build_slab_step,
  shared_places,
)
from fedjax_tune.models.foundation import add_frozen
from fedjax_tune.selection import Selection
from fedjax_tune.typing import Tree


class Engine:
  """The device side of a run: compiled programs and what they work on.

  Example:
    engine = Engine(algorithm, optimizer, server_opt)
    engine.compile(widths, batches, info)
    state = engine.init()
    state, metrics = engine.round(state, plan, key, lr)

  Attributes:
    algorithm: The method, with its model.
    programs: The slab programs, one per signature; there once compiled.
  """

  def __init__(
    self,
    algorithm: Algorithm,
    local_opt: optax.GradientTransformation,
    server_opt: optax.GradientTransformation,
    *,
    schedule: RateSchedule | None = None,
    lengths: Sequence[int] = (),
  ) -> None:
    """Builds the server's programs.

    Args:
      algorithm: The method, with its model.
      local_opt: The clients' optimizer, for learning rate 1.
      server_opt: The server's optimizer.
      schedule: How the clients' rate falls from one local step to the next.
      lengths: Lengths of the parts of batches, see `Feed.lengths`.
    """
    self.algorithm = algorithm
    self._server_opt = server_opt
    self._local_opt = local_opt
    self._rate = schedule
    self._lengths = lengths
    self._server_step = jax.jit(
      build_server_step(algorithm.aggregator, server_opt)
    )
    self._finish = jax.jit(build_finish(build_reorder(algorithm)))
    self._anybody = jax.jit(anybody)
    self._add = jax.jit(lambda a, b: jax.tree.map(jnp.add, a, b))
    self._add_frozen = jax.jit(add_frozen)

  def init(self) -> ServerState:
    """Returns the state before the first round."""
    theta = self.algorithm.model.theta
    memory = self.algorithm.aggregator.init(theta)
    opt_state = self._server_opt.init(theta)
    state = ServerState(theta, opt_state, memory)
    state, _ = self._finish(state, np.bool_(True))
    # Where the sums lie, too; else the first step compiles for itself alone.
    state = jax.device_put(state, jax.local_devices()[0])
    return state._replace(clients={})

  def base(self, state: ServerState) -> Tree:
    """Returns the frozen parameters, with what the server added to them."""
    added = self.algorithm.aggregator.frozen_delta(state.memory)
    frozen = self.algorithm.model.base
    if not added:
      return frozen
    return self._add_frozen(frozen, divided.beside(frozen, added))

  def compile(
    self,
    widths: Mapping[Signature, int],
    batches: Callable[[Signature], Batch],
    info: InfoShapes,
    mode: str = 'auto',
    chunk: int = 1,
    devices: int = 1,
    fsdp: bool = False,
  ) -> None:
    """Compiles the program of every signature.

    Args:
      widths: Clients per slab of each signature.
      batches: Returns the shapes of one client's batches [S, B, ...].
      info: The shapes of what one client is told.
      mode: `engine.mode` of the configuration.
      chunk: `engine.chunk`.
      devices: Number of devices among which a slab may be split.
      fsdp: `engine.fsdp`.
    """
    self._batches, self._info = batches, info
    self._choose = lambda width: Schedule.choose(
      mode, chunk, width, devices, fsdp, platform=jax.default_backend()
    )
    self._widths: dict[Signature, int] = {}
    self._selected: frozenset[str] | None = None
    self.extend(widths)

  def extend(self, widths: Mapping[Signature, int]) -> None:
    """Compiles programs of more signatures, with the same settings.

    If clients select along an axis for the first time, sums have another shape
    from now on, and every program is compiled again.

    Args:
      widths: Clients per slab of each.
    """
    self._widths |= widths
    model, aggregator = self.algorithm.model, self.algorithm.aggregator
    schedules = {sig: self._choose(n) for sig, n in self._widths.items()}
    self._schedules = schedules
    self._places = {sig: self._place(s) for sig, s in schedules.items()}
    self._copies = self._spread(model.base)
    selected = frozenset(
      axis for sig in schedules for axis in self._summed(sig, self._info)
    )
    like, names = aggregator.spec(model.theta, model.axes)
    zero = jax.jit(lambda: selection.zero_sum(like, names, selected))()
    # The same zeros every round: sums are added to them, never into them.
    self._zeros = {aggregator.group(sig): zero for sig in schedules}

    if selected != self._selected:
      step = build_slab_step(
        self.algorithm,
        self._local_opt,
        rate=self._rate,
        selected=selected,
        lengths=self._lengths,
      )
      self.programs, self._selected = Programs(step), selected
    there = self.programs.compiled
    new = {sig: s for sig, s in schedules.items() if sig not in there}
    self.programs.compile(new, self._arguments)

  def _arguments(self, sig: Signature) -> tuple[Shared, Own]:
    """Returns the shapes of the arguments of a signature's program."""
    model, width = self.algorithm.model, self._widths[sig]
    start = self.algorithm.client.state
    lead = lambda x: jax.ShapeDtypeStruct((width, *x.shape), x.dtype)
    shared = Shared(
      model.base,
      model.theta,
      jax.eval_shape(self.algorithm.aggregator.init, model.theta),
      jax.random.key(0),
      np.zeros((), np.float32),
      np.zeros((), np.int32),
    )
    batches = jax.tree.map(lead, self._batches(sig))
    own = Own(
      sig.shapes(width),
      jax.tree.map(lead, self._info),
      jax.tree.map(lead, jax.tree.map(np.asarray, start(0) if start else ())),
      np.zeros(width, np.float32),
      np.zeros(width, np.int32),
      batches,
      batching.part_shapes(self._lengths, batches.valid.shape),
    )
    return jax.tree.map(_placed, self._places[sig], (shared, own))

  def place(self, sig: Signature) -> jax.sharding.Sharding | None:
    """Returns the placement of whole shared arrays; None without a program."""
    if sig not in self._places:
      return None
    place = self._places[sig][0].rnd
    assert isinstance(place, jax.sharding.Sharding)
    return place

  def round(
    self, state: ServerState, plan: RoundPlan, key: jax.Array, lr: float
  ) -> tuple[ServerState, Tree]:
    """Runs one planned round.

    Args:
      state: The server's state.
      plan: Slabs with their arrays on the device.
      key: The run's key; the round's is derived from it.
      lr: The clients' learning rate.

    Returns:
      The next state, and the clients' metrics summed over the cohort. These
      include `rejected`, which clients of each slab of the plan were left out,
      bool [C], and `finite`, whether the whole state is finite. If clients
      remember nothing, this waits for nothing.
    """
    round_key = jax.random.fold_in(key, plan.rnd)
    scalars = jax.device_put((np.float32(lr), np.int32(plan.rnd)))
    totals, reports, rejected, renewed = dict(self._zeros), [], [], []
    base, copies = self.base(state), self._copies
    if base is not self.algorithm.model.base:
      copies = self._spread(base)
    clients, start = state.clients, self.algorithm.client.state
    state = state._replace(clients=())
    for work in plan.works:
      sig, ids = work.slab.sig, work.slab.ids
      places, copy = self._places[sig], copies[self._schedules[sig].devices]
      shared = Shared(copy, state.theta, state.memory, round_key, *scalars)
      own = work.own._replace(state=store.gather(clients, ids, start))
      result = self.programs(sig, *jax.device_put((shared, own), places))
      # Slabs of other widths may lie on other sets of devices.
      part, metrics = jax.device_put(result[:2], jax.local_devices()[0])
      group = self.algorithm.aggregator.group(sig)
      totals[group] = self._add(totals[group], part)
      rejected.append(metrics.pop('rejected'))
      reports.append(jax.tree.map(jnp.sum, metrics))
      renewed.append(jax.tree.map(np.asarray, result.state))
    slabs = [work.slab for work in plan.works]
    made = join.Made(totals, reports, rejected, renewed)
    if hosts.count() > 1:
      slabs, like = plan.slabs, self.programs.results[plan.slabs[0].sig]
      made = join.of_hosts(slabs, made, like)
    moved = self._server_step(state, made.totals)
    state, is_finite = self._finish(moved, self._anybody(made.totals))
    if hosts.count() > 1:
      # Hosts may compute matrix products by other programs.
      state, is_finite = hosts.of_first((state, is_finite))
    sums = jax.tree.map(lambda *xs: sum(xs), *made.reports)
    after: store.States = {}
    for slab, rows in zip(slabs, made.renewed, strict=True):
      after = store.put(after, slab.ids, rows)
    if after:
      clients = {**clients, **after}
    state = state._replace(clients=clients)
    return state, {**sums, 'rejected': made.rejected, 'finite': is_finite}

  def _summed(self, sig: Signature, info: InfoShapes) -> Selection:
    """Returns the axes along which clients' updates are selected."""
    where = self.algorithm.aggregator.where
    of = lambda held, info: Selection.of(where(held, info))
    return jax.eval_shape(of, sig.shapes(), info)

  def _place(self, schedule: Schedule) -> tuple[Shared, NamedSharding]:
    """Returns the placement of shared arrays, and of each client's own."""
    whole, split = schedule.shardings
    base = whole
    if schedule.fsdp:
      model = self.algorithm.model
      axes = divided.base_axes(model)
      base = divided.places(model.base, axes, schedule.mesh)
    return shared_places(base, whole), split

  def _spread(self, base: Tree) -> dict[int, Tree]:
    """Copies the frozen weights to each set of devices once, not at each call.

    Returns:
      The copies by the number of devices.
    """
    places = {
      schedule.devices: self._places[sig][0].base
      for sig, schedule in self._schedules.items()
    }
    return {n: jax.device_put(base, place) for n, place in places.items()}


def build_finish(
  reorder: Callable[[ServerState], ServerState],
) -> Callable[[ServerState, jax.Array], tuple[ServerState, jax.Array]]:
  """Builds the end of a round: the next state, and whether it is finite.

  If no client counted, nothing is reordered, because a new order may differ by
  rounding.
  """

  def finish(state, some):
    keep = lambda new, old: jnp.where(some, new, old)
    state = jax.tree.map(keep, reorder(state), state)
    return state, finite.all_finite(state)

  return finish


def _placed(sharding: jax.sharding.Sharding, tree: Tree) -> Tree:
  """Returns the shapes of a tree whose arrays have the given placement."""
  shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
  return jax.tree.map(shape, tree)

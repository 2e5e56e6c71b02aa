"""One slab of clients on the device: train, weigh, sum.

`build_slab_step` returns a pure function of arrays; `Programs` compiles it
once per signature, ahead of time and side by side.
"""

from collections.abc import Callable, Collection, Mapping
import concurrent.futures
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import optax

from fedjax_tune import selection
from fedjax_tune.engine import finite
from fedjax_tune.engine.client import RateSchedule, client_update
from fedjax_tune.engine.group import Signature
from fedjax_tune.selection import GroupSum
from fedjax_tune.typing import Allocation, Axes, Tree


@dataclasses.dataclass(frozen=True)
class Schedule:
  """How the clients of a slab share the device.

  Attributes:
    chunk: Clients under one `vmap`; chunks run one after another. 1 is a
      plain `map`, the slab's width a plain `vmap`.
    devices: Devices among which the slab's clients are split.
  """

  chunk: int
  devices: int = 1

  @classmethod
  def choose(
    cls, mode: str, chunk: int, width: int, devices: int = 1
  ) -> 'Schedule':
    """Resolves `engine.mode` for slabs of one width.

    'auto' maps on a CPU, where a vmap over clients was slower in every trial
    (`launch/bench.py`), and vmaps on an accelerator. Of `devices` as many are
    used as divide the width.
    """
    if mode == 'auto':
      mode = 'map' if jax.default_backend() == 'cpu' else 'vmap'
    devices = math.gcd(width, devices)
    part = width // devices
    wanted = min(part, {'map': 1, 'chunk': chunk, 'vmap': part}[mode])
    chunk = max(c for c in range(1, wanted + 1) if part % c == 0)
    return cls(chunk, devices)

  @property
  def shardings(self) -> tuple[NamedSharding, ...]:
    """Where each array argument of a slab's step lies."""
    whole = NamedSharding(self.mesh, PartitionSpec())
    split = NamedSharding(self.mesh, PartitionSpec('clients'))
    return (whole,) * 3 + (split,) * 4 + (whole,) * 3

  @property
  def mesh(self) -> jax.sharding.Mesh:
    """The devices, along one axis named 'clients'."""
    return jax.make_mesh(
      (self.devices,),
      ('clients',),
      axis_types=(jax.sharding.AxisType.Auto,),
      devices=jax.local_devices()[: self.devices],
    )


# Stands for no local step: what a client draws before its first.
_BEGIN = np.uint32(2**32 - 1)

SlabStep = Callable[..., tuple[GroupSum, dict[str, jax.Array]]]


def build_slab_step(
  assemble: Callable[[Tree, Tree, Allocation], Any],
  method: Any,
  optimizer: optax.GradientTransformation,
  axes: Axes,
  *,
  prox: float = 0.0,
  schedule: RateSchedule | None = None,
  selected: Collection[str] = (),
) -> SlabStep:
  """Builds the program of a slab.

  Args:
    assemble: Builds a client's model, as `Foundation.assemble`.
    method: Says what a client starts from, minimises and sends.
    optimizer: The clients', for learning rate 1.
    axes: Axes of theta.
    prox: FedProx coefficient.
    schedule: How the learning rate falls from one local step to the next.
    selected: Axes along which what any client of the run sends is selected.

  Returns:
    step(sig, schedule, base, theta, memory, alloc, weight, ids, batches, key,
    lr, rnd) -> (GroupSum, metrics). `sig` and `schedule` are static; `alloc`
    leaves are [C, n], `weight` and `ids` [C], `batches` leaves
    [C, S, B, ...], `key` the round's key, `lr` and `rnd` scalars. Metrics are
    sums [C].

  Guarantees:
    - A client of weight 0 adds nothing, and under `map` costs nothing.
    - Nor does one of which any number is not finite: its delta, what it
      sends, its factor, its metrics. The metric `rejected`, bool [C], is true
      of it, and its other metrics are 0.
    - The order of clients, the padding, the schedule and the number of
      devices change nothing but rounding.
  """

  def train(sig, base, theta, memory, key, lr, rnd, alloc, client, batches):
    def objective(local, batch, step_key):
      model = assemble(base, method.view(sig, local, alloc), alloc)
      return method.loss(sig, model, alloc, batch, step_key, rnd)

    alloc = {**alloc, **dict(sig.prefix)}
    client_key = jax.random.fold_in(key, client)
    start = method.begin(
      sig,
      selection.select_within(theta, axes, alloc),
      alloc,
      memory,
      jax.random.fold_in(client_key, _BEGIN),
    )
    delta, metrics = client_update(
      objective, optimizer, start, batches, client_key, lr, prox, schedule
    )
    sent = method.upload(sig, start, delta, alloc)
    factor = method.weigh(sig, start, delta)
    sound = finite.all_finite((delta, sent, metrics))
    return sent, jnp.where(sound, factor, jnp.nan), metrics

  def train_slab(sig, schedule, shared, slab):
    like, names = method.sums(shared[1], axes)

    def run(chunk):
      alloc, weight, ids, batches = chunk
      one = lambda *args: train(sig, *shared, *args)
      if schedule.chunk == 1:
        single = jax.tree.map(lambda x: x[0], (alloc, ids, batches))
        sent, factor, metrics = jax.tree.map(lambda x: x[None], one(*single))
      else:
        sent, factor, metrics = jax.vmap(one)(alloc, ids, batches)
      real, weight = weight > 0, weight * factor
      counts = real & (weight >= 0) & (weight < jnp.inf)
      weight = jnp.where(counts, weight, 0)
      metrics = jax.tree.map(lambda m: jnp.where(counts, m, 0), metrics)
      metrics = {**metrics, 'rejected': real & ~counts}
      held = method.counts({**alloc, **dict(sig.prefix)})
      held = selection.within(held, names)
      total = selection.group_sum(like, names, held, sent, weight, selected)
      return total, metrics

    if schedule.chunk == slab[1].shape[0]:
      return run(slab)
    return _sum_over_chunks(run, slab, schedule.chunk)

  def step(
    sig,
    schedule,
    base,
    theta,
    memory,
    alloc,
    weight,
    ids,
    batches,
    key,
    lr,
    rnd,
  ):
    shared = (base, theta, memory, key, lr, rnd)
    slab = (alloc, weight, ids, batches)
    if schedule.devices == 1:
      return train_slab(sig, schedule, shared, slab)

    def on_device(shared, slab):
      total, metrics = train_slab(sig, schedule, shared, slab)
      return jax.lax.psum(total, 'clients'), metrics

    whole, split = PartitionSpec(), PartitionSpec('clients')
    return jax.shard_map(
      on_device,
      mesh=schedule.mesh,
      in_specs=(whole, split),
      out_specs=(whole, split),
      check_vma=False,
    )(shared, slab)

  return step


def _sum_over_chunks(run, slab, size):
  """Runs chunks one after another and adds up what they sum."""
  chunks = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), slab)
  shapes = jax.eval_shape(run, jax.tree.map(lambda x: x[0], chunks))
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

  def body(total, chunk):
    real = jnp.any(chunk[1] > 0)
    part, metrics = jax.lax.cond(real, run, lambda _: zeros, chunk)
    return jax.tree.map(jnp.add, total, part), metrics

  total, metrics = jax.lax.scan(body, zeros[0], chunks)
  return total, jax.tree.map(lambda m: m.reshape(-1, *m.shape[2:]), metrics)


class Programs:
  """The compiled slab programs of a run, one per signature.

  Attributes:
    compiled: The programs by signature; its length is the compile count.
  """

  def __init__(self, step: SlabStep) -> None:
    self._jitted = jax.jit(step, static_argnums=(0, 1))
    self.compiled: dict[Signature, Any] = {}

  def compile(
    self,
    schedules: Mapping[Signature, Schedule],
    arguments: Callable[[Signature], tuple[Any, ...]],
  ) -> None:
    """Compiles every signature side by side.

    Args:
      schedules: How each signature's slabs share the devices.
      arguments: Gives a signature's arguments (arrays or ShapeDtypeStructs)
        after the static ones.
    """

    def build(item):
      sig, schedule = item
      lowered = self._jitted.lower(sig, schedule, *arguments(sig))
      return sig, lowered.compile()

    pool = concurrent.futures.ThreadPoolExecutor()
    try:
      self.compiled.update(pool.map(build, schedules.items()))
    finally:
      # Whoever interrupts does not wait for programs that nobody needs.
      pool.shutdown(wait=False, cancel_futures=True)

  def __call__(self, sig: Signature, *args: Any) -> Any:
    """Runs the program of a signature."""
    return self.compiled[sig](*args)

"""One slab of clients on the device: train, weigh, sum.

`build_slab_step` returns a pure function of arrays; `Programs` compiles it
once per signature, ahead of time.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
import concurrent.futures
import ctypes
import dataclasses
import math
import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import ArrayLike
import numpy as np
import optax

from fedjax_tune import selection
from fedjax_tune.data.tasks import Sums
from fedjax_tune.engine import divided, finite
from fedjax_tune.engine.algorithm import Algorithm, Context
from fedjax_tune.engine.client import Batch, RateSchedule, take_steps
from fedjax_tune.engine.gradient import Parts
from fedjax_tune.engine.slabs import Signature
from fedjax_tune.selection import GroupSum, Selection
from fedjax_tune.typing import AnyArray, Tree


def resolve(mode: str, platform: str) -> str:
  """Returns what `engine.mode` is on a platform.

  'auto' maps on 'cpu', where a vmap over clients was slower in every trial
  (`launch/bench.py`), and vmaps on accelerators.
  """
  if mode == 'auto':
    return 'map' if platform == 'cpu' else 'vmap'
  return mode


@dataclasses.dataclass(frozen=True)
class Schedule:
  """How the clients of a slab share the device.

  Attributes:
    chunk: Clients under one `vmap`; chunks run one after another. 1 is a
      plain `map`, the slab's width a plain `vmap`.
    devices: Devices among which the slab's clients are split.
    fsdp: Whether the frozen parameters are divided among them (`divided.py`).
  """

  chunk: int
  devices: int = 1
  fsdp: bool = False

  @classmethod
  def choose(
    cls,
    mode: str,
    chunk: int,
    width: int,
    devices: int = 1,
    fsdp: bool = False,
    *,
    platform: str,
  ) -> 'Schedule':
    """Resolves `engine.mode` for slabs of one width.

    Of `devices` as many are used as divide the width.
    """
    mode = resolve(mode, platform)
    devices = math.gcd(width, devices)
    part = width // devices
    wanted = min(part, {'map': 1, 'chunk': chunk, 'vmap': part}[mode])
    chunk = max(c for c in range(1, wanted + 1) if part % c == 0)
    return cls(chunk, devices, fsdp and devices > 1)

  @property
  def shardings(self) -> tuple[NamedSharding, NamedSharding]:
    """Where what all clients share lies, and what is each client's own."""
    return (
      NamedSharding(self.mesh, PartitionSpec()),
      NamedSharding(self.mesh, PartitionSpec('clients')),
    )

  @property
  def mesh(self) -> jax.sharding.Mesh:
    """The devices, along one axis named 'clients'."""
    return clients_mesh(self.devices)


def clients_mesh(devices: int) -> jax.sharding.Mesh:
  """Returns the first devices of this host, along one axis 'clients'."""
  return jax.make_mesh(
    (devices,),
    ('clients',),
    axis_types=(jax.sharding.AxisType.Auto,),
    devices=jax.local_devices()[:devices],
  )


# Stands for no local step: what a client draws before its first.
_BEGIN = np.uint32(2**32 - 1)


class Shared(NamedTuple):
  """What all clients of a round are given.

  Attributes:
    base: Frozen parameters.
    theta: Trained parameters.
    memory: What the server remembers besides.
    key: The round's key.
    lr: The clients' learning rate, float32.
    rnd: The round, int32.
  """

  base: Tree
  theta: Tree
  memory: Tree
  key: jax.Array
  lr: ArrayLike
  rnd: ArrayLike


def shared_places(base: Tree, rest: Tree) -> Shared:
  """Says where what clients share lies: the base, and all else."""
  return Shared(base, *[rest] * 5)


class Own(NamedTuple):
  """What is each client's own, for C clients of one signature.

  Attributes:
    held: What they hold, indices [C, n].
    info: What they are told besides, leaves [C, ...].
    state: What they remember, leaves [C, ...].
    weight: Aggregation weights float32 [C]; 0 pads.
    ids: Client ids int32 [C]; -1 pads.
    batches: Leaves [C, S, B, ...].
    parts: How batches of texts run, leaves [C, S, ...]; None runs them whole.
  """

  held: Selection
  info: Mapping[str, AnyArray]
  state: Tree
  weight: AnyArray
  ids: AnyArray
  batches: Batch
  parts: Parts | None = None


class Result(NamedTuple):
  """What a slab gives.

  Attributes:
    total: What its clients send, summed.
    metrics: Sums over each client's steps, [C].
    state: What they remember from now on, leaves [C, ...].
  """

  total: GroupSum
  metrics: Sums
  state: Tree


SlabStep = Callable[[Signature, Schedule, Shared, Own], Result]


def build_slab_step(
  algorithm: Algorithm,
  optimizer: optax.GradientTransformation,
  *,
  schedule: RateSchedule | None = None,
  selected: Collection[str] = (),
  lengths: Sequence[int] = (),
) -> SlabStep:
  """Builds the program of a slab.

  Args:
    algorithm: Says what a client starts from, minimises and sends.
    optimizer: The clients', for learning rate 1.
    schedule: How the learning rate falls from one local step to the next.
    selected: Axes along which what any client of the run sends is selected.
    lengths: Tokens to which the parts of batches are padded, ascending.

  Returns:
    step(sig, schedule, shared, own); the first two are static.

  Guarantees:
    - A client of weight 0 adds nothing, and under `map` costs nothing.
    - Nor does one of which any number is not finite: its delta, what it
      sends, its factor, its metrics, what it would remember. The metric
      `rejected`, bool [C], is true of it, its other metrics are 0, and it
      remembers what it did before.
    - The order of clients, the padding, the schedule and the number of
      devices change nothing but rounding.
  """
  model, client, aggregator = (
    algorithm.model,
    algorithm.client,
    algorithm.aggregator,
  )

  def train(sig, shared, own):
    context = Context(
      sig,
      own.held,
      own.info,
      shared.memory,
      own.state,
      shared.lr,
      shared.rnd,
    )

    of = algorithm.gradient
    if divided.is_opened(shared.base):
      of = algorithm.differentiate

    def gradient(local, batch, step_key):
      known = context._replace(sig=None)
      return of(sig, shared.base, known, local, batch, step_key)

    key = jax.random.fold_in(shared.key, own.ids)
    start = client.init(
      selection.select_within(shared.theta, model.axes, own.held),
      context,
      jax.random.fold_in(key, _BEGIN),
    )
    steps = optimizer
    if client.transform is not None:
      steps = optax.chain(client.transform(context), optimizer)
    delta, metrics = take_steps(
      gradient,
      steps,
      start,
      own.batches,
      key,
      shared.lr,
      schedule,
      [length for length in lengths if length <= sig.length],
      own.parts,
    )
    taken = jnp.sum(jnp.any(own.batches.valid, -1), dtype=jnp.float32)
    sent = client.finish(start, delta, taken, context)
    sound = finite.all_finite((delta, sent.tree, sent.state, metrics))
    return sent._replace(factor=jnp.where(sound, sent.factor, jnp.nan)), metrics

  def train_slab(sig, schedule, shared, own):
    like, names = aggregator.spec(shared.theta, model.axes)

    def run(chunk):
      one = lambda client: train(sig, shared, client)
      if schedule.chunk == 1:
        single = jax.tree.map(lambda x: x[0], chunk)
        sent, metrics = jax.tree.map(lambda x: x[None], one(single))
      else:
        sent, metrics = jax.vmap(one)(chunk)
      real, weight = chunk.weight > 0, chunk.weight * sent.factor
      counts = real & (weight >= 0) & (weight < jnp.inf)
      weight = jnp.where(counts, weight, 0)
      metrics = jax.tree.map(lambda m: jnp.where(counts, m, 0), metrics)
      metrics = {**metrics, 'rejected': real & ~counts}
      where = selection.within(aggregator.where(chunk.held, chunk.info), names)
      total = selection.group_sum(
        like, names, where, sent.tree, weight, selected
      )
      renew = lambda new, old: jnp.where(_along(counts, new), new, old)
      state = jax.tree.map(renew, sent.state, chunk.state)
      return Result(total, metrics, state)

    if schedule.chunk == own.weight.shape[0]:
      return run(own)
    # Devices that exchange blocks must all be there, padding or not.
    return _sum_over_chunks(run, own, schedule.chunk, skip=not schedule.fsdp)

  def step(sig, schedule, shared, own):
    if schedule.devices == 1:
      return train_slab(sig, schedule, shared, own)

    whole, split = PartitionSpec(), PartitionSpec('clients')
    base, axes = whole, {}
    if schedule.fsdp:
      axes = divided.base_axes(model)
      base = divided.specs(shared.base, axes, schedule.devices)

    def on_device(shared, own):
      if schedule.fsdp:
        parts = divided.opened(shared.base, axes, base, sig.axes)
        shared = shared._replace(base=parts)
      total, metrics, state = train_slab(sig, schedule, shared, own)
      return jax.lax.psum(total, 'clients'), metrics, state

    spread = jax.shard_map(
      on_device,
      mesh=schedule.mesh,
      in_specs=(shared_places(base, whole), split),
      out_specs=(whole, split, split),
      check_vma=False,
    )
    return Result(*spread(shared, own))

  return step


def _along(flags: jax.Array, like: jax.Array) -> jax.Array:
  """Gives flags [C] the dimensions of an array [C, ...]."""
  return flags.reshape(-1, *[1] * (like.ndim - 1))


def _sum_over_chunks(
  run: Callable[[Own], Result], own: Own, size: int, *, skip: bool
) -> Result:
  """Runs chunks one after another and adds up what they sum.

  Args:
    run: Trains a chunk.
    own: Of the clients of all.
    size: Clients of a chunk.
    skip: Do not run chunks of padding.
  """
  chunks = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), own)
  shapes = jax.eval_shape(run, jax.tree.map(lambda x: x[0], chunks))
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

  def rest(chunk):
    return zeros._replace(state=chunk.state)

  def body(total, chunk):
    real = jnp.any(chunk.weight > 0)
    part = jax.lax.cond(real, run, rest, chunk) if skip else run(chunk)
    return jax.tree.map(jnp.add, total, part.total), part[1:]

  total, apart = jax.lax.scan(body, zeros.total, chunks)
  join = lambda m: m.reshape(-1, *m.shape[2:])
  return Result(total, *jax.tree.map(join, apart))


def _trim() -> None:
  """Hands freed memory back to the system, where the C library can.

  glibc keeps what a compiler freed for good: 260 MB after six programs.
  """
  trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)
  if trim is not None:
    trim(0)


class Programs:
  """The compiled slab programs of a run, one per signature.

  Attributes:
    compiled: The programs by signature; its length is the compile count.
    results: The shapes of what each gives.
  """

  def __init__(self, step: SlabStep) -> None:
    self._jitted = jax.jit(step, static_argnums=(0, 1))
    self.compiled: dict[Signature, jax.stages.Compiled] = {}
    self.results: dict[Signature, Result] = {}

  def compile(
    self,
    schedules: Mapping[Signature, Schedule],
    arguments: Callable[[Signature], tuple[Shared, Own]],
  ) -> None:
    """Compiles every signature, a few at a time.

    Args:
      schedules: How each signature's slabs share the devices.
      arguments: Gives a signature's arguments (arrays or ShapeDtypeStructs)
        after the static ones.
    """

    def build(item):
      sig, schedule = item
      lowered = self._jitted.lower(sig, schedule, *arguments(sig))
      compiled = lowered.compile()
      _trim()
      return sig, compiled, lowered.out_info

    # XLA's CPU compiler takes half a gigabyte for a program, and has threads of
    # its own: on two cores, six programs side by side took 4.1 GB and 65
    # seconds of CPU time, one after another 1.1 GB and 42.
    pool = concurrent.futures.ThreadPoolExecutor(
      (os.cpu_count() or 2) // 2 or 1
    )
    try:
      for sig, compiled, result in pool.map(build, schedules.items()):
        self.compiled[sig], self.results[sig] = compiled, result
    finally:
      # Whoever interrupts does not wait for programs that nobody needs.
      pool.shutdown(wait=False, cancel_futures=True)

  def temp_bytes(self) -> dict[Signature, int]:
    """Returns the scratch memory of each program, as the compiler says."""
    found = {}
    for sig, program in self.compiled.items():
      memory = program.memory_analysis()
      assert memory is not None, 'no backend that JAX comes with leaves it out'
      found[sig] = memory.temp_size_in_bytes
    return found

  def __call__(self, sig: Signature, shared: Shared, own: Own) -> Result:
    """Runs the program of a signature."""
    return self.compiled[sig](shared, own)

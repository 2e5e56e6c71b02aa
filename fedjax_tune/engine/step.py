"""One slab of clients on the device: train, weigh, sum.

`build_slab_step` returns a pure function of arrays, which `programs.py` compiles.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import ArrayLike
import numpy as np
import optax

from fedjax_tune import selection
from fedjax_tune.data.tasks import Sums
from fedjax_tune.engine import divided, finite
from fedjax_tune.engine.algorithm import Algorithm, Context
from fedjax_tune.engine.client import Batch, RateSchedule, take_steps
from fedjax_tune.engine.gradient import Parts
from fedjax_tune.engine.schedule import Schedule
from fedjax_tune.engine.slabs import Signature
from fedjax_tune.selection import GroupSum, Selection
from fedjax_tune.typing import AnyArray, Tree

# Stands for no local step: what a client draws before its first.
_BEGIN = np.uint32(2**32 - 1)


class Shared(NamedTuple):
  """What all clients of a round are given.

  Attributes:
    base: Frozen parameters.
    theta: Trained parameters.
    memory: What else the server remembers.
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
  """Returns the placement of shared arrays: the base, and everything else."""
  return Shared(base, *[rest] * 5)


class Own(NamedTuple):
  """Each client's own arrays, for C clients of one signature.

  Attributes:
    held: What they hold, indices [C, n].
    info: What else they are told, leaves [C, ...].
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
  """The results of a slab.

  Attributes:
    total: What its clients send, summed.
    metrics: Sums over each client's steps, [C].
    state: What the clients remember from now on, leaves [C, ...].
  """

  total: GroupSum
  metrics: Sums
  state: Tree


SlabStep = Callable[[Signature, Schedule, Shared, Own], Result]


class Trained(NamedTuple):
  """A client after its local steps, before it sends anything.

  Attributes:
    context: What the client's program knows.
    start: What it started from.
    delta: How that changed.
    metrics: Sums over the client's steps.
  """

  context: Context
  start: Tree
  delta: Tree
  metrics: Sums


def build_train(
  algorithm: Algorithm,
  optimizer: optax.GradientTransformation,
  schedule: RateSchedule | None = None,
  lengths: Sequence[int] = (),
) -> Callable[[Signature, Shared, Own], Trained]:
  """Builds the local steps of one client: train(sig, shared, own).

  The arguments are those of `build_slab_step`; `own` has no axis of clients.
  """
  client, begin = algorithm.client, build_begin(algorithm)

  def train(sig, shared, own):
    context, start = begin(sig, shared, own)
    of = algorithm.gradient
    if divided.is_opened(shared.base):
      of = algorithm.differentiate

    def gradient(local, batch, step_key):
      known = context._replace(sig=None)
      return of(sig, shared.base, known, local, batch, step_key)

    key = jax.random.fold_in(shared.key, own.ids)
    steps = optimizer
    if client.transform is not None:
      steps = optax.chain(client.transform(context), optimizer)
    if client.around is not None:
      steps = client.around(steps)
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
    return Trained(context, start, delta, metrics)

  return train


def build_begin(
  algorithm: Algorithm,
) -> Callable[[Signature, Shared, Own], tuple[Context, Tree]]:
  """Builds the beginning of a client's round: begin(sig, shared, own).

  It returns the client's context, and the parameters that it starts from.
  """

  def begin(sig, shared, own):
    context = Context(
      sig, own.held, own.info, shared.memory, own.state, shared.lr, shared.rnd
    )
    key = jax.random.fold_in(shared.key, own.ids)
    start = algorithm.client.init(
      selection.select_within(shared.theta, algorithm.model.axes, own.held),
      context,
      jax.random.fold_in(key, _BEGIN),
    )
    return context, start

  return begin


def build_slab_step(
  algorithm: Algorithm,
  optimizer: optax.GradientTransformation,
  *,
  rate: RateSchedule | None = None,
  selected: Collection[str] = (),
  lengths: Sequence[int] = (),
) -> SlabStep:
  """Builds the program of a slab.

  Args:
    algorithm: Says what a client starts from, minimises and sends.
    optimizer: The clients' optimizer, for learning rate 1.
    rate: How the learning rate falls from one local step to the next.
    selected: Axes along which the updates of any client of the run are
      selected.
    lengths: Tokens to which the parts of batches are padded, ascending.

  Returns:
    step(sig, schedule, shared, own); the first two are static.

  Guarantees:
    - A client of weight 0 adds nothing, and under `map` costs nothing.
    - A client adds nothing if any of its numbers is not finite: its delta, what
      it sends, its factor, its metrics, what it would remember. Its metric
      `rejected`, bool [C], is true, its other metrics are 0, and it keeps its
      old state.
    - The order of clients, the padding, the schedule and the number of
      devices change only rounding.
  """
  model = algorithm.model
  train_slab = _build_train_slab(algorithm, optimizer, rate, selected, lengths)

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


def _build_train_slab(
  algorithm: Algorithm,
  optimizer: optax.GradientTransformation,
  rate: RateSchedule | None,
  selected: Collection[str],
  lengths: Sequence[int],
) -> SlabStep:
  """Builds the work of one device on its clients; see `build_slab_step`."""
  client, aggregator = algorithm.client, algorithm.aggregator
  train_locally = build_train(algorithm, optimizer, rate, lengths)

  def train(sig, shared, own):
    context, start, delta, metrics = train_locally(sig, shared, own)
    taken = jnp.sum(jnp.any(own.batches.valid, -1), dtype=jnp.float32)
    sent = client.finish(start, delta, taken, context)
    sound = finite.all_finite((delta, sent.tree, sent.state, metrics))
    return sent._replace(factor=jnp.where(sound, sent.factor, jnp.nan)), metrics

  def train_slab(sig, schedule, shared, own):
    like, names = aggregator.spec(shared.theta, algorithm.model.axes)

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

  return train_slab


def _along(flags: jax.Array, like: jax.Array) -> jax.Array:
  """Gives flags [C] the dimensions of an array [C, ...]."""
  return flags.reshape(-1, *[1] * (like.ndim - 1))


def _sum_over_chunks(
  run: Callable[[Own], Result], own: Own, size: int, *, skip: bool
) -> Result:
  """Runs chunks one after another and adds up their sums.

  Args:
    run: Trains a chunk.
    own: The arrays of the clients of all chunks.
    size: Clients of a chunk.
    skip: Do not run chunks of padding.
  """
  chunks = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), own)
  shapes = jax.eval_shape(run, jax.tree.map(lambda x: x[0], chunks))
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

  def add(total, chunk):
    part = run(chunk)
    total = jax.tree.map(jnp.add, total, part.total)
    return total, (part.metrics, part.state)

  def rest(total, chunk):
    return total, (zeros.metrics, chunk.state)

  def body(total, chunk):
    if not skip:
      return add(total, chunk)
    return jax.lax.cond(jnp.any(chunk.weight > 0), add, rest, total, chunk)

  total, apart = jax.lax.scan(body, zeros.total, chunks)
  join = lambda m: m.reshape(-1, *m.shape[2:])
  return Result(total, *jax.tree.map(join, apart))

"""The processes of a run, one per host, and what they exchange.

All processes run the same program. So most functions here must be called by
each process, in the same order, from its main thread. A single process
exchanges nothing, and the functions cost nothing there.
"""

from collections.abc import Callable, Iterator
import contextlib
import functools
import pickle
import re
from typing import TypeVar

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from fedjax_tune import endings
from fedjax_tune.typing import Tree

T = TypeVar('T')

# A message of any size goes in pieces, as it lies on every device meanwhile.
_PIECE = 1 << 26


def count() -> int:
  """Returns the number of hosts."""
  # What is no cluster starts no backend just to be asked.
  return jax.process_count() if jax.distributed.is_initialized() else 1


def index() -> int:
  """Returns the index of this host."""
  return jax.process_index() if count() > 1 else 0


def is_first() -> bool:
  """Whether this is the first host, the only one that writes and reports."""
  return index() == 0


def anywhere(flag: bool) -> bool:
  """Says whether a flag is set on any host."""
  return any(exchange(bool(flag)))


@contextlib.contextmanager
def noticing() -> Iterator[None]:
  """Turns JAX's error when another host is gone into an early end.

  Raises:
    Interrupted: Another host is gone.
  """
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    said, *_ = str(error).splitlines()
    if count() == 1 or not re.search(_GONE, said, re.IGNORECASE):
      raise
    raise endings.Interrupted(
      'another host is gone; a run that has begun goes on from its last'
      f' checkpoint with --resume. JAX says: {said}'
    ) from error


# What JAX names where hosts no longer reach each other.
_GONE = 'gloo|nccl|peer|unavailable|heartbeat|coordination'


def each(do: Callable[[], T]) -> T:
  """Runs a function on every host, on the first one before the others.

  So the others find what the first has fetched or decoded, if they share its
  disk.

  Raises:
    RuntimeError: It failed on another host; the message says on which, and why.
      An error on this host is raised unchanged.
  """
  if count() == 1:
    return do()
  turns = (is_first(), not is_first())
  done, error = None, None
  for mine in turns:
    if mine:
      try:
        done = do()
      except Exception as raised:
        error = raised
    failures = exchange(f'{error}' if error else None)
    if error:
      raise error
    for host, failure in enumerate(failures):
      if failure is not None:
        raise RuntimeError(f'host {host}: {failure}')
  return done  # pyright: ignore[reportReturnType]


def alone(do: Callable[[], T]) -> T | None:
  """Runs a function on the first host; the others get None, or its error."""
  if count() == 1:
    return do()
  kept: list[T] = []
  told(lambda: kept.append(do()))
  return kept[0] if kept else None


def told(do: Callable[[], T]) -> T:
  """Runs a function on the first host; all get its result or error."""
  if count() == 1:
    return do()
  outcome: tuple[T | None, Exception | None] = None, None
  if is_first():
    try:
      outcome = do(), None
    except Exception as error:
      outcome = None, _portable(error)
  sent, kept = _broadcast(outcome), outcome if is_first() else None
  # The first has the very objects, which need not survive a copy.
  value, error = kept or sent
  if error:
    raise error
  return value  # pyright: ignore[reportReturnType]


def exchange(own: T) -> list[T]:
  """Returns what each host gives, by host; it should be small."""
  if count() == 1:
    return [own]
  from jax.experimental import multihost_utils

  content = pickle.dumps(own)
  sizes = multihost_utils.process_allgather(np.int32(len(content)))
  row = np.zeros(rounded(int(sizes.max())), np.uint8)
  row[: len(content)] = np.frombuffer(content, np.uint8)
  rows = multihost_utils.process_allgather(row)
  # They come from this very run, as what multiprocessing pickles does.
  return [
    pickle.loads(row[:n].tobytes()) for row, n in zip(rows, sizes, strict=True)
  ]


def _broadcast(outcome: T) -> T:
  """Returns what the first host gives."""
  from jax.experimental import multihost_utils

  send = multihost_utils.broadcast_one_to_all
  content = pickle.dumps(outcome) if is_first() else b''
  head = np.array(divmod(len(content), _PIECE), np.int32)
  whole, rest = map(int, send(head))
  pieces = []
  for number, size in enumerate([_PIECE] * whole + [rest]):
    piece = np.zeros(rounded(size), np.uint8)
    part = content[number * _PIECE :][:size]
    piece[: len(part)] = np.frombuffer(part, np.uint8)
    pieces.append(send(piece)[:size].tobytes())
  return pickle.loads(b''.join(pieces))


def _portable(error: Exception) -> Exception:
  """Returns an error that survives being sent."""
  try:
    pickle.loads(pickle.dumps(error))
  except Exception:  # Whatever its class makes of it.
    return RuntimeError(str(error))
  return error


def rounded(size: int) -> int:
  """Rounds a size up, because JAX compiles a program for each size."""
  return 1 << max(0, size - 1).bit_length()


def combine(summed: Tree, gathered: Tree) -> tuple[Tree, Tree]:
  """Adds up and collects arrays of all hosts; waits for nothing.

  Args:
    summed: Arrays on this host, with the same shapes on each host.
    gathered: The same.

  Returns:
    The sums of `summed`, and leaves [hosts, ...] of `gathered`, on this host's
    first device and equal on all hosts to the last bit.
  """
  return _here(_combine()(_offered(summed), _offered(gathered)))


def of_first(tree: Tree) -> Tree:
  """Returns the arrays that the first host has; waits for nothing."""
  return _here(_of_first()(_offered(tree)))


@functools.cache
def _mesh() -> jax.sharding.Mesh:
  """All devices, in a row for each host.

  Each device of a host has the same data, as some systems cannot run a program
  on only some devices.
  """
  devices = sorted(jax.devices(), key=lambda d: (d.process_index, d.id))
  rows = np.array(devices).reshape(count(), -1)
  return jax.sharding.Mesh(rows, ('hosts', 'local'))


@functools.cache
def _combine() -> Callable[[Tree, Tree], Tree]:
  add = lambda x: jnp.sum(x, axis=0, dtype=x.dtype)
  return jax.jit(
    lambda summed, gathered: (jax.tree.map(add, summed), gathered),
    out_shardings=NamedSharding(_mesh(), PartitionSpec()),
  )


@functools.cache
def _of_first() -> Callable[[Tree], Tree]:
  def pick(x):
    # Flags are added as numbers.
    own = x[0].astype(jnp.int32) if x.dtype == bool else x[0]
    own = jnp.where(lax.axis_index('hosts') == 0, own, jnp.zeros_like(own))
    return lax.psum(own, 'hosts').astype(x.dtype)

  return jax.jit(
    jax.shard_map(
      lambda tree: jax.tree.map(pick, tree),
      mesh=_mesh(),
      in_specs=PartitionSpec('hosts'),
      out_specs=PartitionSpec(),
      check_vma=False,
    )
  )


_lead = jax.jit(lambda tree: jax.tree.map(lambda x: x[None], tree))


def _offered(tree: Tree) -> Tree:
  """Makes arrays [hosts, ...] from the row that each host gives."""
  where = NamedSharding(_mesh(), PartitionSpec('hosts'))

  def offer(row):
    copies = [jax.device_put(row, device) for device in jax.local_devices()]
    shape = (count(), *row.shape[1:])
    return jax.make_array_from_single_device_arrays(shape, where, copies)

  return jax.tree.map(offer, _lead(tree))


def _here(tree: Tree) -> Tree:
  """Takes this host's copy of replicated arrays."""
  local = jax.tree.map(lambda x: x.addressable_data(0), tree)
  return jax.device_put(local, jax.local_devices()[0])

"""Which examples a client trains on, step by step."""

from collections.abc import Sequence

import jax
import numpy as np

from fedjax_tune import config
from fedjax_tune.data.corpus import Corpus
from fedjax_tune.engine.gradient import Batch, Parts, together


def local_steps(
  cfg: config.Local, sizes: Sequence[int] | np.ndarray
) -> np.ndarray:
  """Returns each client's number of local steps, int [clients].

  With `steps` every client takes that many. With `epochs`, a client takes one
  step per batch of its data; `equal_steps` stops everybody in each epoch after
  m + 1 batches, m the least number of batches of any client (FedRA's main.py
  and client.py: `if i > mmm: break`).
  """
  if cfg.steps:
    return np.full(len(sizes), cfg.steps)
  batches = -(-np.asarray(sizes) // cfg.batch_size)
  if cfg.equal_steps:
    batches = np.minimum(batches, batches.min() + 1)
  return batches * cfg.epochs


def draw_batches(
  cfg: config.Local, size: int, steps: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """Draws a client's batches as positions in its data.

  Args:
    cfg: With `steps`, shuffled passes over the data follow one another
      without gaps; with `epochs` each pass ends with its last, partial batch.
    size: Number of the client's examples.
    steps: Number of its local steps.
    rng: The client's generator of this round.

  Returns:
    Positions int [steps, B] and validity bool [steps, B].
  """
  batch = cfg.batch_size
  if cfg.steps:
    passes = -(-steps * batch // size)
    order = np.concatenate([rng.permutation(size) for _ in range(passes)])
    rows = order[: steps * batch].reshape(steps, batch)
    return rows, np.ones_like(rows, bool)
  per_pass = steps // cfg.epochs
  rows = np.zeros((cfg.epochs, per_pass * batch), int)
  valid = np.zeros(rows.shape, bool)
  taken = min(size, per_pass * batch)
  for epoch in range(cfg.epochs):
    rows[epoch, :taken] = rng.permutation(size)[:taken]
    valid[epoch, :taken] = True
  return rows.reshape(steps, batch), valid.reshape(steps, batch)


def shapes(train: Corpus, length: int, lead: tuple[int, ...]) -> Batch:
  """Returns the shapes of batches.

  Args:
    train: Examples of that kind.
    length: Tokens to which texts are padded; 0 for pictures.
    lead: Leading axes: [B], or [S, B].
  """
  one = np.zeros(1, int)
  row = row_numbers(train.lengths, one.shape)
  batch = Batch(
    train.read(one, length), train.labels[one], np.zeros(1, bool), row
  )
  shape = lambda x: jax.ShapeDtypeStruct((*lead, *x.shape[1:]), x.dtype)
  return jax.tree.map(shape, batch)


def row_numbers(
  lengths: np.ndarray | None, shape: tuple[int, ...]
) -> np.ndarray | None:
  """Returns `Batch.row` of batches of this shape; None without text lengths."""
  if lengths is None:
    return None
  return np.broadcast_to(np.arange(shape[-1], dtype=np.int32), shape)


def parts(
  lengths: Sequence[int], tokens: np.ndarray, valid: np.ndarray
) -> Parts:
  """Divides batches of texts into parts of similar length, the longest first.

  A part is as long as its first text needs. All parts but the last of a length
  are full, so together they are never much more than the batch.

  Args:
    lengths: Tokens to which texts are padded, ascending.
    tokens: Tokens of each text, int [N, B].
    valid: False where there is no text, bool [N, B].
  """
  num, batch = tokens.shape
  sizes = np.array([together(length, batch) for length in lengths])
  least = np.searchsorted(np.asarray(lengths), tokens)
  least = np.where(valid, least, -1)
  order = np.argsort(-least, axis=1, kind='stable')
  bucket = np.zeros((num, batch), np.int32)
  rows = np.full((num, batch, sizes.max()), -1, np.int32)
  part, filled, size = np.full(num, -1), np.zeros(num, int), np.zeros(num, int)
  for row in order.T:
    own = least[np.arange(num), row]
    starts = (own >= 0) & (filled == size)
    part, filled = part + starts, np.where(starts, 0, filled)
    size = np.where(starts, sizes[own], size)
    bucket[starts, part[starts]] = own[starts] + 1
    at = np.flatnonzero(own >= 0)
    rows[at, part[at], filled[at]] = row[at]
    filled = filled + (own >= 0)
  return Parts(bucket, rows)


def part_shapes(lengths: Sequence[int], lead: tuple[int, ...]) -> Parts | None:
  """Returns the shapes of `parts` of batches [..., B]; None without lengths."""
  if not lengths:
    return None
  most = max(together(length, lead[-1]) for length in lengths)
  make = lambda *shape: np.broadcast_to(np.int32(0), shape)
  return jax.eval_shape(lambda: Parts(make(*lead), make(*lead, most)))


def bucket(lengths: Sequence[int], tokens: np.ndarray) -> int:
  """Returns the least of `lengths` that holds all of `tokens`.

  >>> bucket((32, 64, 128), np.array([5, 40]))
  64
  """
  return min(n for n in lengths if n >= tokens.max())

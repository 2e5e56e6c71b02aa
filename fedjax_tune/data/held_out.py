"""Holds out examples of clients from training, to judge models by."""

import dataclasses

import numpy as np

from fedjax_tune.data import digest
from fedjax_tune.data.corpus import Corpus
from fedjax_tune.data.partition import Partition
from fedjax_tune.data.shares import Shares


def hold_out(
  owned: Partition, corpus: Corpus, share: float, seed: int, field: str
) -> tuple[Partition, Shares]:
  """Takes a share of each client's examples out of its training.

  Args:
    owned: The examples of each client.
    corpus: The examples.
    share: Share of each client's examples, above 0; at least one is taken.
    seed: Decides which, together with `field`.
    field: The field of the share in the configuration.

  Returns:
    What is left for training, and what was taken.

  Guarantees:
    - An example that was taken from one client trains no client, even if
      several have it. All windows of a question go together.
    - Which examples are taken depends only on the seed and the client's
      examples.

  Raises:
    ValueError: A client would have nothing left.
  """
  held = owned.indices
  units = np.arange(len(corpus))
  if corpus.questions is not None:
    units = corpus.questions.question
  chance = _hashes(units, seed, field)[held.positions]
  order = np.lexsort((chance, held.owners))
  wanted = np.maximum(1, (share * held.sizes).astype(int))
  last = chance[order][held.offsets[:-1] + wanted - 1]
  # Of equal ones, windows or copies, all are taken.
  taken = chance <= np.repeat(last, held.sizes)
  trains = ~np.isin(chance, chance[taken])
  rest = _keep(held, trains)
  if not rest.sizes.all():
    client = int(np.argmin(rest.sizes))
    raise ValueError(
      f'{field}={share} must leave each client an example to train on, but'
      f' client {client} has {held.sizes[client]}, of which none is left.'
    )
  return dataclasses.replace(owned, indices=rest), _keep(held, taken)


def _keep(held: Shares, some: np.ndarray) -> Shares:
  return Shares.owned(held.positions[some], held.owners[some], len(held))


def _hashes(numbers: np.ndarray, seed: int, purpose: str) -> np.ndarray:
  """Returns a fixed random number uint64 [n] for each number.

  It depends on the number itself and not on its place among others, by the
  finalizer of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
  """
  key = np.array([int(digest.of(purpose, seed)[:16], 16)], np.uint64)
  x = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + key
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))

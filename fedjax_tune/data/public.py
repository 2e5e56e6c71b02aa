"""Inputs that everyone may see: unlabelled texts or pictures, and no client's."""

import dataclasses
from typing import NamedTuple
import zlib

import numpy as np

from fedjax_tune import config
from fedjax_tune.data.corpus import Corpus
from fedjax_tune.typing import Inputs

# How many, unless a run says; the least align two codes of 64 numbers.
MOST, _LEAST = 512, 128


class Shown(NamedTuple):
  """What everyone is shown, as one model reads it.

  Attributes:
    inputs: N pictures or texts.
    covered: What of a text each token covers, int32 [N, T, 2] (`covers.py`);
      None of pictures, and where nobody asks.
  """

  inputs: Inputs
  covered: np.ndarray | None = None


def reserve(
  cfg: config.Tiers, clients: config.Clients, train: Corpus
) -> np.ndarray:
  """Draws the training examples that no client is to have, sorted.

  The draw depends on `clients.seed` alone, as the partition does.

  Raises:
    ValueError: They would be half of all, or more.
  """
  count = cfg.public_examples or _usual(len(train))
  if 2 * count > len(train):
    raise ValueError(
      f'tiers.public_examples={count} must be at most {len(train) // 2}, half of'
      ' the training examples, from which they are taken where tiers.public is'
      " ''."
    )
  rng = np.random.default_rng((clients.seed, zlib.crc32(b'public')))
  return np.sort(rng.permutation(len(train))[:count])


def _usual(size: int) -> int:
  """Returns how many to take of `size`: a quarter, or what ranks need of few."""
  return min(MOST, max(size // 4, min(_LEAST, size // 2)))


def unheld(cfg: config.Tiers, held: np.ndarray, train: Corpus) -> np.ndarray:
  """Returns examples that no client has, of clients' examples as given.

  Raises:
    ValueError: There are not enough.
  """
  free = np.setdiff1d(np.arange(len(train)), held)
  count = cfg.public_examples or min(MOST, len(free))
  if not count or len(free) < count:
    raise ValueError(
      f'tiers.public_examples={count or MOST} must be at most {len(free)},'
      ' the training examples that no part of the partition has.'
    )
  return free[spread(len(free), count)]


def data_of(experiment: config.Experiment) -> config.Data | None:
  """Returns how the public set is read; None where a run's own set has them."""
  name = experiment.tiers.public
  if not name:
    return None
  return dataclasses.replace(
    experiment.data, name=name, domains=(), num_classes=0, test_examples=0
  )


def spread(size: int, count: int) -> np.ndarray:
  """Returns `count` of `size` positions, evenly spaced; all if there are fewer."""
  return np.linspace(0, size - 1, min(size, count)).astype(int)


def take(corpus: Corpus, positions: np.ndarray) -> Inputs:
  """Returns the inputs of some examples, texts no longer than need be."""
  length = 0
  if corpus.lengths is not None:
    length = max(1, int(corpus.lengths[positions].max()))
  return corpus.read(positions, length)

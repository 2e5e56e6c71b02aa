"""Inputs that everyone may see: unlabelled texts or pictures of no client."""

import dataclasses
from typing import NamedTuple
import zlib

import numpy as np

from fedjax_tune import config
from fedjax_tune.data.corpus import Corpus
from fedjax_tune.typing import Inputs

# Of few examples still enough for two codes of 64 numbers.
_LEAST = 128


class Shown(NamedTuple):
  """The public inputs, as one model reads them.

  Attributes:
    inputs: N pictures or texts.
    covered: The text that each token covers, int32 [N, T, 2] (`covers.py`);
      None for pictures, and if it is not needed.
  """

  inputs: Inputs
  covered: np.ndarray | None = None


def reserve(
  cfg: config.Tiers, clients: config.Clients, train: Corpus
) -> np.ndarray:
  """Draws the training examples that no client gets, sorted.

  Like the partition, the draw depends only on `clients.seed`.

  It takes at most a quarter of all examples, or if there are few as many as
  ranks need, but never more than half.
  """
  size = len(train)
  most = max(size // 4, min(_LEAST, size // 2))
  rng = np.random.default_rng((clients.seed, zlib.crc32(b'public')))
  return np.sort(rng.permutation(size)[: min(cfg.public_examples, most)])


def unheld(cfg: config.Tiers, held: np.ndarray, train: Corpus) -> np.ndarray:
  """Returns examples that no client has in the user's own partition.

  Raises:
    ValueError: There are none.
  """
  free = np.setdiff1d(np.arange(len(train)), held)
  if not len(free):
    raise ValueError(
      f'tiers.public_examples={cfg.public_examples}: no training example is left'
      ' over by the partition; tiers.public must name a set.'
    )
  return free[spread(len(free), cfg.public_examples)]


def data_of(experiment: config.Experiment) -> config.Data | None:
  """Returns how the public set is read; None if it is the run's own set."""
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
  """Returns the inputs of some examples, with texts as short as possible."""
  length = 0
  if corpus.lengths is not None:
    length = max(1, int(corpus.lengths[positions].max()))
  return corpus.read(positions, length)

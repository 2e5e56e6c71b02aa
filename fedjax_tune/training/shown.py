"""Public inputs, on which a method may align its models."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools

import numpy as np

from fedjax_tune import config
from fedjax_tune.data import (
  arrays,
  corpus,
  covers,
  partition,
  public,
  tokens,
)
from fedjax_tune.methods.heterotune.heterotune import is_aligned
from fedjax_tune.models import pretrained, tiers
from fedjax_tune.typing import Inputs


def divide(
  experiment: config.Experiment,
  train: corpus.Corpus,
  parts: Sequence[np.ndarray] | None,
) -> tuple[partition.Partition, np.ndarray]:
  """Returns which examples each client has, and which are public instead.

  Some are public only if tiers are aligned on examples of the run's own set.

  Args:
    experiment: The configuration.
    train: Training data.
    parts: For each client the positions of its examples; None divides them as
      `clients.partition` says.

  Raises:
    ValueError: See `partition.partition`; or there are too few examples.
  """
  cfg, clients = experiment.tiers, experiment.clients
  aligned = experiment.method == 'heterotune' and is_aligned(experiment)
  apart = aligned and not cfg.public
  nothing = np.arange(0)
  if parts is not None:
    owned = partition.of(parts, clients, train)
    held = owned.indices.positions
    return owned, public.unheld(cfg, held, train) if apart else nothing
  shown = public.reserve(cfg, clients, train) if apart else nothing
  return partition.partition(clients, train, shown), shown


@dataclasses.dataclass(frozen=True)
class Public:
  """The public inputs: call it with the name of a tier.

  Attributes:
    experiment: Names the set.
    tiers: The tiers.
    readers: For each tier, which tokenizer's view of the data it reads.
    train: The run's own training data.
    rows: Which of these are public, unless another set is used.
    data: The run's data, if they are in memory.
  """

  experiment: config.Experiment
  tiers: Sequence[tiers.Tier]
  readers: Mapping[str, int]
  train: corpus.Corpus
  rows: np.ndarray
  data: arrays.Arrays | None = None

  def __call__(self, name: str) -> public.Shown:
    """Returns the inputs as a tier reads them.

    If the tiers have different tokenizers, it adds the text that each token
    covers.

    Raises:
      ValueError: The texts are not those that were encoded.
    """
    (weights,) = (tier.weights for tier in self.tiers if tier.name == name)
    inputs = self._inputs(name, weights)
    if weights.tokenizer is None or len(set(self.readers.values())) == 1:
      return public.Shown(inputs)
    if (found := self._texts) is None:
      return public.Shown(inputs)
    tokenizer, length = tokens.load(weights.tokenizer), inputs.ids.shape[1]
    longest = max(self.experiment.data.lengths)
    ids, covered = covers.encode(tokenizer, *found, longest)
    real = inputs.ids != weights.pad
    if not np.array_equal(ids[:, :length][real], inputs.ids[real]):
      raise ValueError(
        f'tiers.public={self.experiment.tiers.public!r}: its texts are not those'
        f' that the tokenizer of tier {name!r} has read.'
      )
    return public.Shown(inputs, covered[:, :length])

  def _inputs(self, name: str, weights: pretrained.Pretrained) -> Inputs:
    cfg = public.data_of(self.experiment)
    if cfg is None:
      return public.take(self.train.view(self.readers[name]), self.rows)
    other, _ = corpus.load(cfg, weights.tokenizer, weights.pad)
    return public.take(other, self._of_other(len(other)))

  def _of_other(self, size: int) -> np.ndarray:
    return public.spread(size, self.experiment.tiers.public_examples)

  @functools.cached_property
  def _texts(self) -> tuple[list[str], list[str] | None] | None:
    """The raw texts, for another tokenizer; None if there are none."""
    cfg = public.data_of(self.experiment)
    if cfg is None and self.data is not None:
      return [self.data.train.inputs[row] for row in self.rows], None
    if cfg is None:
      return corpus.texts(self.experiment.data, lambda _: self.rows)
    return corpus.texts(cfg, self._of_other)


def notes(shown: np.ndarray) -> tuple[str, ...]:
  """Says how many training examples no client has, if there are any."""
  if not len(shown):
    return ()
  return (
    f'train: {len(shown)} examples belong to no client; tiers are aligned on'
    ' them, without their labels.',
  )

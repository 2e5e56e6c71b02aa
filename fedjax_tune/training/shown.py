"""Inputs that everyone is shown, on which a method may align its models."""

from collections.abc import Mapping, Sequence

import numpy as np

from fedjax_tune import config
from fedjax_tune.data import corpus, partition, public
from fedjax_tune.methods.heterotune.heterotune import is_aligned
from fedjax_tune.models import sizes, tiers
from fedjax_tune.typing import Inputs


def divide(
  experiment: config.Experiment,
  train: corpus.Corpus,
  parts: Sequence[np.ndarray] | None,
) -> tuple[partition.Partition, np.ndarray]:
  """Returns who has which examples, and those that everyone is shown instead.

  There are such only where tiers are aligned on examples of their own set.

  Args:
    experiment: The configuration.
    train: Training data.
    parts: For each client the positions of its examples; None divides them as
      `clients.partition` says.

  Raises:
    ValueError: As `partition.partition`, or there are too few examples.
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


def show(
  experiment: config.Experiment,
  found: Sequence[tiers.Tier],
  readers: Mapping[str, int],
  train: corpus.Corpus,
  shown: np.ndarray,
  name: str,
) -> Inputs:
  """Returns what everyone is shown, as a tier reads it.

  Args:
    experiment: Names the set.
    found: The tiers.
    readers: For each tier, which tokenizer's view of the data it reads.
    train: The run's own training data.
    shown: Which of them, unless the set is another.
    name: The tier.
  """
  cfg = public.data_of(experiment)
  if cfg is None:
    return public.take(train.view(readers[name]), shown)
  (weights,) = (tier.weights for tier in found if tier.name == name)
  pad = 0 if isinstance(weights.config, sizes.ViTConfig) else weights.config.pad
  other, _ = corpus.load(cfg, weights.tokenizer, pad)
  at = public.spread(len(other), experiment.tiers.public_examples)
  return public.take(other, at)


def notes(shown: np.ndarray) -> tuple[str, ...]:
  """Tells how many training examples no client has, if there are any."""
  if not len(shown):
    return ()
  return (
    f'train: {len(shown)} examples belong to no client; tiers are aligned on'
    ' them, without their labels.',
  )

"""Which client has which training examples, and which nobody trains on."""

from collections.abc import Sequence
import dataclasses

import numpy as np

from fedjax_tune import config
from fedjax_tune.data import corpus, groups, partition, shares
from fedjax_tune.data import held_out as holding
from fedjax_tune.training import shown


@dataclasses.dataclass(frozen=True)
class Ownership:
  """How the training examples are divided.

  Attributes:
    owned: What each client trains on.
    validation: For each client the positions of its part of the validation
      split; None without such a split.
    held_out: The same for the examples by which each client is judged.
    public: Positions of public examples, which no client has, int [n].
    notes: What a user should be told about this, a sentence each.
  """

  owned: partition.Partition
  validation: shares.Shares | None
  held_out: shares.Shares | None
  public: np.ndarray
  notes: tuple[str, ...]


def divide(
  experiment: config.Experiment,
  train: corpus.Corpus,
  parts: Sequence[np.ndarray] | None,
) -> Ownership:
  """Divides the training examples.

  Args:
    experiment: The configuration.
    train: The examples.
    parts: For each client the positions of its examples; None divides them as
      `clients.partition` says.

  Raises:
    ValueError: The options do not fit the examples.
  """
  owned, public = shown.divide(experiment, train, parts)
  notes = _notes(experiment.clients, train, owned, given=parts is not None)
  apart: dict[str, shares.Shares] = {}
  for field, share in (
    ('data.validation', experiment.data.validation),
    ('clients.held_out', experiment.clients.held_out),
  ):
    if share:
      seed = experiment.clients.seed
      owned, apart[field] = holding.hold_out(owned, train, share, seed, field)
  return Ownership(
    owned,
    apart.get('data.validation'),
    apart.get('clients.held_out'),
    public,
    notes,
  )


def _notes(
  cfg: config.Clients,
  train: corpus.Corpus,
  owned: partition.Partition,
  *,
  given: bool,
) -> tuple[str, ...]:
  """Says what is left out; `given` means that the user divided the examples."""
  notes = []
  if not given and cfg.partition == 'natural':
    notes.append(groups.left_out(cfg, train, owned.indices))
  by_domain = cfg.partition.startswith('domain')
  if cfg.divide_objects and by_domain and train.groups is None:
    notes.append(
      'clients.divide_objects=True has no effect here: the set names no objects.'
    )
  return tuple(filter(None, notes))

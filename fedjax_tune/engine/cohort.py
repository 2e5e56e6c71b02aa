"""Which clients take part in a round, and what each holds."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedjax_tune import config
from fedjax_tune.engine.randomness import host_rng
from fedjax_tune.engine.slabs import Info, Signature
from fedjax_tune.selection import Selection


class Member(NamedTuple):
  """A client of a round's cohort.

  Attributes:
    client: Its id.
    sig: How much it holds.
    parts: For each of `Feed.lengths`, how many parts its batches have.
  """

  client: int
  sig: Signature
  parts: tuple[int, ...] = ()


class Cohort(NamedTuple):
  """Clients of a round, one after another.

  Attributes:
    clients: Their ids.
    sigs: How much each holds.
    held: What each holds.
    infos: What else each is told.
    parts: See `Member`.
  """

  clients: list[int]
  sigs: list[Signature]
  held: list[Selection]
  infos: list[Info]
  parts: list[tuple[int, ...]]

  @property
  def members(self) -> list[Member]:
    """The clients of the cohort, and how much each holds."""
    return list(map(Member, self.clients, self.sigs, self.parts))

  def take(self, some: Sequence[int]) -> 'Cohort':
    """Returns the clients at some positions, with what they hold here."""
    return Cohort(
      [self.clients[i] for i in some],
      [self.sigs[i] for i in some],
      [self.held[i] for i in some],
      [self.infos[i] for i in some],
      [self.parts[i] for i in some],
    )


def sample_cohort(
  cfg: config.Clients,
  domains: np.ndarray,
  eligible: np.ndarray | None,
  seed: int,
  rnd: int,
) -> list[int]:
  """Samples the clients of a round, sorted.

  Args:
    cfg: `cohort` is 'uniform' (`cohort_size` clients without replacement) or
      'one_per_domain' (one client of each domain, as FedRA's authors do).
    domains: Domain of each client, int [clients].
    eligible: Which clients may be drawn, bool [clients]; None means all.
    seed: Seed of the run.
    rnd: The round.
  """
  rng = host_rng('cohort', seed, rnd)
  if cfg.cohort == 'uniform' and eligible is None:
    # NumPy lists no population that is large next to the sample.
    size = min(cfg.cohort_size, len(domains))
    return np.sort(rng.choice(len(domains), size, replace=False)).tolist()
  everyone = np.arange(len(domains))
  candidates = everyone if eligible is None else np.flatnonzero(eligible)
  if cfg.cohort == 'uniform':
    size = min(cfg.cohort_size, len(candidates))
    chosen = rng.choice(candidates, size, replace=False)
  else:
    groups = [candidates[domains[candidates] == d] for d in np.unique(domains)]
    chosen = [rng.choice(group) for group in groups if len(group)]
  return sorted(int(k) for k in chosen)

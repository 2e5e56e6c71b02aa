"""Who takes part in a round."""

import numpy as np

from fedjax_tune import config
from fedjax_tune.engine.randomness import host_rng


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
    eligible: Which clients may be drawn, bool [clients]; None lets everyone.
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

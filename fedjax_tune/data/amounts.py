"""Rules for how many examples each client has; which ones is random."""

from collections.abc import Callable

import numpy as np

from fedjax_tune import config
from fedjax_tune.data.shares import Shares, even

Rule = Callable[[np.ndarray, config.Clients, np.random.Generator], Shares]


def iid(
  labels: np.ndarray, cfg: config.Clients, rng: np.random.Generator
) -> Shares:
  """Gives all clients equally many examples."""
  order = rng.permutation(len(labels))
  return Shares.sized(order, even(len(order), cfg.count))


def quantity(
  labels: np.ndarray, cfg: config.Clients, rng: np.random.Generator
) -> Shares:
  """Gives sizes by Dir(alpha) on top of the least size."""
  share = rng.dirichlet(np.full(cfg.count, cfg.alpha))
  if not np.isfinite(share).all():
    share = np.eye(cfg.count)[rng.integers(cfg.count)]
  return _deal(labels, cfg, share, rng)


def growing(weigh: Callable[[np.ndarray], np.ndarray]) -> Rule:
  """Gives sizes that grow with the client's number, on top of the least size.

  Args:
    weigh: Numbers of clients, from 1 to C -> their weights.
  """

  def rule(
    labels: np.ndarray, cfg: config.Clients, rng: np.random.Generator
  ) -> Shares:
    weights = weigh(np.arange(1, cfg.count + 1, dtype=float))
    return _deal(labels, cfg, weights / weights.sum(), rng)

  return rule


linear = growing(lambda number: number)
square = growing(lambda number: number**2)
# Of the last one, so that nothing overflows.
exponential = growing(lambda number: np.exp(number - number[-1]))


def listed(
  labels: np.ndarray, cfg: config.Clients, rng: np.random.Generator
) -> Shares:
  """Gives the sizes that `clients.sizes` lists, in turn."""
  sizes = listed_sizes(cfg)
  if cfg.replace:
    drawn = rng.integers(len(labels), size=int(sizes.sum()))
    return Shares.sized(drawn, sizes)
  check_total(cfg, int(sizes.sum()), len(labels))
  return Shares.sized(rng.permutation(len(labels))[: sizes.sum()], sizes)


def listed_sizes(cfg: config.Clients) -> np.ndarray:
  """Returns the number of examples of each client, int64 [C].

  Raises:
    ValueError: No size is given, or one is below the least.
  """
  if not cfg.sizes:
    raise ValueError(
      f'clients.sizes=() must not be empty with clients.partition='
      f'{cfg.partition!r}: the number of examples of each client, or of clients'
      ' in turn.'
    )
  if min(cfg.sizes) < cfg.min_examples:
    raise ValueError(
      f'clients.sizes: {min(cfg.sizes)} must be at least clients.min_examples='
      f'{cfg.min_examples}.'
    )
  return np.resize(np.array(cfg.sizes, int), cfg.count)


def check_total(cfg: config.Clients, wanted: int, there: int) -> None:
  """Raises a ValueError if clients want more examples than there are."""
  if wanted > there:
    raise ValueError(
      f'clients.sizes: {cfg.count} clients would have {wanted} examples; there'
      f' are {there}. clients.replace=True draws with replacement.'
    )


def _deal(
  labels: np.ndarray,
  cfg: config.Clients,
  share: np.ndarray,
  rng: np.random.Generator,
) -> Shares:
  """Gives each client the least number, and a share of the rest."""
  spare = len(labels) - cfg.count * cfg.min_examples
  ends = np.round(np.cumsum(share) * spare).astype(int)
  ends += cfg.min_examples * np.arange(1, cfg.count + 1)
  ends[-1] = len(labels)
  return Shares.sized(rng.permutation(len(labels)), np.diff(ends, prepend=0))

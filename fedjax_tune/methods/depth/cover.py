"""Random rows of an allocation that together cover every layer."""

from collections.abc import Sequence
import functools
import math

import numpy as np


def draw_cover(
  budgets: Sequence[int], depth: int, rng: np.random.Generator
) -> list[np.ndarray]:
  """Draws for each client distinct layers, so that every layer has an owner.

  All such allocations have the same probability: the rows are distributed as if
  each were drawn uniformly, and all were redrawn until they cover. But nothing
  is drawn twice here. One client after another gets some of the layers that
  nobody has yet. Their number j is drawn with the probability that it has among
  all covers, and the layers themselves uniformly.

  If the budgets together are less than the depth, no two clients share a layer,
  so that as many layers as possible have an owner.

  Args:
    budgets: Layers of each client, each at most `depth`.
    depth: Number of layers.
    rng: Draws.

  Returns:
    For each client its layers, sorted int [budget].
  """
  if sum(budgets) <= depth:
    order = rng.permutation(depth)
    ends = np.cumsum(budgets)[:-1]
    return [np.sort(row) for row in np.split(order[: sum(budgets)], ends)]
  chances = _log_chances(tuple(budgets), depth)
  open_, taken = rng.permutation(depth), np.array([], int)
  rows = []
  for budget, after in zip(budgets, chances[1:], strict=True):
    new = np.arange(min(budget, len(open_)) + 1)
    log_p = _log_hypergeometric(depth, len(open_), budget)[: len(new)]
    log_p = log_p + after[len(open_) - new]
    p = np.exp(log_p - log_p.max())
    count = rng.choice(new, p=p / p.sum())
    old = rng.choice(taken, budget - count, replace=False)
    # `open_` is in random order.
    first, open_ = open_[:count], open_[count:]
    taken = np.concatenate([taken, first])
    rows.append(np.sort(np.concatenate([first, old])))
  return rows


@functools.lru_cache(64)
def _log_chances(budgets: tuple[int, ...], depth: int) -> np.ndarray:
  """Returns log probabilities that clients from i on cover u given layers.

  Args:
    budgets: Layers of each client.
    depth: Number of layers.

  Returns:
    [clients + 1, depth + 1], over i and u.
  """
  chances = np.full((len(budgets) + 1, depth + 1), -np.inf)
  chances[-1, 0] = 0.0
  for i in reversed(range(len(budgets))):
    for u in range(depth + 1):
      new = np.arange(min(budgets[i], u) + 1)
      terms = (
        _log_hypergeometric(depth, u, budgets[i]) + chances[i + 1, u - new]
      )
      chances[i, u] = np.logaddexp.reduce(terms)
  return chances


@functools.lru_cache(4096)
def _log_hypergeometric(depth: int, marked: int, draws: int) -> np.ndarray:
  """Returns the log probabilities that j of the drawn layers are marked.

  j goes from 0 to the smaller of `marked` and `draws`.
  """
  counts = range(min(marked, draws) + 1)
  total = math.comb(depth, draws)
  ways = [
    math.comb(marked, j) * math.comb(depth - marked, draws - j) for j in counts
  ]
  return np.array(
    [math.log(w) - math.log(total) if w else -np.inf for w in ways]
  )

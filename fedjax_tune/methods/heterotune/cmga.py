"""Cross-model gradient alignment: makes the updates of tiers agree.

HeteroTune (arXiv 2411.16796, version 2) names it and gives its purpose, to
harmonise gradient directions across models during aggregation; the formula is
not public. There are two substitutes: projection of conflicting pairs, as
PCGrad does for tasks (arXiv 2001.06782), but in the order of the tiers where
PCGrad draws an order; and the same against the mean of all tiers.
"""

from collections.abc import Callable, Sequence

import jax
from jax import Array
import jax.numpy as jnp

from fedjax_tune import selection
from fedjax_tune.selection import GroupSum
from fedjax_tune.typing import Tree

# (deltas [m, ..., R, R], shares [m, ..., 1, 1]) -> aligned deltas
Align = Callable[[Array, Array], Array]


def combine(totals: Sequence[GroupSum], align: Align) -> Tree:
  """Averages the updates of tiers, after aligning their means.

  Args:
    totals: The sums of each tier, over shared matrices [..., R, R] and biases
      [..., R]. Each of these is aligned separately.
    align: One of `ALIGN`.

  Returns:
    sum_m w_m delta'_m, where w_m is tier m's share of the weights of the
    clients that hold a coordinate; 0 where nobody does.
  """

  def combined(path, *parts):
    count = len(parts) // 2
    nums, dens = jnp.stack(parts[:count]), jnp.stack(parts[count:])
    means = selection.coverage_mean(GroupSum(nums, dens))
    total = dens.sum(0)
    shares = dens / jnp.where(total > 0, total, 1)
    if not path[-1].key.endswith('bias'):
      return jnp.sum(shares * align(means, shares), 0)
    # A bias is a matrix of one row.
    rows = align(means[..., None, :], shares[..., None, :])
    return jnp.sum(shares * rows[..., 0, :], 0)

  nums, dens = zip(*totals, strict=True)
  return jax.tree.map_with_path(combined, *nums, *dens)


def pairwise(deltas: Array, shares: Array) -> Array:
  """Removes from each delta the part that opposes any other tier's delta."""
  del shares
  aligned = []
  for i, delta in enumerate(deltas):
    for j, other in enumerate(deltas):
      delta = delta if i == j else without_conflict(delta, other)
    aligned.append(delta)
  return jnp.stack(aligned)


def mean(deltas: Array, shares: Array) -> Array:
  """Removes from each delta the part that opposes the weighted mean of all."""
  return without_conflict(deltas, jnp.sum(shares * deltas, 0))


def without_conflict(delta: Array, other: Array) -> Array:
  """Projects matrices off the directions of others that they oppose.

  delta - min(<delta, other>, 0) / ||other||^2 other, over the last two axes.
  """
  inner = lambda a, b: jnp.sum(a * b, (-2, -1), keepdims=True)
  norm = inner(other, other)
  against = jnp.minimum(inner(delta, other), 0)
  return delta - against / jnp.where(norm > 0, norm, 1) * other


ALIGN: dict[str, Align | None] = {
  'off': None,
  'pairwise': pairwise,
  'mean': mean,
}

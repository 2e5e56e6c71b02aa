"""The mean of clients that are limited along several axes at once.

Each axis has its own rule for what a client does not hold. Each coordinate's
sum is divided by that coordinate's own weight: the layers, widths and ranks
that a client has decide where it counts.
"""

from collections.abc import Callable, Collection

import jax
import jax.numpy as jnp
from jax.tree_util import KeyPath

from fedjax_tune.engine.algorithm import GroupSums, Update, everyone
from fedjax_tune.typing import Axes, Tree

# As `Aggregator.merge`.
Merge = Callable[[Tree, GroupSums, Tree], tuple[Update, Tree]]


def filled_mean(axes: Axes, still: Collection[str], *, zeros: bool) -> Merge:
  """Returns the mean of each coordinate over the clients that count there.

  Along `still` and 'rank' clients hold the first n, so the largest weight along
  such an axis is the weight of all clients that hold any of it.

    still  what a client lacks along it has not changed (RaFFM's rule P)
    zeros  what it lacks of 'rank' is zero (FedIT's padding); clients then send
           adapters themselves, and the change of everything else

  Along every other axis a client counts where it holds something. For a
  coordinate w of an adapter, let H be the clients that hold its layer, R those
  of H that hold its rank, and C those of R that hold its width. Then

    w <- (sum_C w_k + (|R| - |C|) w) / |H|,

  where |.| are sums of weights. If nobody holds a layer or a width, w stays; so
  does w of A if nobody sent its rank (see `ranks.build_fedit`).

  Args:
    axes: Axes of theta.
    still: Axes along which missing parts count as unchanged.
    zeros: Whether missing ranks count as zero.
  """

  def average(
    path: KeyPath,
    w: jax.Array,
    num: jax.Array,
    den: jax.Array,
    names: tuple[str, ...],
  ) -> tuple[jax.Array, jax.Array]:
    """Returns the change of a leaf, and where it moves."""
    held = _most(den, names, still)
    if not zeros or 'rank' not in names:
      return _divide(num, held), den != 0
    missing = (held - den) * w if still else 0
    mean = _divide(num + missing, _most(held, names, ('rank',)))
    moves = _most(den, names, ('rank',)) != 0
    if path[-1].key == 'lora_a':
      others = [d for d, n in enumerate(names) if n not in ('layer', 'rank')]
      moves &= jnp.any(mean != 0, others, keepdims=True)
    return mean - w, moves

  def merge(theta: Tree, sums: GroupSums, memory: Tree) -> tuple[Update, Tree]:
    total = everyone(sums)
    both = jax.tree.map_with_path(average, theta, total.num, total.den, axes)
    delta, covered = jax.tree.transpose(
      jax.tree.structure(theta), jax.tree.structure((0, 0)), both
    )
    return Update(delta, covered), memory

  return merge


def _most(
  den: jax.Array, names: tuple[str, ...], along: Collection[str]
) -> jax.Array:
  """Returns the largest weight along some axes, 1 wide there."""
  dims = [d for d, name in enumerate(names) if name in along]
  return jnp.max(den, axis=dims, keepdims=True) if dims else den


def _divide(num: jax.Array, weight: jax.Array) -> jax.Array:
  """Divides sums by weights; 0 where no client counts."""
  some = weight != 0
  return jnp.where(some, num / jnp.where(some, weight, 1), 0)

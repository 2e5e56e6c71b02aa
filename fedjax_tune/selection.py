"""A client is a selection along named axes.

`select` takes from a tree the indices that a client holds; it is linear, and
its transpose puts local values back. Nothing here knows layers, ranks or
heads: every method describes its clients by an allocation and gets dispatch,
aggregation and coverage from these few functions.
"""

from collections.abc import Collection
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_tune.typing import Allocation, Axes, Tree


class GroupSum(NamedTuple):
  """Sums over clients in server coordinates.

  Attributes:
    num: Weighted sum of the clients' deltas, shaped like theta.
    den: Sum of the weights of the clients that hold a coordinate; shaped like
      theta, with size 1 along axes that nobody selects.
  """

  num: Tree
  den: Tree


def select(tree: Tree, axes: Axes, alloc: Allocation) -> Tree:
  """Takes the allocated indices along every axis that `alloc` names.

  Args:
    tree: Server parameters.
    axes: For each leaf of `tree` the names of its axes.
    alloc: For each selected axis int32 [n] indices, or a number n for the
      first n. A leaf without any of these axes is held whole.

  Guarantees:
    - Linear in `tree`.
    - An index outside an axis selects zeros, and puts nothing back.
  """

  def take(leaf, names):
    for dim, name in enumerate(names):
      held = alloc.get(name)
      if isinstance(held, int):
        leaf = jax.lax.slice_in_dim(leaf, 0, held, axis=dim)
      elif held is not None:
        leaf = jnp.take(leaf, held, axis=dim, mode='fill', fill_value=0)
    return leaf

  return jax.tree.map(take, tree, axes)


def scatter_sum(like: Tree, axes: Axes, alloc: Allocation, local: Tree) -> Tree:
  """Adds up what clients hold in server coordinates.

  The transpose of `select`, vmapped over clients: each leaf lowers to one
  scatter-add, and a leaf held whole to a sum.

  Args:
    like: A tree shaped like the server's.
    axes: Its axes.
    alloc: For each selected axis indices [C, n], or the number n of all.
    local: The clients' trees, stacked on a leading axis [C].
  """
  num = jax.tree.leaves(local)[0].shape[0]
  own, prefix = split_allocation(alloc)

  def dispatch(tree):
    hold = lambda rows: select(tree, axes, {**rows, **prefix})
    return jax.vmap(hold, axis_size=num)(own)

  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), like)
  (total,) = jax.linear_transpose(dispatch, shapes)(local)
  return total


def split_allocation(
  alloc: Allocation,
) -> tuple[dict[str, jax.Array | np.ndarray], dict[str, int]]:
  """Returns the indices of an allocation, and its numbers."""
  own = {a: n for a, n in alloc.items() if not isinstance(n, int)}
  return own, {a: n for a, n in alloc.items() if isinstance(n, int)}


def coverage_like(tree: Tree, axes: Axes, selected: Collection[str]) -> Tree:
  """Returns zeros shaped like `tree`, but 1 wide along unselected axes."""

  def shrink(leaf, names):
    pairs = zip(leaf.shape, names, strict=True)
    return jnp.zeros([n if name in selected else 1 for n, name in pairs])

  return jax.tree.map(shrink, tree, axes)


def zero_sum(theta: Tree, axes: Axes, selected: Collection[str]) -> GroupSum:
  """Returns the sum over no clients."""
  zeros = jax.tree.map(jnp.zeros_like, theta)
  return GroupSum(zeros, coverage_like(theta, axes, selected))


def group_sum(
  theta: Tree,
  axes: Axes,
  alloc: Allocation,
  delta: Tree,
  weight: jax.Array,
  selected: Collection[str] = (),
) -> GroupSum:
  """Sums weighted deltas and weights over the clients of a group.

  Args:
    theta: Server parameters; only shapes are read.
    axes: Their axes.
    alloc: For each selected axis indices [C, n], or the number n of all.
    delta: Deltas of the clients' selections, leaves [C, ...].
    weight: Weights [C]; 0 for padding.
    selected: Axes along which other groups select; `den` has their size, too.
  """

  def weighted(x):
    return x * weight.reshape(-1, *[1] * (x.ndim - 1)).astype(x.dtype)

  like = coverage_like(theta, axes, {*alloc, *selected})
  own, prefix = split_allocation(alloc)
  hold = lambda w, rows: _held(like, axes, {**rows, **prefix}, w)
  held = jax.vmap(hold)(weight, own)
  num = scatter_sum(theta, axes, alloc, jax.tree.map(weighted, delta))
  return GroupSum(num, scatter_sum(like, axes, alloc, held))


def _held(like: Tree, axes: Axes, alloc: Allocation, w: jax.Array) -> Tree:
  selected = select(like, axes, alloc)
  return jax.tree.map(lambda x: jnp.full(x.shape, w, x.dtype), selected)


def coverage_mean(total: GroupSum) -> Tree:
  """Averages each coordinate over the clients that hold it.

  Guarantees:
    - A coordinate that nobody holds gets 0.
    - Scaling every weight by one factor changes nothing.
  """

  def mean(num, den):
    return jnp.where(den > 0, num / jnp.where(den > 0, den, 1), 0)

  return jax.tree.map(mean, total.num, total.den)

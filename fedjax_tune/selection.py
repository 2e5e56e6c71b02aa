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
    alloc: For each selected axis int32 [n] indices. A leaf without any of
      these axes is held whole.

  Guarantees:
    - Linear in `tree`.
    - An index outside an axis selects zeros, and puts nothing back.
  """

  def take(leaf, names):
    for dim, name in enumerate(names):
      if name in alloc:
        leaf = jnp.take(leaf, alloc[name], axis=dim, mode='fill', fill_value=0)
    return leaf

  return jax.tree.map(take, tree, axes)


def scatter_sum(like: Tree, axes: Axes, alloc: Allocation, local: Tree) -> Tree:
  """Adds up what clients hold in server coordinates.

  The transpose of `select`, vmapped over clients: each leaf lowers to one
  scatter-add, and a leaf held whole to a sum.

  Args:
    like: A tree shaped like the server's.
    axes: Its axes.
    alloc: Indices [C, n] for each selected axis.
    local: The clients' trees, stacked on a leading axis [C].
  """

  def dispatch(tree):
    if not alloc:
      num = jax.tree.leaves(local)[0].shape[0]
      copy = lambda x: jnp.broadcast_to(x, (num, *x.shape))
      return jax.tree.map(copy, tree)
    return jax.vmap(lambda a: select(tree, axes, a))(alloc)

  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), like)
  (total,) = jax.linear_transpose(dispatch, shapes)(local)
  return total


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
  theta: Tree, axes: Axes, alloc: Allocation, delta: Tree, weight: jax.Array
) -> GroupSum:
  """Sums weighted deltas and weights over the clients of a group.

  Args:
    theta: Server parameters; only shapes are read.
    axes: Their axes.
    alloc: Indices [C, n] for each selected axis.
    delta: Deltas of the clients' selections, leaves [C, ...].
    weight: Weights [C]; 0 for padding.
  """

  def weighted(x):
    return x * weight.reshape(-1, *[1] * (x.ndim - 1)).astype(x.dtype)

  like = coverage_like(theta, axes, alloc)
  held = jax.vmap(lambda w, a: _held(like, axes, a, w))(weight, dict(alloc))
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

"""A client is a selection along named axes.

`select` takes from a tree the indices that a client holds; it is linear, and
its transpose puts local values back. Nothing here knows layers, ranks or
heads: every method describes its clients by selections and gets dispatch,
aggregation and coverage from these few functions.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
import dataclasses
from typing import Any, NamedTuple, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_tune.typing import Allocation, AnyArray, Axes, Tree

T = TypeVar('T')
# The axes with indices, and how much is held of those with a beginning.
Structure = tuple[tuple[str, ...], tuple[tuple[str, int], ...]]


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, eq=False)
class Selection(Mapping[str, Any]):
  """What a client holds: along each named axis some indices, or the first n.

  A mapping from axis to int32 indices [n] or to the number n, and a pytree
  whose leaves are the indices. The amounts are part of the tree's structure: a
  new amount needs a new program, new indices do not.

  Attributes:
    indices: For each axis along which the client has indices of its own, int32
      [n], or [C, n] for several clients.
    prefix: For each axis of which the client holds the first n, this n.
  """

  indices: Mapping[str, AnyArray]
  prefix: Mapping[str, int]

  @classmethod
  def of(cls, held: Allocation) -> Self:
    """Reads a mapping from axis to indices, or to a number n: the first n."""
    if isinstance(held, cls):
      return held
    items = sorted(held.items())
    return cls(
      {axis: n for axis, n in items if not isinstance(n, int)},
      {axis: n for axis, n in items if isinstance(n, int)},
    )

  @classmethod
  def stack(cls, rows: Sequence['Selection']) -> Self:
    """Stacks the selections of clients that hold equal amounts, to [C, n]."""
    indices = {
      axis: np.stack([row.indices[axis] for row in rows]).astype(np.int32)
      for axis in rows[0].indices
    }
    return cls(indices, rows[0].prefix)

  @property
  def amounts(self) -> dict[str, int]:
    """How much is held along each axis."""
    own = {axis: at.shape[-1] for axis, at in self.indices.items()}
    return own | dict(self.prefix)

  def __getitem__(self, axis: str) -> Any:
    return self.prefix[axis] if axis in self.prefix else self.indices[axis]

  def __iter__(self) -> Iterator[str]:
    return iter((*self.indices, *self.prefix))

  def __len__(self) -> int:
    return len(self.indices) + len(self.prefix)

  def tree_flatten(self) -> tuple[tuple[AnyArray, ...], Structure]:
    """Returns the indices, and how much is held along each axis."""
    names = tuple(sorted(self.indices))
    prefix = tuple(sorted(self.prefix.items()))
    return tuple(self.indices[name] for name in names), (names, prefix)

  @classmethod
  def tree_unflatten(cls, held: Structure, leaves: Iterable[AnyArray]) -> Self:
    """Puts a selection together again."""
    names, prefix = held
    return cls(dict(zip(names, leaves, strict=True)), dict(prefix))


class GroupSum(NamedTuple):
  """Sums over clients in server coordinates.

  Attributes:
    num: Weighted sum of the clients' deltas, shaped like theta.
    den: Sum of the weights of the clients that hold a coordinate; shaped like
      theta, with size 1 along axes that nobody selects.
  """

  num: Tree
  den: Tree


def select(tree: T, axes: Axes, alloc: Allocation) -> T:
  """Takes the indices that are held along every axis that `alloc` names.

  Args:
    tree: Server parameters.
    axes: For each leaf of `tree` the names of its axes.
    alloc: A `Selection`, or any mapping like it. A leaf that has none of these
      axes is held whole.

  Raises:
    ValueError: `alloc` names an axis that no leaf has, or a number that is not
      from 0 to its size, or its indices are not integers [n]; `axes` does not
      name each axis of each leaf. For a part of a tree, `select_within` ignores
      axes that only other parts have.

  Guarantees:
    - Linear in `tree`.
    - An index outside an axis, even a negative one, selects zeros and puts
      nothing back.
    - An index given twice appears twice, and counts twice on the way back.
  """
  known = axis_names(axes)
  for name in alloc:
    if name not in known:
      raise ValueError(
        f'axis {name!r} of the allocation must be one of'
        f' {", ".join(sorted(known)) or "none"}, the axes of the tree.'
      )

  def take(leaf, names):
    if not isinstance(names, tuple) or len(names) != leaf.ndim:
      raise ValueError(
        f'axes={names!r} must name the {leaf.ndim} axes of a leaf of shape'
        f' {leaf.shape}.'
      )
    for dim, name in enumerate(names):
      if name in alloc:
        leaf = _take(leaf, dim, name, alloc[name])
    return leaf

  return jax.tree.map(take, tree, axes)


def _take(
  leaf: jax.Array, dim: int, name: str, held: AnyArray | int
) -> jax.Array:
  """Takes what is held along one axis of a leaf."""
  size = leaf.shape[dim]
  if isinstance(held, int) and not isinstance(held, bool):
    if not 0 <= held <= size:
      raise ValueError(f'{name}={held} must lie in [0, {size}], its size.')
    return jax.lax.slice_in_dim(leaf, 0, held, axis=dim)
  np_or_jnp = jnp if isinstance(held, jax.Array) else np
  held = np_or_jnp.asarray(held)
  if held.ndim != 1 or not np.issubdtype(held.dtype, np.integer):
    raise ValueError(
      f'{name} must have integer indices [n], not {held.dtype} {held.shape}.'
    )
  # `jnp.take` would count negative ones from the end.
  inside = (held >= 0) & (held < size)
  index = np_or_jnp.where(inside, held, size).astype(np.int32)
  return jnp.take(leaf, index, axis=dim, mode='fill', fill_value=0)


def axis_names(axes: Axes) -> set[str]:
  """Returns the names of all axes of a tree."""
  # Names of axes stand in tuples, but a tree may have tuples of its own.
  return {name for name in jax.tree.leaves(axes) if isinstance(name, str)}


def select_within(tree: T, axes: Axes, alloc: Allocation) -> T:
  """Selects as `select` does, from a tree that lacks some of the axes."""
  return select(tree, axes, within(alloc, axes))


def within(alloc: Allocation, axes: Axes) -> Selection:
  """Restricts a selection to the axes of a tree."""
  known = axis_names(axes)
  return Selection.of({a: held for a, held in alloc.items() if a in known})


def scatter_sum(like: Tree, axes: Axes, alloc: Allocation, local: Tree) -> Tree:
  """Adds up, in server coordinates, what clients hold.

  The transpose of `select`, vmapped over clients: each leaf lowers to one
  scatter-add, and a leaf held whole to a sum.

  Args:
    like: A tree shaped like the server's.
    axes: Its axes.
    alloc: For each selected axis indices [C, n], or the number n of all.
    local: The clients' trees, stacked on a leading axis [C].
  """
  num = jax.tree.leaves(local)[0].shape[0]

  def dispatch(tree):
    hold = lambda held: select(tree, axes, held)
    return jax.vmap(hold, axis_size=num)(Selection.of(alloc))

  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), like)
  (total,) = jax.linear_transpose(dispatch, shapes)(local)
  return total


def put_back(like: Tree, axes: Axes, alloc: Allocation, local: Tree) -> Tree:
  """Returns one client's tree in server coordinates, 0 where it holds nothing.

  Args:
    like: A tree shaped like the server's.
    axes: Its axes.
    alloc: What the client holds; it may name axes that the tree lacks.
    local: The client's tree.
  """
  # As the sum over one client.
  held, one = jax.tree.map(lambda x: x[None], (within(alloc, axes), local))
  return scatter_sum(like, axes, held, one)


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
    weight: Weights [C]. A client whose weight is not a number above 0 is left
      out, whatever its delta: padding has 0.
    selected: Axes along which other groups select; `den` has their full size
      too.
  """
  real = (weight > 0) & (weight < jnp.inf)
  weight = jnp.where(real, weight, 0)

  def weighted(x):
    spread = lambda w: w.reshape(-1, *[1] * (x.ndim - 1))
    # Not a product with 0, which is NaN where a delta is not finite.
    return jnp.where(spread(real), x * spread(weight).astype(x.dtype), 0)

  like = coverage_like(theta, axes, {*alloc, *selected})
  hold = lambda w, held: _held(like, axes, held, w)
  held = jax.vmap(hold)(weight, Selection.of(alloc))
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
    - A weight of NaN gives NaN; it is not taken for a weight of 0.
  """

  def mean(num, den):
    return jnp.where(den != 0, num / jnp.where(den != 0, den, 1), 0)

  return jax.tree.map(mean, total.num, total.den)

"""Salient parameter prioritization: channels in the order of their L1 norm.

RaFFM (arXiv 2310.00247, section 3; the authors' code is
github.com/yusx-swapp/RaFFM, raffm/param_prioritization.py). Reordering a hidden
axis wherever it occurs changes no output. So the first channels can be made the
salient ones, and a subnetwork is a prefix.

The authors reorder the channels of queries and keys, jointly and inside each
head. The wider scopes are ours: values with the output projection, and the
MLP's hidden units; they change no output either. The axis that a block reads
and writes ('embed') is never reordered. Rotary positions tie a channel to a
frequency and to another channel; models that have them (Llama) are refused.
"""

from collections.abc import Container, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fedjax_tune.typing import Axes, Tree

# For each reordered axis, and each layer (and head), which channel comes where.
Order = Mapping[str, Int[Array, '...']]

# scope -> axis -> the kernels whose channels it ranks, by path in a block.
SCOPES: dict[str, dict[str, tuple[str, ...]]] = {
  'none': {},
  'qk': {'qk_dim': ('attn.q', 'attn.k')},
}
SCOPES['qk+vo'] = {**SCOPES['qk'], 'v_dim': ('attn.v', 'attn.proj')}
SCOPES['qk+vo+ffn'] = {**SCOPES['qk+vo'], 'ffn': ('mlp.fc1', 'mlp.fc2')}

# The axes along which an order has a row of its own.
_ROWS = ('layer', 'heads')


def check(names: Container[str], scope: str) -> None:
  """Raises a ValueError if a model has no axis that a scope reorders.

  Args:
    names: Names of the model's axes.
    scope: A key of `SCOPES`.
  """
  if 'qk_dim' in SCOPES[scope] and 'qk_dim' not in names:
    raise ValueError(
      f"priority={scope!r} must be 'none' for this model: its rotary positions"
      ' tie each channel of queries and keys to a frequency.'
    )


def rank(blocks: Tree, axes: Axes, scope: str) -> Order:
  """Ranks channels by salience, the most salient first.

  The salience of a channel is the mean, over the axis' two kernels, of the L1
  norm of its weights; biases do not count.

  Args:
    blocks: Stacked blocks with their kernels.
    axes: Axes of `blocks`.
    scope: A key of `SCOPES`.

  Returns:
    For each axis int [L, n], or [L, H, n] for those inside heads.

  Raises:
    ValueError: The model has rotary positions.
  """
  check(axes['attn']['q']['kernel'] if SCOPES[scope] else (), scope)
  order = {}
  for axis, paths in SCOPES[scope].items():
    scores = [
      _norms(_at(blocks, p)['kernel'], _at(axes, p)['kernel'], axis)
      for p in paths
    ]
    order[axis] = jnp.argsort(-sum(scores) / len(scores), axis=-1, stable=True)
  return order


def _at(tree: Tree, path: str) -> Tree:
  for name in path.split('.'):
    tree = tree[name]
  return tree


def _norms(
  kernel: Array, names: tuple[str, ...], axis: str
) -> Float[Array, '...']:
  rows = (*_ROWS, axis)
  others = [d for d, name in enumerate(names) if name not in rows]
  kept = [name for name in names if name in rows]
  norms = jnp.sum(jnp.abs(kernel), axis=tuple(others))
  return norms.transpose([kept.index(name) for name in rows if name in kept])


def reorder(tree: Tree, axes: Axes, order: Order) -> Tree:
  """Reorders every leaf along the axes that are ranked, wherever they occur.

  Args:
    tree: Parameters, or anything shaped like them.
    axes: Its axes.
    order: The result of `rank`.
  """

  def move(leaf: jax.Array, names: tuple[str, ...]) -> jax.Array:
    for dim, name in enumerate(names):
      if name in order:
        rows = [n for n in (*_ROWS, name) if n in names]
        index = order[name]
        # One order serves the whole extent of the other axes.
        shape = [leaf.shape[d] if n in rows else 1 for d, n in enumerate(names)]
        index = index.transpose(_to(rows, names)).reshape(shape)
        leaf = jnp.take_along_axis(leaf, index, axis=dim)
    return leaf

  return jax.tree.map(move, tree, axes)


def _to(rows: list[str], names: tuple[str, ...]) -> list[int]:
  """Returns the transposition of an order's rows into a leaf's."""
  there = [n for n in names if n in rows]
  return [rows.index(n) for n in there]

"""A foundation model, split once into what is trained and what is not."""

import dataclasses
from typing import Any

from flax import nnx
import jax

from fedjax_tune.typing import Axes, Tree


@dataclasses.dataclass(frozen=True)
class Foundation:
  """An NNX model as a structure and two parameter trees.

  Attributes:
    graph: The model's structure, without arrays.
    theta: Trainable parameters, nested dicts (adapters and head).
    base: Frozen parameters, nested dicts.
    axes: For each leaf of `theta` the names of its axes.
    base_axes: Likewise of `base`.
    depth: Number of blocks.
  """

  graph: Any
  theta: Tree
  base: Tree
  axes: Axes
  base_axes: Axes
  depth: int

  def merge(self, base: Tree, theta: Tree) -> Any:
    """Rebuilds the model around other arrays, a client's selection say."""
    return merge(self.graph, base, theta)


def merge(graph: Any, base: Tree, theta: Tree) -> Any:
  """Rebuilds a model from its structure and its two trees."""
  return nnx.merge(graph, nnx.State(theta), nnx.State(base))


def split(model: nnx.Module, depth: int) -> Foundation:
  """Splits a model by variable type: `nnx.Param` trains, the rest does not."""
  graph, theta, base = nnx.split(model, nnx.Param, ...)
  return Foundation(
    graph=graph,
    theta=nnx.to_pure_dict(theta),
    base=nnx.to_pure_dict(base),
    axes=_axes(theta),
    base_axes=_axes(base),
    depth=depth,
  )


def _axes(state: Any) -> Axes:
  is_variable = lambda v: isinstance(v, nnx.Variable)
  named = jax.tree.map(
    lambda v: v.get_metadata('axes'), state, is_leaf=is_variable
  )
  return nnx.to_pure_dict(named)


def num_params(tree: Tree) -> int:
  """Counts the parameters of a tree."""
  return sum(leaf.size for leaf in jax.tree.leaves(tree))

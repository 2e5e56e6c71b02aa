"""A foundation model, split once into trained and frozen parameters."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any, Protocol, TypeVar

from flax import nnx, traverse_util
import jax

from fedjax_tune import selection
from fedjax_tune.models import linear
from fedjax_tune.typing import Allocation, AnyArray, Axes, Inputs, Path, Tree

T = TypeVar('T')

# Parameters that are factors of products. The table of words is one of them,
# as some decoders multiply by it.
_FACTORS = frozenset({'kernel', 'word'})


class Model(Protocol):
  """The model that a client runs: one of the models here, with its arrays."""

  # Which modules these two have depends on the family.
  embed: Any
  blocks: Any
  head: linear.Linear

  def __call__(
    self, inputs: Inputs, layers: AnyArray, /, *, key: jax.Array | None = None
  ) -> jax.Array:
    """Returns what the task reads, after the blocks with these ids."""
    ...

  def start(
    self, inputs: Inputs, /, key: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array | None]:
    """Returns what the first block reads, and which tokens are real, or None."""
    ...

  def features(
    self, x_BxTxD: jax.Array, /, key: jax.Array | None = None
  ) -> jax.Array:
    """Returns what the head reads of the tokens after the last block."""
    ...

  def tokens(
    self, inputs: Inputs, layers: AnyArray, /, *, key: jax.Array | None = None
  ) -> jax.Array:
    """Returns all tokens after the blocks, [B, T, D]."""
    ...

  def class_tokens(
    self, inputs: Inputs, layers: AnyArray, /, *, key: jax.Array | None = None
  ) -> jax.Array:
    """Returns what a classifier reads after each block, [N, B, D]."""
    ...


class Models(Protocol):
  """What the engine needs from a model, or from the models of a federation."""

  @property
  def theta(self) -> Tree:
    """What clients train, at the start."""
    ...

  @property
  def axes(self) -> Axes:
    """For each leaf of `theta` the names of its axes."""
    ...

  @property
  def base(self) -> Tree:
    """The frozen parameters."""
    ...

  @property
  def depth(self) -> int:
    """Blocks of the deepest model."""
    ...

  def held(self, base: Tree, alloc: Allocation) -> Tree:
    """Returns the frozen parameters of a client."""
    ...

  def assemble(self, base: Tree, local: Tree, alloc: Allocation) -> Model:
    """Builds the model that a client runs."""
    ...


@dataclasses.dataclass(frozen=True)
class Foundation:
  """An NNX model as a structure and two parameter trees.

  Attributes:
    graph: The model's structure, without arrays.
    theta: Trainable parameters, nested dicts (adapters and head).
    base: Frozen parameters, nested dicts.
    axes: For each leaf of `theta` the names of its axes.
    base_axes: For each leaf of `base` the names of its axes.
    depth: Number of blocks.
  """

  graph: nnx.GraphDef
  theta: Tree
  base: Tree
  axes: Axes
  base_axes: Axes
  depth: int

  def merge(self, base: Tree, theta: Tree) -> Model:
    """Rebuilds the model with other arrays."""
    return nnx.merge(self.graph, nnx.State(theta), nnx.State(base))

  def assemble(self, base: Tree, local: Tree, alloc: Allocation) -> Model:
    """Builds the model that a client runs.

    Args:
      base: The frozen parameters, whole.
      local: The client's part of theta.
      alloc: What the client holds along each axis. The model itself takes
        frozen blocks by id, one after another; along all other axes they are
        selected here.
    """
    others = {axis: held for axis, held in alloc.items() if axis != 'layer'}
    held = selection.select_within(base, self.base_axes, others)
    return self.merge(held, local)

  def held(self, base: Tree, alloc: Allocation) -> Tree:
    """Returns the frozen parameters of a client, its blocks too."""
    return selection.select_within(base, self.base_axes, alloc)


def split(model: nnx.Module | Model, depth: int) -> Foundation:
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


def release(model: nnx.Module, trains: Callable[[str], bool]) -> None:
  """Turns frozen parameters of a model, in place, into trained ones.

  Args:
    model: A model whose parameters name their axes.
    trains: Says by a parameter's name ('bias') whether it should train.
  """
  for _, module in nnx.iter_modules(model):
    for name, held in list(vars(module).items()):
      if isinstance(held, linear.Frozen) and trains(name):
        axes = held.get_metadata('axes')
        setattr(module, name, linear.Tuned(held[...], axes=axes))


def mix(model: nnx.Module) -> None:
  """Rounds the factors of products with pretrained weights that train.

  They are those that `store` would convert if they were frozen.
  """
  for _, module in nnx.iter_modules(model):
    for name in _FACTORS & vars(module).keys():
      held = getattr(module, name)
      if isinstance(held, linear.Tuned):
        axes = held.get_metadata('axes')
        setattr(module, name, linear.Mixed(held[...], axes=axes))


def _axes(state: nnx.State) -> Axes:
  is_variable = lambda v: isinstance(v, nnx.Variable)
  named = jax.tree.map(
    lambda v: v.get_metadata('axes'), state, is_leaf=is_variable
  )
  return nnx.to_pure_dict(named)


def store(base: Tree, dtype: str) -> Tree:
  """Stores the frozen factors of products in a type.

  Parameters that are added or that scale (biases, norms, positions) stay as they
  are.

  Args:
    base: The frozen parameters, float32.
    dtype: 'float32' or 'bfloat16', `model.dtype` of the configuration.
  """

  def convert(path, x):
    return x.astype(dtype) if path[-1].key in _FACTORS else x

  return jax.tree_util.tree_map_with_path(convert, base)


def add_frozen(base: Tree, added: Tree) -> Tree:
  """Adds to some of the frozen parameters.

  Args:
    base: The frozen parameters.
    added: Nested dicts like `base`, with some of its leaves. Sums are computed
      in the precision of `added` and stored in that of `base`. {} returns
      `base` itself.
  """
  if not isinstance(base, dict):
    return (base + added).astype(base.dtype)
  if not added:
    return base
  return {
    name: add_frozen(part, added[name]) if name in added else part
    for name, part in base.items()
  }


def flat(tree: Tree) -> dict[Path, Any]:
  """Returns the leaves of a nested dict by path; dicts are not leaves."""
  return traverse_util.flatten_dict(tree)  # pyright: ignore[reportReturnType]


def nest(leaves: Mapping[Path, Any]) -> Tree:
  """Returns the nested dict of such leaves."""
  return traverse_util.unflatten_dict(dict(leaves))


def num_params(tree: Tree) -> int:
  """Counts the parameters of a tree."""
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def num_bytes(tree: Tree) -> int:
  """Counts the bytes of a tree of arrays, or of shapes."""
  leaves = jax.tree.leaves(tree)
  return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def cut(found: Foundation, amounts: Mapping[str, int]) -> Foundation:
  """Returns a model cut to the first parameters along each named axis."""
  return dataclasses.replace(
    found,
    theta=selection.select_within(found.theta, found.axes, amounts),
    base=selection.select_within(found.base, found.base_axes, amounts),
    depth=amounts.get('layer', found.depth),
  )


def narrow(model: T, amounts: Mapping[str, int]) -> T:
  """Returns a model cut to the first parameters along each named axis.

  Args:
    model: A model whose parameters name their axes.
    amounts: How much to keep of each axis.
  """
  graph, state = nnx.split(model)
  is_variable = lambda v: isinstance(v, nnx.Variable)
  cut = jax.tree.map(
    lambda v: v.replace(
      selection.select_within(v[...], v.get_metadata('axes'), amounts)
    ),
    state,
    is_leaf=is_variable,
  )
  return nnx.merge(graph, cut)

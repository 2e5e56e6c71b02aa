"""The LoRA in a tree of parameters: where it is, and its product."""

from collections.abc import Callable, Mapping
import math

from flax import traverse_util
import jax
import jax.numpy as jnp
from jaxtyping import Array

from fedjax_tune.typing import Axes, Path, Tree

_NAMES = ('lora_a', 'lora_b')

# For the path of each adapted map, along how many axes it is stacked.
Adapters = Mapping[Path, int]


def find(axes: Axes) -> dict[Path, int]:
  """Finds the adapted maps of a tree by the axes of `lora_b`."""
  flat: Tree = traverse_util.flatten_dict(axes)
  return {
    path[:-1]: names.index('rank')
    for path, names in flat.items()
    if path[-1] == 'lora_b'
  }


def change(fn: Callable[..., Array], tree: Tree, *rest: Tree) -> Tree:
  """Applies a function to the leaves of LoRA; other leaves stay unchanged."""

  def apply(path, leaf, *others):
    return fn(leaf, *others) if path[-1].key in _NAMES else leaf

  return jax.tree.map_with_path(apply, tree, *rest)


def leaves(tree: Tree) -> list[Array]:
  """Lists the leaves of LoRA."""
  flat: Tree = traverse_util.flatten_dict(tree)
  return [leaf for path, leaf in flat.items() if path[-1] in _NAMES]


def pair(tree: Tree, path: Path) -> tuple[Array, Array]:
  """Returns A [*stack, *ins, R] and B [*stack, R, *outs] of a map."""
  for name in path:
    tree = tree[name]
  return tree['lora_a'], tree['lora_b']


def replace(tree: Tree, pairs: Mapping[Path, tuple]) -> Tree:
  """Returns a tree with other A and B."""
  flat = traverse_util.flatten_dict(tree)
  for path, both in pairs.items():
    flat |= {(*path, n): x for n, x in zip(_NAMES, both, strict=True)}
  return traverse_util.unflatten_dict(flat)


def change_pairs(
  fn: Callable[[Array, Array, int], tuple[Array, Array]],
  tree: Tree,
  adapters: Adapters,
) -> Tree:
  """Returns a tree in which each A and B is replaced by fn(A, B, stack)."""
  pairs = {p: fn(*pair(tree, p), stack) for p, stack in adapters.items()}
  return replace(tree, pairs)


def matrices(a: Array, b: Array, stack: int) -> tuple[Array, Array]:
  """Returns A [*stack, I, R] and B [*stack, R, O], flat outside the stack."""
  lead, rank = a.shape[:stack], a.shape[-1]
  return a.reshape(*lead, -1, rank), b.reshape(*lead, rank, -1)


def product(a: Array, b: Array, stack: int) -> Array:
  """Returns the kernel A B, [*stack, *ins, *outs]."""
  left, right = matrices(a, b, stack)
  return (left @ right).reshape(*a.shape[:-1], *b.shape[stack + 1 :])


def products(tree: Tree, adapters: Adapters, scale: float) -> Tree:
  """Returns scale * A B of each adapted map, nested like a model's kernels."""
  flat = {
    (*path, 'kernel'): scale * product(*pair(tree, path), stack)
    for path, stack in adapters.items()
  }
  return traverse_util.unflatten_dict(flat)


def product_axes(axes: Axes, adapters: Adapters) -> Axes:
  """Returns the axes of what `products` returns."""
  flat = {}
  for path, stack in adapters.items():
    a, b = pair(axes, path)
    flat[*path, 'kernel'] = (*a[:-1], *b[stack + 1 :])
  return traverse_util.unflatten_dict(flat)


def factor(
  kernel: Array, a: Array, b: Array, stack: int
) -> tuple[Array, Array]:
  """Returns the best A B for a kernel by the SVD, shaped like `a` and `b`.

  The columns of A (rows in the literature, which transposes it) are
  orthonormal. B has the singular values, the largest first, so that every
  prefix of ranks gives the best A B of that rank. Ranks that the SVD lacks are
  0.
  """
  left, right = matrices(a, b, stack)
  matrix = kernel.reshape(*left.shape[:-1], right.shape[-1])
  u, s, v = jnp.linalg.svd(matrix, full_matrices=False)
  rank = left.shape[-1]
  u, values = u[..., :rank], (s[..., None] * v)[..., :rank, :]
  pad = [(0, 0)] * stack
  missing = (0, rank - u.shape[-1])
  u = jnp.pad(u, [*pad, (0, 0), missing])
  values = jnp.pad(values, [*pad, missing, (0, 0)])
  return u.reshape(a.shape), values.reshape(b.shape)


def fan_in(a: Array, stack: int) -> int:
  """Returns the number of a map's inputs."""
  return math.prod(a.shape[stack:-1])

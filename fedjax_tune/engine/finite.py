"""Checks that numbers are finite: neither NaN nor infinite."""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_tune.typing import Tree


def all_finite(tree: Tree) -> jax.Array:
  """Says whether every number of a tree is finite, a bool scalar."""
  # One and the same array may stand for several things.
  leaves = {id(leaf): leaf for leaf in jax.tree.leaves(tree)}
  found = [jnp.all(jnp.isfinite(leaf)) for leaf in leaves.values()]
  return jnp.all(jnp.stack([jnp.bool_(True), *found]))


def where_not(tree: Tree) -> list[str]:
  """Names the leaves, on the host, that have a number that is not finite."""
  leaves = jax.tree.leaves_with_path(tree)
  return [
    jax.tree_util.keystr(path, simple=True, separator='.')
    for path, leaf in leaves
    if not np.isfinite(np.asarray(leaf)).all()
  ]

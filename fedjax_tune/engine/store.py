"""What clients remember from round to round, on the host, by client id.

A mapping from id to a tree of NumPy arrays, of those alone who ever took part:
a million clients that never did cost nothing. Mappings are never changed, so
that every state of a run stays what it was.
"""

from collections.abc import Callable, Mapping

import jax
import numpy as np

from fedjax_tune.typing import Tree

# client -> what it remembers before it first takes part.
Start = Callable[[int], Tree]
States = Mapping[int, Tree]


def gather(states: States, ids: np.ndarray, start: Start | None) -> Tree:
  """Returns what clients remember, leaves [C, ...].

  Args:
    states: Of those who ever took part.
    ids: Of the clients, int [C]; -1 pads, and gets what client 0 starts with.
    start: Of the others; None where clients remember nothing.
  """
  if start is None:
    return ()
  rows = [states[k] if k in states else start(max(k, 0)) for k in map(int, ids)]
  return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)


def put(states: States, ids: np.ndarray, rows: Tree) -> States:
  """Returns the states with those of some clients renewed.

  Args:
    states: Of those who ever took part.
    ids: Of the clients, int [C]; -1 pads.
    rows: What they remember now, leaves [C, ...]; () where that is nothing.
  """
  if not jax.tree.leaves(rows):
    return states
  rows = jax.tree.map(np.asarray, rows)
  new = {
    int(k): jax.tree.map(lambda leaf, i=i: leaf[i], rows)
    for i, k in enumerate(ids)
    if k >= 0
  }
  return {**states, **new}


def pack(states: States) -> Tree:
  """Returns the states as few arrays, for a checkpoint; () of nobody."""
  if not states:
    return ()
  ids = sorted(states)
  rows = [states[k] for k in ids]
  join = lambda *leaves: np.stack(leaves)
  return {'ids': np.array(ids, np.int64), 'rows': jax.tree.map(join, *rows)}


def packed_like(count: int, start: Start | None) -> Tree:
  """Returns the shapes of what `pack` makes of so many clients, as zeros."""
  if not count or start is None:
    return ()
  lead = lambda leaf: np.zeros((count, *np.shape(leaf)), np.asarray(leaf).dtype)
  rows = jax.tree.map(lead, start(0))
  return {'ids': np.zeros(count, np.int64), 'rows': rows}


def unpack(packed: Tree) -> States:
  """Returns the states that `pack` was given."""
  if packed == ():
    return {}
  return put({}, packed['ids'], packed['rows'])

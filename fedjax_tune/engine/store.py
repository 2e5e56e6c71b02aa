"""What clients remember from round to round, on the host, by client id.

It is a mapping from id to a tree of NumPy arrays, and holds only clients that
ever took part: a million clients that never did cost nothing. Mappings are
never changed in place, so that every earlier state of a run stays valid.
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
    states: The states of all clients that ever took part.
    ids: Ids of the clients, int [C]; -1 pads, and gets the initial state of
      client 0.
    start: The initial state of the others; None if clients remember nothing.
  """
  if start is None:
    return ()
  rows = [states[k] if k in states else start(max(k, 0)) for k in map(int, ids)]
  return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)


def put(states: States, ids: np.ndarray, rows: Tree) -> States:
  """Returns the states, with those of some clients replaced.

  Args:
    states: The states of all clients that ever took part.
    ids: Ids of the clients, int [C]; -1 pads.
    rows: What these remember now, leaves [C, ...]; () if they remember nothing.
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
  """Returns the states as a few arrays, for a checkpoint; () if none."""
  if not states:
    return ()
  ids = sorted(states)
  rows = [states[k] for k in ids]
  join = lambda *leaves: np.stack(leaves)
  return {'ids': np.array(ids, np.int64), 'rows': jax.tree.map(join, *rows)}


def packed_like(count: int, start: Start | None) -> Tree:
  """Returns zeros in the shapes that `pack` gives for a number of clients."""
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

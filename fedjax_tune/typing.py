"""Shared type aliases and the legend of dimension letters.

Arrays inside models and the engine carry their dimensions as a suffix:

  B batch      T tokens     D model width   H heads      E head width
  F hidden     R rank       K classes       L layers     N held layers
  C clients    S local steps                G group      V vocabulary
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

# A pytree of arrays (parameters, deltas, optimizer state).
Tree = Any
# For each leaf of a Tree the names of its axes: ('layer', 'rank', 'embed').
Axes = Any
# For each selected axis the indices that a client holds along it, or a number
# n for the first n.
Allocation = Mapping[str, jax.Array | np.ndarray | int]


class Tokens(NamedTuple):
  """Token numbers of texts; the model knows which are padding.

  Attributes:
    ids: int32[..., B, T].
    types: 0 in the first part of a pair, 1 in the second; int32[..., B, T].
  """

  ids: Any
  types: Any

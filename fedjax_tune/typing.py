"""Shared type aliases and the legend of dimension letters.

Arrays inside models and the engine carry their dimensions as a suffix:

  B batch      T tokens     D model width   H heads      E head width
  F hidden     R rank       K classes       L layers     N held layers
  C clients    S local steps
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

# A pytree of arrays (parameters, deltas, optimizer state).
Tree = Any
# For each leaf of a Tree the names of its axes: ('layer', 'rank', 'embed').
Axes = Any
# For each selected axis the indices that a client holds along it.
Allocation = Mapping[str, jax.Array | np.ndarray]

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

# An array on the device or on the host.
AnyArray = jax.Array | np.ndarray
# A pytree of arrays (parameters, deltas, optimizer state), or of their shapes;
# Python's types can't say what such a tree looks like.
Tree = Any
# For each leaf of a Tree the names of its axes: ('layer', 'rank', 'embed').
Axes = Any
# Where a leaf is in nested dicts, or a parameter in a model.
Path = tuple[str, ...]
# An object of a JSON file: what stands under a name is for its reader to check.
Json = dict[str, Any]
# Values of which only the name tells the type: a row of metrics.jsonl or of a data
# set, a summary.
Record = Mapping[str, Any]
# For each selected axis the indices that a client holds along it, or a number
# n for the first n.
Allocation = Mapping[str, AnyArray | int]


class Tokens(NamedTuple):
  """Token numbers of texts; the model knows which are padding.

  Attributes:
    ids: int32[..., B, T].
    types: 0 in the first part of a pair, 1 in the second; int32[..., B, T].
  """

  ids: AnyArray
  types: AnyArray


# What a model reads: images [..., B, h, w, 3] (uint8, or normalised float) or
# `Tokens` of texts. Data set and model agree on which; types can't follow that.
Inputs = Any

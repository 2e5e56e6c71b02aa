"""Groups: the clients of one round that run the same program.

How much a client holds is its signature, a compile key; which indices it
holds is an array. Clients of one signature are cut into slabs of one width,
the last padded with clients of weight 0.
"""

from collections.abc import Mapping, Sequence
import dataclasses

import numpy as np

# What one client holds along each axis: int32 indices [n], or a number n for
# the first n.
Row = Mapping[str, np.ndarray | int]


@dataclasses.dataclass(frozen=True)
class Signature:
  """What decides a client's program.

  Attributes:
    amounts: For each axis with indices of the client's own, how many.
    prefix: For each axis of which it holds the beginning, how much.
    length: Tokens of its texts; 0 for images.
  """

  amounts: tuple[tuple[str, int], ...]
  prefix: tuple[tuple[str, int], ...] = ()
  length: int = 0

  @classmethod
  def of(cls, row: Row, length: int = 0) -> 'Signature':
    """Reads the signature off what a client holds."""
    items = sorted(row.items())
    amounts = tuple((a, len(n)) for a, n in items if not isinstance(n, int))
    prefix = tuple((a, n) for a, n in items if isinstance(n, int))
    return cls(amounts, prefix, length)

  @property
  def axes(self) -> dict[str, int]:
    """How much is held along each selected axis."""
    return dict(self.amounts + self.prefix)

  def __getitem__(self, axis: str) -> int:
    return self.axes[axis]


@dataclasses.dataclass(frozen=True)
class Slab:
  """Clients that one call of a group's program trains.

  Attributes:
    sig: Their signature.
    ids: Client ids int32 [C]; -1 pads.
    alloc: For each axis of `sig.amounts` int32 [C, n] indices.
    weight: Aggregation weights float32 [C]; 0 pads.
  """

  sig: Signature
  ids: np.ndarray
  alloc: dict[str, np.ndarray]
  weight: np.ndarray


def cut_slabs(
  cohort: Sequence[int],
  sigs: Sequence[Signature],
  rows: Sequence[Row],
  weights: Sequence[float],
  widths: Mapping[Signature, int],
) -> list[Slab]:
  """Groups a cohort by signature and cuts each group into slabs.

  Args:
    cohort: Client ids.
    sigs: Signature of each.
    rows: Allocation of each.
    weights: Aggregation weight of each.
    widths: Clients per slab for each signature.
  """
  slabs = []
  for sig in sorted(set(sigs), key=dataclasses.astuple):
    members = [i for i, s in enumerate(sigs) if s == sig]
    width = widths[sig]
    for begin in range(0, len(members), width):
      part = members[begin : begin + width]
      padded = part + [part[0]] * (width - len(part))
      real = np.arange(width) < len(part)
      alloc = {
        axis: np.stack([rows[i][axis] for i in padded]).astype(np.int32)
        for axis, _ in sig.amounts
      }
      ids = np.where(real, [cohort[i] for i in padded], -1).astype(np.int32)
      weight = np.where(real, [weights[i] for i in padded], 0)
      slabs.append(Slab(sig, ids, alloc, weight.astype(np.float32)))
  return slabs

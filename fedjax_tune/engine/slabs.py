"""Groups clients of a round that run the same program, and cuts slabs.

How much a client holds is its signature, a compile key; which indices it holds
is an array. The clients of one signature are cut into slabs of one width; the
last slab is padded with clients of weight 0.
"""

import collections
from collections.abc import Mapping, Sequence
import dataclasses
from typing import Self

import jax
import numpy as np

from fedjax_tune.selection import Selection

# What a client's program is told besides what it holds: arrays by name.
Info = Mapping[str, np.ndarray]
InfoShapes = Mapping[str, jax.ShapeDtypeStruct]


@dataclasses.dataclass(frozen=True)
class Signature:
  """What decides a client's program.

  Attributes:
    amounts: For each axis along which the client has its own indices, how many.
    prefix: For each axis of which the client holds the first n, this n.
    length: Tokens of the client's texts; 0 for images.
  """

  amounts: tuple[tuple[str, int], ...]
  prefix: tuple[tuple[str, int], ...] = ()
  length: int = 0

  @classmethod
  def of(cls, held: Mapping[str, np.ndarray | int], length: int = 0) -> Self:
    """Returns the signature of what a client holds."""
    selected = Selection.of(held)
    own = {axis: at.shape[-1] for axis, at in selected.indices.items()}
    return cls(
      tuple(sorted(own.items())),
      tuple(sorted(selected.prefix.items())),
      length,
    )

  @property
  def axes(self) -> dict[str, int]:
    """How much is held along each selected axis."""
    return dict(self.amounts + self.prefix)

  def shapes(self, clients: int | None = None) -> Selection:
    """Returns a selection of shapes: of one client, or of a slab's."""
    lead = () if clients is None else (clients,)
    indices = {axis: np.zeros((*lead, n), np.int32) for axis, n in self.amounts}
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
      Selection(indices, dict(self.prefix)),
    )

  def __getitem__(self, axis: str) -> int:
    return self.axes[axis]


@dataclasses.dataclass(frozen=True)
class Slab:
  """Clients that one call of a group's program trains.

  Attributes:
    sig: Their signature.
    ids: Client ids int32 [C]; -1 pads.
    held: What each holds, indices [C, n].
    info: What else each is told, leaves [C, ...].
    weight: Aggregation weights float32 [C]; 0 pads.
    host: Which host trains it.
  """

  sig: Signature
  ids: np.ndarray
  held: Selection
  info: Info
  weight: np.ndarray
  host: int = 0


def cut_slabs(
  cohort: Sequence[int],
  sigs: Sequence[Signature],
  held: Sequence[Selection],
  infos: Sequence[Info],
  weights: Sequence[float],
  widths: Mapping[Signature, int],
) -> list[Slab]:
  """Groups a cohort by signature and cuts each group into slabs.

  Args:
    cohort: Client ids.
    sigs: Signature of each.
    held: What each holds.
    infos: What else each is told.
    weights: Aggregation weight of each.
    widths: Clients per slab for each signature.
  """
  slabs, groups = [], collections.defaultdict(list)
  for i, sig in enumerate(sigs):
    groups[sig].append(i)
  for sig in sorted(groups, key=dataclasses.astuple):
    members = groups[sig]
    width = widths[sig]
    for begin in range(0, len(members), width):
      part = members[begin : begin + width]
      padded = part + [part[0]] * (width - len(part))
      real = np.arange(width) < len(part)
      slabs.append(
        Slab(
          sig,
          ids=np.where(real, [cohort[i] for i in padded], -1).astype(np.int32),
          held=Selection.stack([held[i] for i in padded]),
          info=jax.tree.map(
            lambda *leaves: np.stack(leaves), *(infos[i] for i in padded)
          ),
          weight=np.where(real, [weights[i] for i in padded], 0).astype(
            np.float32
          ),
        )
      )
  return slabs


def deal(
  slabs: Sequence[Slab], work: Sequence[float], hosts: int
) -> list[Slab]:
  """Assigns slabs to hosts, the costliest first, each to the least busy host.

  Args:
    slabs: The slabs of a round.
    work: The cost of each, in any unit.
    hosts: How many hosts there are.

  Returns:
    The slabs in their order, each with its host.
  """
  load, host = [0.0] * hosts, [0] * len(slabs)
  for i in sorted(range(len(slabs)), key=lambda i: -work[i]):
    host[i] = load.index(min(load))
    load[host[i]] += work[i]
  return [
    dataclasses.replace(slab, host=h)
    for slab, h in zip(slabs, host, strict=True)
  ]

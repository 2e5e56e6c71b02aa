"""The examples of each client, for any number of clients, in two arrays."""

from collections.abc import Sequence
import dataclasses
from typing import Self, overload

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Shares(Sequence[np.ndarray]):
  """The examples of each client: a sequence of arrays that is stored as one.

  A million clients are a million views, each made when it is needed.

  Attributes:
    positions: Positions of all examples, client after client, int [n].
    offsets: Where each client's positions begin, and the end, int64 [C + 1].

  Guarantees:
    - As a sequence it equals the arrays that it was made from.

  >>> shares = Shares.of([np.array([4, 2]), np.array([7])])
  >>> len(shares), shares[0], shares.sizes
  (2, array([4, 2]), array([2, 1]))
  """

  positions: np.ndarray
  offsets: np.ndarray

  @classmethod
  def of(cls, parts: Sequence[np.ndarray]) -> Self:
    """Joins an array for each client."""
    if isinstance(parts, cls):
      return parts
    return cls.sized(
      np.concatenate(parts) if len(parts) else np.zeros(0, int),
      np.fromiter(map(len, parts), int, len(parts)),
    )

  @classmethod
  def sized(cls, positions: np.ndarray, sizes: np.ndarray) -> Self:
    """Cuts positions into parts of these sizes."""
    return cls(positions, np.concatenate([[0], np.cumsum(sizes, dtype=int)]))

  @classmethod
  def owned(
    cls, positions: np.ndarray, owners: np.ndarray, clients: int
  ) -> Self:
    """Gives each position to its owner, who keeps their order.

    Args:
      positions: Positions of examples, int [n].
      owners: The client of each, int [n].
      clients: Number of clients.
    """
    order = np.argsort(owners, kind='stable')
    return cls.sized(positions[order], np.bincount(owners, minlength=clients))

  @property
  def sizes(self) -> np.ndarray:
    """The number of examples of each client, int64 [C]."""
    return np.diff(self.offsets)

  @property
  def owners(self) -> np.ndarray:
    """The client of each position, int64 [n]."""
    return np.repeat(np.arange(len(self)), self.sizes)

  def sorted(self) -> Self:
    """Returns the same with each client's positions in order."""
    order = np.lexsort((self.positions, self.owners))
    return dataclasses.replace(self, positions=self.positions[order])

  def __len__(self) -> int:
    return len(self.offsets) - 1

  @overload
  def __getitem__(self, client: int) -> np.ndarray: ...

  @overload
  def __getitem__(self, client: slice) -> Sequence[np.ndarray]: ...

  def __getitem__(
    self, client: int | slice
  ) -> np.ndarray | Sequence[np.ndarray]:
    if isinstance(client, slice):
      return [self[k] for k in range(len(self))[client]]
    k = range(len(self))[client]
    return self.positions[self.offsets[k] : self.offsets[k + 1]]


def even(size: int, parts: int) -> np.ndarray:
  """Returns sizes that differ by one at most, the larger ones first."""
  return size // parts + (np.arange(parts) < size % parts)


def join(parts: Sequence[Shares]) -> Shares:
  """Joins several, with the clients of one after those of another."""
  return Shares.sized(
    np.concatenate([part.positions for part in parts]),
    np.concatenate([part.sizes for part in parts]),
  )

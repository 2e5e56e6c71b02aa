"""Spaces of principal directions, and maps of other rows into them."""

import dataclasses

import numpy as np

# Below this part of the largest, a deviation is rounding.
_LEAST = 1e-5
# Of the regression, in mean squares of the features.
_RIDGE = 1e-3


@dataclasses.dataclass(frozen=True)
class Space:
  """A target space of codes.

  Attributes:
    scores: Scores of M rows, [M, r]; centred and uncorrelated, the direction
      with the largest variance first.
    sigma: Deviations of the scores [r].
  """

  scores: np.ndarray
  sigma: np.ndarray


def find_space(x: np.ndarray, rank: int, field: str) -> Space:
  """Returns the space of the first principal directions.

  Args:
    x: What a reference reads, [M, D].
    rank: Number of directions.
    field: The field that sets this number, for the message.

  Raises:
    ValueError: There are fewer directions.
  """
  centred = centre(x)
  values, vectors = np.linalg.eigh(centred.T @ centred / len(x))
  largest = np.maximum(values[::-1], 0)
  there = int(np.sum(largest > _LEAST**2 * largest[0]))
  if rank > there:
    raise ValueError(
      f'{field}={rank} must be at most {there}: the public inputs of the'
      ' deepest tier vary along no more directions. More of them'
      " (tiers.public_examples), or fedadapter.projections='free', which aligns"
      ' nothing.'
    )
  basis = vectors[:, ::-1][:, :rank]
  # An eigenvector's sign is arbitrary.
  at = np.argmax(np.abs(basis), 0)
  basis = basis * np.sign(basis[at, np.arange(rank)])
  return Space(centred @ basis, np.sqrt(largest[:rank]))


def polar(matrix: np.ndarray) -> np.ndarray:
  """Returns the nearest matrix with orthonormal columns, of the same shape."""
  left, _, right = np.linalg.svd(matrix, full_matrices=False)
  return left @ right


def rotation(x: np.ndarray, space: Space) -> np.ndarray:
  """Returns the Q [D, r] that takes rows [M, D] nearest to a space's scores."""
  return polar(centre(x).T @ space.scores)


def regression(x: np.ndarray, space: Space) -> np.ndarray:
  """Returns the least-squares map [D, r] from rows to codes, with a ridge."""
  centred = centre(x)
  moment = centred.T @ centred
  ridge = _RIDGE * np.trace(moment) / len(moment)
  codes = space.scores / space.sigma
  return np.linalg.solve(
    moment + ridge * np.eye(len(moment)), centred.T @ codes
  )


def centre(x: np.ndarray) -> np.ndarray:
  """Returns rows without their mean, in float64."""
  x = x.astype(np.float64)
  return x - x.mean(0)

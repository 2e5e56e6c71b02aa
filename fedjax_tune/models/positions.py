"""Position embeddings at another image size."""

import math

from jaxtyping import Float
import numpy as np

# Keys' cubic convolution kernel as torch, OpenCV and ONNX sample it. It is not
# `jax.image.resize`, whose kernel has a = -0.5.
_A = -0.75


def _cubic(distance: np.ndarray) -> np.ndarray:
  """Evaluates the kernel at distances in [0, 2]."""
  d = distance
  near = ((_A + 2) * d - (_A + 3)) * d**2 + 1
  far = ((d - 5) * d + 8) * _A * d - 4 * _A
  return np.where(d <= 1, near, far)


def _interpolation(source: int, target: int) -> np.ndarray:
  """Builds the matrix [target, source] of one-dimensional resampling."""
  centre = (np.arange(target) + 0.5) * source / target - 0.5
  first = np.floor(centre).astype(int) - 1
  matrix = np.zeros((target, source))
  for tap in range(4):
    at = first + tap
    column = np.clip(at, 0, source - 1)
    np.add.at(matrix, (np.arange(target), column), _cubic(abs(centre - at)))
  return matrix


def resize_positions(
  position_TxD: Float[np.ndarray, 'T D'], num_prefix: int, grid: int
) -> Float[np.ndarray, 'U D']:
  """Resamples the grid of position embeddings bicubically.

  It uses half-pixel centres, clamped edges and no antialiasing, like torch's
  `interpolate(mode='bicubic', align_corners=False)` and so like the reference
  implementations of ViT, DeiT and DINOv2.

  Args:
    position_TxD: Positions of the prefix tokens and, row by row, of a square
      grid of patches.
    num_prefix: Prefix tokens; their positions stay as they are.
    grid: Patches on a side of the new grid.

  Returns:
    Positions [num_prefix + grid**2, D].

  Guarantees:
    - At the same grid the positions are returned unchanged.
    - A constant grid stays constant.

  Raises:
    ValueError: If the patches do not form a square grid.
  """
  prefix, patches = position_TxD[:num_prefix], position_TxD[num_prefix:]
  source = math.isqrt(len(patches))
  if source == 0 or source**2 != len(patches):
    raise ValueError(
      f'position has {len(patches)} rows after its num_prefix={num_prefix}; '
      'they must form a square grid.'
    )
  if grid == source:
    return position_TxD
  matrix = _interpolation(source, grid)
  square = patches.reshape(source, source, -1)
  resized = np.einsum('ir,jc,rcd->ijd', matrix, matrix, square, optimize=True)
  resized = resized.reshape(grid**2, -1).astype(position_TxD.dtype)
  return np.concatenate([prefix, resized])

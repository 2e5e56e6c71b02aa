"""Pixels of any type, as 8 bits."""

import numpy as np

_CHANNELS = (1, 3, 4)


class PictureError(ValueError):
  """A fault of a picture; the caller, who knows its name, adds that."""


def to_bytes(pixels: np.ndarray) -> np.ndarray:
  """Returns uint8[h, w, 3 or 4], or [h, w] if there is one channel.

  Booleans are black or white; 16 bits are scaled by 65535, floats by 1.

  Raises:
    PictureError: Another shape, or numbers outside of the type's range.
  """
  shape, kind = pixels.shape, pixels.dtype.kind
  if len(shape) == 3 and shape[-1] == 1:
    pixels = pixels[..., 0]
  if pixels.ndim != 2 and (len(shape) != 3 or shape[-1] not in _CHANNELS):
    raise PictureError(f'has the shape {shape}; must be [h, w, 1, 3 or 4]')
  if not pixels.size:
    raise PictureError(f'has the shape {shape}: no pixel')
  if kind == 'b':
    return pixels * np.uint8(255)
  if pixels.dtype == np.uint8:
    return pixels
  if kind == 'u' and pixels.itemsize == 2:
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
  if kind not in 'iuf':
    raise PictureError(f'is made of {pixels.dtype}; must be numbers')
  highest = 1 if kind == 'f' else 255
  low, high = pixels.min(), pixels.max()
  if not (low >= 0 and high <= highest):
    raise PictureError(
      f'has {pixels.dtype} from {low:g} to {high:g}; must lie in [0, {highest}]'
    )
  return np.rint(pixels * (255 // highest)).astype(np.uint8)

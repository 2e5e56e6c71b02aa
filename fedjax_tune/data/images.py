"""Images by index: decoded from a TFDS data source when they are read."""

from collections.abc import Sequence
import concurrent.futures
import dataclasses
import io
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image

from fedjax_tune.data import digest

_THREADS = 8


@runtime_checkable
class Images(Protocol):
  """Images by index: an array [N, H, W, 3], or a reader of stored files."""

  def __getitem__(self, indices: np.ndarray, /) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Stored:
  """Images on disk: row i is record `where[i, 1]` of `sources[where[i, 0]]`.

  Those of another size than `size` are resized bicubically (Pillow, which
  smooths when it shrinks). `contents` is a hash of all their bytes.
  """

  sources: Sequence[Sequence]
  where: np.ndarray
  size: int
  contents: str

  def fingerprint(self) -> str:
    """Returns a hash of the pictures and of their size."""
    return digest.of(self.contents, self.size)

  def __getitem__(self, indices: np.ndarray, /) -> np.ndarray:
    images = np.empty((len(indices), self.size, self.size, 3), np.uint8)

    def read(row: int) -> None:
      source, record = self.where[indices[row]]
      image = self.sources[source][record]['image']
      images[row] = _decode(image, self.size)

    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
      for _ in pool.map(read, range(len(indices))):
        pass
    return images


def _decode(image: bytes | np.ndarray, size: int) -> np.ndarray:
  """Makes a file's bytes, or pixels [h, w, 1 or 3], RGB of `size` pixels."""
  if isinstance(image, bytes):
    picture = Image.open(io.BytesIO(image))
  else:
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
  picture = picture.convert('RGB')
  if picture.size != (size, size):
    picture = picture.resize((size, size), Image.Resampling.BICUBIC)
  return np.asarray(picture)

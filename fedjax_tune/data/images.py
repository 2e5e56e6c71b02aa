"""Images by index: decoded from a TFDS data source when they are read."""

from collections.abc import Sequence
import concurrent.futures
import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np

from fedjax_tune.data import digest, pictures, rows
from fedjax_tune.data.prepared import Builder

_THREADS = 8


@runtime_checkable
class Images(Protocol):
  """Images by index: an array [N, H, W, 3], or a reader of stored files."""

  def __getitem__(self, indices: np.ndarray, /) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Stored:
  """Images on disk, decoded by `pictures.to_rgb`.

  Attributes:
    sources: Data sources, one per domain.
    where: Each image's source and record, int[N, 2].
    names: The name of each image in messages.
    size: Pixels of a side.
    contents: A hash of the bytes of all images.
    place: The name of the whole set in messages.
  """

  sources: Sequence[Sequence]
  where: np.ndarray
  names: list[str]
  size: int
  contents: str
  place: str

  def __getitem__(self, indices: np.ndarray, /) -> np.ndarray:
    """Decodes some images in a few threads.

    Raises:
      ValueError: Some can't be decoded; the message names the first few.
    """
    images = np.empty((len(indices), self.size, self.size, 3), np.uint8)

    def read(row: int) -> pictures.PictureError | None:
      source, record = self.where[indices[row]]
      image = self.sources[source][record]['image']
      try:
        images[row] = pictures.to_rgb(pictures.read(image), self.size)
      except pictures.PictureError as error:
        return error

    faults = rows.Faults(self.place, 'pictures', rows.HINT)
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
      found = pool.map(read, range(len(indices)))
      for index, error in zip(indices, found, strict=True):
        with faults.gather(self.names[index]):
          if error:
            raise error
    faults.check()
    return images

  def fingerprint(self) -> str:
    """Returns a hash of the pictures and of their size."""
    return digest.of(self.contents, self.size)


@dataclasses.dataclass(frozen=True)
class Some:
  """Some of many images.

  Attributes:
    images: All of them.
    rows: Which ones, int [n].
  """

  images: Images
  rows: np.ndarray

  def __getitem__(self, indices: np.ndarray, /) -> np.ndarray:
    """Reads some of these."""
    return self.images[self.rows[indices]]


def check_features(builders: Sequence[Builder]) -> None:
  """Checks the feature `image` of each domain.

  Raises:
    ValueError: The feature is not a single picture of plain numbers.
  """
  import tensorflow_datasets as tfds

  for builder in builders:
    kind = builder.info.features['image']
    # Text, among others, is a kind of Tensor to TFDS.
    plain = type(kind) in (tfds.features.Image, tfds.features.Tensor)
    # TFDS packs floats into the bytes of a PNG of four channels.
    packed = type(kind) is tfds.features.Image and kind.np_dtype == np.float32
    if not plain or packed:
      raise ValueError(
        f'{builder.info.full_name}: image is {type(kind).__name__}'
        f'{" of float32" * packed}; must be an Image of 8 or 16 bits, or a'
        ' Tensor of pixels'
      )

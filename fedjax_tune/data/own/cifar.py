"""CIFAR-10 and CIFAR-100 in their publisher's binary files.

A record is a label (for CIFAR-100 a coarse and a fine one) and 32 x 32 pixels,
channel by channel (https://www.cs.toronto.edu/~kriz/cifar.html).
"""

import pathlib
from typing import NamedTuple

import numpy as np

from fedjax_tune.data.own.found import Example, Found

_PIXELS = 3 * 32 * 32


class _Kind(NamedTuple):
  """One of the two sets.

  Attributes:
    names: File that names the classes.
    train: Files to train on, as a pattern.
    test: File to evaluate on.
    labels: Bytes before the pixels; the last is the label.
  """

  names: str
  train: str
  test: str
  labels: int


_KINDS = (
  _Kind('batches.meta.txt', 'data_batch_*.bin', 'test_batch.bin', 1),
  _Kind('fine_label_names.txt', 'train.bin', 'test.bin', 2),
)


def find(root: pathlib.Path) -> bool:
  """Returns which of the two sets a folder is, if any."""
  return any((root / kind.names).is_file() for kind in _KINDS)


def read(root: pathlib.Path) -> Found:
  """Returns the pictures of both splits.

  Raises:
    ValueError: A file is missing, or is not made of whole records.
  """
  kind = next(kind for kind in _KINDS if (root / kind.names).is_file())
  names = tuple((root / kind.names).read_text('utf8').split())
  found = Found(texts=False, class_names=names)
  for split, pattern in (('train', kind.train), ('test', kind.test)):
    files = sorted(root.glob(pattern))
    if not files:
      raise ValueError(f'{root} must have {pattern}, as {kind.names} is there')
    for file in files:
      _read_file(file, split, kind.labels, found)
  return found


def _read_file(
  file: pathlib.Path, split: str, labels: int, found: Found
) -> None:
  data = np.fromfile(file, np.uint8)
  if not len(data) or len(data) % (labels + _PIXELS):
    raise ValueError(
      f'{file} has {len(data)} bytes; must have whole records of'
      f' {labels + _PIXELS}'
    )
  records = data.reshape(-1, labels + _PIXELS)
  images = records[:, labels:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
  for row, (label, image) in enumerate(
    zip(records[:, labels - 1], images, strict=True)
  ):
    place = f'{file.name}, row {row}'
    if label >= len(found.class_names):
      found.fault(place, f'label {label} has no name in the list of classes')
      continue
    name = found.class_names[label]
    found.examples.append(Example(place, image, name, split=split))

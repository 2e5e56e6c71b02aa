"""A split into train and test that no process, order or seed changes."""

import hashlib

NAMES = ('train', 'test')
_TEST_PERCENT = 20


def split_of(name: str) -> str:
  """Returns 'test' for a fifth of all names, by a hash, else 'train'."""
  number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], 'big')
  return NAMES[number % 100 < _TEST_PERCENT]

"""Splits into train and test that are the same in any process and row order."""

from collections.abc import Hashable, Sequence
import hashlib

import numpy as np

NAMES = ('train', 'test')
_TEST_PERCENT = 20


def split_of(name: str) -> str:
  """Returns 'test' for a fifth of all names, by a hash, and else 'train'."""
  return NAMES[_hash(name) % 100 < _TEST_PERCENT]


def hold_out(
  keys: Sequence[str], strata: Sequence[Hashable], share: float, seed: int
) -> np.ndarray:
  """Returns which examples to hold out, bool [N].

  Args:
    keys: What identifies each example.
    strata: The stratum of each, such as its class; a share of each stratum is
      held out.
    share: Share of the examples, above 0 and below 1.
    seed: Decides which ones.

  Guarantees:
    - A stratum with two keys or more has examples on both sides; one with a
      single key is kept.
    - Examples of a stratum with the same key are on the same side.
    - Another order of the examples changes nothing.

  >>> hold_out(['a', 'b', 'c', 'd'], [0, 0, 1, 1], 0.5, 0).sum()
  np.int64(2)
  """
  by_stratum: dict[Hashable, dict[str, list[int]]] = {}
  for at, (key, stratum) in enumerate(zip(keys, strata, strict=True)):
    by_stratum.setdefault(stratum, {}).setdefault(key, []).append(at)
  held = np.zeros(len(keys), bool)
  for groups in by_stratum.values():
    order = sorted(groups, key=lambda key: (_hash(f'{seed} {key}'), key))
    wanted = share * sum(map(len, groups.values()))
    for key in order[:-1]:
      # The first in any case; another one if that comes nearer to the share.
      size = len(groups[key])
      if key != order[0] and size > 2 * wanted:
        break
      held[groups[key]] = True
      wanted -= size
  return held


def _hash(name: str) -> int:
  return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], 'big')

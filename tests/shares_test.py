"""Many arrays stored as one are those arrays."""

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from fedjax_tune.data.shares import Shares, join

_parts = st.lists(st.lists(st.integers(0, 99), max_size=5), max_size=7)


def _of(parts: list[list[int]]) -> Shares:
  return Shares.of([np.array(part, int) for part in parts])


def _lists(shares) -> list[list[int]]:
  return [part.tolist() for part in shares]


@given(parts=_parts)
def test_they_are_the_sequence_that_they_were_made_of(parts):
  shares = _of(parts)
  assert len(shares) == len(parts)
  assert _lists(shares) == parts
  assert shares.sizes.tolist() == [len(part) for part in parts]
  assert _lists(shares[1:-1]) == parts[1:-1]
  assert [shares[-k - 1].tolist() for k in range(len(parts))] == parts[::-1]
  for outside in (len(parts), -len(parts) - 1):
    with pytest.raises(IndexError):
      shares[outside]
  owners = [k for k, part in enumerate(parts) for _ in part]
  assert shares.owners.tolist() == owners


@given(parts=_parts)
def test_sorting_is_each_ones_own(parts):
  assert _lists(_of(parts).sorted()) == [sorted(part) for part in parts]


@given(st.lists(st.integers(0, 5), max_size=20))
def test_owners_keep_the_order(owners):
  positions = np.arange(len(owners)) * 7 % 23
  shares = Shares.owned(positions, np.array(owners, int), 6)
  assert _lists(shares) == [
    [int(x) for x, own in zip(positions, owners, strict=True) if own == k]
    for k in range(6)
  ]


@given(parts=st.lists(_parts, min_size=1, max_size=3))
def test_joined_clients_follow_one_another(parts):
  made = join([_of(part) for part in parts])
  assert _lists(made) == [own for part in parts for own in part]


def test_a_client_is_a_view():
  shares = _of([[1, 2], [3]])
  assert np.shares_memory(shares[0], shares.positions)
  assert Shares.of(shares) is shares

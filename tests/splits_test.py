import hypothesis
from hypothesis import strategies as st
import numpy as np

from fedjax_tune.data import splits


def test_split_is_stable_and_about_80_to_20():
  found = [splits.split_of(f'object-{i}') for i in range(2000)]
  assert 0.17 < found.count('test') / len(found) < 0.23
  # Must never change: results are compared across versions.
  assert [splits.split_of(n) for n in ('rocket', 'cat-face')] == [
    'train',
    'train',
  ]


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(
  rows=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2)), max_size=60),
  share=st.floats(0.05, 0.95),
  seed=st.integers(0, 9),
)
def test_what_is_held_out(rows, share, seed):
  keys, strata = [f'k{key}' for key, _ in rows], [kind for _, kind in rows]
  held = splits.hold_out(keys, strata, share, seed)
  order = np.random.default_rng(seed).permutation(len(rows))
  again = splits.hold_out(
    [keys[i] for i in order], [strata[i] for i in order], share, seed
  )
  np.testing.assert_array_equal(again, held[order])
  for kind in set(strata):
    at = [i for i in range(len(rows)) if strata[i] == kind]
    sides = {
      key: {bool(held[i]) for i in at if keys[i] == key}
      for key in {keys[i] for i in at}
    }
    assert all(len(side) == 1 for side in sides.values())
    if len(sides) > 1:
      assert 0 < sum(held[at]) < len(at)
      largest = max(sum(keys[i] == key for i in at) for key in sides)
      assert abs(sum(held[at]) - share * len(at)) <= largest
    else:
      assert not held[at].any()

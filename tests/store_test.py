"""What clients remember, on the host."""

import numpy as np
import tiny

from fedjax_tune.engine import store


def _start(client):
  return {'c': np.full(3, client, np.float32), 'n': np.int32(0)}


def test_who_never_took_part_starts_anew():
  rows = store.gather({}, np.array([4, 7, -1]), _start)
  np.testing.assert_array_equal(rows['c'][:, 0], [4, 7, 0])
  assert store.gather({}, np.array([4]), None) == ()


def test_put_renews_some_and_leaves_the_old_states_alone():
  before = store.put(
    {}, np.array([4, 7]), store.gather({}, np.array([4, 7]), _start)
  )
  rows = {'c': np.ones((2, 3), np.float32), 'n': np.ones(2, np.int32)}
  after = store.put(before, np.array([7, -1]), rows)
  assert sorted(after) == [4, 7]
  assert before[7]['n'] == 0
  assert after[7]['n'] == 1
  tiny.assert_equal(after[4], _start(4))


def test_nothing_is_kept_of_clients_that_remember_nothing():
  assert store.put({}, np.array([1, 2]), ()) == {}
  assert store.pack({}) == ()
  assert store.unpack(()) == {}
  assert store.packed_like(0, _start) == ()


def test_packed_states_are_a_few_arrays():
  states = store.put(
    {}, np.array([9, 2]), store.gather({}, np.array([9, 2]), _start)
  )
  packed = store.pack(states)
  like = store.packed_like(2, _start)
  np.testing.assert_array_equal(packed['ids'], [2, 9])
  tiny.assert_equal(
    [(x.shape, str(x.dtype)) for x in (packed['rows']['c'], packed['ids'])],
    [(x.shape, str(x.dtype)) for x in (like['rows']['c'], like['ids'])],
  )
  tiny.assert_equal(dict(store.unpack(packed)), dict(states))

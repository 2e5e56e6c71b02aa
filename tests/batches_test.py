"""Local steps and batches, by hand."""

import numpy as np
import pytest

from fedjax_tune import config
from fedjax_tune.engine import batches


def _local(**fields):
  return config.Local(batch_size=4, **fields)


def test_a_fixed_number_of_steps():
  assert list(batches.local_steps(_local(steps=7), [3, 100])) == [7, 7]


@pytest.mark.parametrize(
  ('epochs', 'equal', 'want'),
  [
    # Batches a pass: 2, 3, 5, 10. The authors break after index m = 2.
    (1, True, [2, 3, 3, 3]),
    (2, True, [4, 6, 6, 6]),
    (1, False, [2, 3, 5, 10]),
    (2, False, [4, 6, 10, 20]),
  ],
)
def test_steps_of_epochs(epochs, equal, want):
  cfg = _local(steps=0, epochs=epochs, equal_steps=equal)
  assert list(batches.local_steps(cfg, [8, 9, 20, 40])) == want


def _draw(cfg, size, steps, seed=0):
  rows, valid = batches.draw_batches(
    cfg, size, steps, np.random.default_rng(seed)
  )
  assert rows.shape == valid.shape == (steps, cfg.batch_size)
  return rows, valid


def test_an_epoch_has_every_example_once():
  rows, valid = _draw(_local(steps=0, epochs=3), size=10, steps=9)
  for epoch in range(3):
    at = slice(3 * epoch, 3 * epoch + 3)
    assert sorted(rows[at][valid[at]]) == list(range(10))
    # The last batch of an epoch is partial.
    assert list(valid[at].sum(1)) == [4, 4, 2]
  assert list(rows[0]) != list(rows[3])


def test_a_cut_epoch_has_no_example_twice():
  rows, valid = _draw(_local(steps=0, epochs=2), size=40, steps=6)
  assert valid.all()
  for epoch in (rows[:3], rows[3:]):
    assert len(set(epoch.ravel())) == 12


def test_steps_run_through_shuffled_passes_without_gaps():
  rows, valid = _draw(_local(steps=6), size=10, steps=6)
  assert valid.all()
  flat = rows.ravel()
  assert sorted(flat[:10]) == sorted(flat[10:20]) == list(range(10))
  assert list(flat[:10]) != list(flat[10:20])


def test_fewer_examples_than_a_batch():
  rows, valid = _draw(_local(steps=2), size=3, steps=2)
  assert valid.all()
  assert np.bincount(rows.ravel()).min() >= 2
  rows, valid = _draw(_local(steps=0), size=3, steps=1)
  assert sorted(rows[valid]) == [0, 1, 2]
  assert valid.sum() == 3


def test_draws_repeat_and_differ():
  cfg = _local(steps=2)
  same = [_draw(cfg, 30, 2, seed)[0] for seed in (5, 5, 6)]
  np.testing.assert_array_equal(same[0], same[1])
  assert np.any(same[0] != same[2])

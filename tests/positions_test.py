"""Laws of the position-embedding resize, and its parity with torch."""

import numpy as np
import pytest
import torch

from fedjax_tune.models import positions


def _positions(num_prefix: int, grid: int) -> np.ndarray:
  rng = np.random.default_rng(0)
  return rng.normal(size=(num_prefix + grid**2, 6)).astype(np.float32)


@pytest.mark.parametrize('target', [1, 3, 4, 6, 7, 16])
@pytest.mark.parametrize('source', [1, 2, 5, 6])
def test_equals_torch(source, target):
  position = _positions(1, source)
  square = torch.from_numpy(position[1:]).reshape(1, source, source, 6)
  want = torch.nn.functional.interpolate(
    square.permute(0, 3, 1, 2), (target, target), mode='bicubic'
  ).permute(0, 2, 3, 1)
  got = positions.resize_positions(position, 1, target)
  np.testing.assert_allclose(got[1:], want.reshape(-1, 6), atol=1e-5)


def test_same_grid_is_identity():
  position = _positions(2, 5)
  np.testing.assert_array_equal(
    positions.resize_positions(position, 2, 5), position
  )


def test_prefix_is_untouched_and_constant_stays():
  position = np.ones((2 + 9, 4), np.float32)
  position[:2] = [[7.0], [8.0]]
  got = positions.resize_positions(position, 2, 8)
  np.testing.assert_array_equal(got[:2], position[:2])
  np.testing.assert_allclose(got[2:], np.ones((64, 4)), atol=1e-6)
  assert got.dtype == np.float32


@pytest.mark.parametrize('rows', [0, 8])
def test_patches_must_form_a_square(rows):
  with pytest.raises(ValueError, match=f'{rows} rows.*square'):
    positions.resize_positions(np.zeros((1 + rows, 4), np.float32), 1, 2)

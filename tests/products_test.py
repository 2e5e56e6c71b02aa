"""Measuring the machine's products, and what is made of it."""

import pytest

from fedjax_tune.costs import products


def test_rates_are_of_both_types():
  found = products.rates()
  assert set(found) == {'float32', 'bfloat16'}
  # Between a pocket calculator and more than any device has.
  assert all(1e7 < rate < 1e17 for rate in found.values())


@pytest.mark.parametrize(
  ('narrow', 'dtype', 'named'),
  [
    (3.0, 'float32', 'bfloat16 run 3.0 times'),
    (0.5, 'bfloat16', 'float32 run 2.0 times'),
    (1.1, 'float32', ''),
    (3.0, 'bfloat16', ''),
  ],
)
def test_advice_names_the_faster_type(narrow, dtype, named):
  said = products.advice({'float32': 1e9, 'bfloat16': narrow * 1e9}, dtype)
  assert named in said
  assert bool(said) == bool(named)

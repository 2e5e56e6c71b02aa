"""Cross-model gradient alignment against plain NumPy."""

import numpy as np
import pytest

from fedjax_tune.methods.heterotune import cmga
from fedjax_tune.selection import GroupSum


def _sums(deltas, weights):
  return [
    GroupSum({'core': d * w}, {'core': np.float32(w).reshape(1, 1, 1)})
    for d, w in zip(deltas, weights, strict=True)
  ]


def _project(d, other):
  dot = np.vdot(d, other)
  return d - dot / np.vdot(other, other) * other if dot < 0 else d


def _twin(deltas, weights, rule):
  shares = np.array(weights) / sum(weights)
  mean = np.average(deltas, axis=0, weights=weights)
  total = np.zeros_like(deltas[0])
  for site in range(len(total)):
    for i, delta in enumerate(deltas):
      aligned = delta[site]
      others = [d[site] for j, d in enumerate(deltas) if j != i]
      for other in others if rule == 'pairwise' else [mean[site]]:
        aligned = _project(aligned, other)
      total[site] += shares[i] * aligned
  return total


@pytest.mark.parametrize('rule', ['pairwise', 'mean'])
def test_twin(rule):
  deltas = np.random.default_rng(0).normal(size=(3, 4, 2, 2))
  deltas[1, 0] = -deltas[0, 0]  # Nothing agrees less.
  deltas = deltas.astype(np.float32)
  weights = [2.0, 1.0, 3.0]
  align = {'pairwise': cmga.pairwise, 'mean': cmga.mean}[rule]
  got = cmga.combine(_sums(deltas, weights), align)['core']
  np.testing.assert_allclose(got, _twin(deltas, weights, rule), atol=1e-5)
  plain = np.average(deltas, axis=0, weights=weights)
  assert np.abs(got - plain).max() > 1e-2


def test_what_agrees_is_averaged():
  delta = np.ones((1, 2, 2), np.float32)
  sums = _sums([delta, 3 * delta], [1.0, 3.0])
  got = cmga.combine(sums, cmga.pairwise)['core']
  np.testing.assert_allclose(got, 2.5 * delta)


def test_a_bias_is_aligned_for_itself():
  """Each bias [R] of [site, branch, R], as a matrix of one row would be."""
  deltas = np.random.default_rng(1).normal(size=(3, 4, 2)).astype(np.float32)
  sums = [
    GroupSum({'core_in_bias': d}, {'core_in_bias': np.ones((1, 1), np.float32)})
    for d in deltas
  ]
  got = cmga.combine(sums, cmga.pairwise)['core_in_bias']
  np.testing.assert_allclose(
    got, _twin(deltas, [1.0] * 3, 'pairwise'), atol=1e-5
  )


def test_a_tier_without_clients_does_not_count():
  delta = np.ones((1, 2, 2), np.float32)
  got = cmga.combine(_sums([delta, 0 * delta], [2.0, 0.0]), cmga.pairwise)
  np.testing.assert_allclose(got['core'], delta)

"""Who takes part."""

import numpy as np

from fedjax_tune import config
from fedjax_tune.engine import cohort

_DOMAINS = np.array([0, 0, 0, 1, 1, 2])
_ALL = np.ones(6, bool)


def _cfg(kind, size=3):
  return config.Clients(cohort=kind, cohort_size=size)


def _sample(cfg, rnd, eligible=_ALL, seed=0):
  return cohort.sample_cohort(cfg, _DOMAINS, eligible, seed, rnd)


def test_one_per_domain():
  cohorts = [_sample(_cfg('one_per_domain'), rnd) for rnd in range(60)]
  for chosen in cohorts:
    assert [_DOMAINS[k] for k in chosen] == [0, 1, 2]
    assert chosen == sorted(chosen)
  assert {k for chosen in cohorts for k in chosen} == set(range(6))


def test_uniform():
  cohorts = [_sample(_cfg('uniform'), rnd) for rnd in range(60)]
  for chosen in cohorts:
    assert len(set(chosen)) == 3
    assert chosen == sorted(chosen)
  assert {k for chosen in cohorts for k in chosen} == set(range(6))
  # At most as many as there are.
  assert _sample(_cfg('uniform', 99), 0) == list(range(6))


def test_only_the_eligible():
  eligible = np.array([1, 0, 0, 0, 1, 0], bool)
  for kind in ('uniform', 'one_per_domain'):
    assert _sample(_cfg(kind), 0, eligible) == [0, 4]


def test_reproducible_in_any_order():
  cfg = _cfg('uniform')
  once = {rnd: _sample(cfg, rnd) for rnd in range(20)}
  assert once == {rnd: _sample(cfg, rnd) for rnd in reversed(range(20))}
  assert len({tuple(c) for c in once.values()}) > 3
  assert once != {rnd: _sample(cfg, rnd, seed=1) for rnd in range(20)}

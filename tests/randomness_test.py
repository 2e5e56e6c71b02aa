"""Draws are what they always were, and any purpose has its own."""

import jax
import pytest

from fedjax_tune.engine.randomness import host_rng

# What was drawn before purposes were free: integers below 10**6 of
# (seed, round) = (3, 2), of nobody and of client 1.
_DRAWN = {
  'cohort': (844359, 755065),
  'allocation': (616144, 341783),
  'repair': (491826, 83871),
  'batches': (765530, 754341),
  'roles': (9567, 781329),
  'deploy': (417039, 25302),
}


@pytest.mark.parametrize('purpose', _DRAWN)
def test_known_purposes_draw_as_before(purpose):
  drawn = [host_rng(purpose, 3, 2).integers(10**6)]
  drawn.append(host_rng(purpose, 3, 2, 1).integers(10**6))
  assert drawn == list(_DRAWN[purpose])


def test_any_purpose_has_draws_of_its_own():
  purposes = [*_DRAWN, 'validation', 'early stopping', '', 'ünlaut']
  drawn = {p: host_rng(p, 0, 0).integers(2**62) for p in purposes}
  assert len(set(drawn.values())) == len(purposes)
  again = {p: host_rng(p, 0, 0).integers(2**62) for p in purposes}
  assert drawn == again


def test_a_new_purpose_is_the_same_in_every_process():
  assert host_rng('validation', 0, 0).integers(10**6) == 244596


def test_seeds_that_are_allowed_are_distinct():
  seeds = [0, 1, 2**31, 2**32 - 1]
  keys = [tuple(jax.random.key_data(jax.random.key(s)).tolist()) for s in seeds]
  assert len(set(keys)) == len(seeds)
  drawn = {host_rng('cohort', s, 0).integers(2**62) for s in seeds}
  assert len(drawn) == len(seeds)

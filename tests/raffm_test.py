"""RaFFM: who holds what, how it is averaged, and what it refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from fedjax_tune import config, selection
from fedjax_tune.engine.algorithm import Aggregator
from fedjax_tune.engine.randomness import host_rng
from fedjax_tune.methods import METHODS
from fedjax_tune.methods.raffm import raffm, slices, spaces

_SIZES = {
  'layer': 12,
  'embed': 768,
  'heads': 12,
  'qk_dim': 64,
  'v_dim': 64,
  'ffn': 3072,
}
_SPACE = spaces.Space(
  head_dim=(1.0, 0.5),
  heads=(1.0, 0.75),
  ffn=(1.0, 0.6, 0.3),
  embed=(1.0, 0.9),
  layers=(1.0, 0.5),
)
_SMALLEST = {
  'layer': 6,
  'embed': 691,
  'heads': 9,
  'qk_dim': 32,
  'v_dim': 32,
  'ffn': 922,
}


def _slices(seed, space=_SPACE, *, sandwich=True):
  return slices.Slices(_SIZES, space, seed, sandwich)


def _smallest(extraction):
  return extraction.held(extraction.space.smallest())


def _full(row):
  return row == {'layer': 12}


# -- extraction


def _slow_row(rng):
  """Draws a subnetwork field by field, and lists what it holds."""
  head, heads, ffn, embed, layers = (
    rng.choice(shares)
    for shares in (
      _SPACE.head_dim,
      _SPACE.heads,
      _SPACE.ffn,
      _SPACE.embed,
      _SPACE.layers,
    )
  )
  row = {'layer': round(12 * layers)}
  if head < 1:
    row |= {'qk_dim': round(64 * head), 'v_dim': round(64 * head)}
  if heads < 1:
    row['heads'] = round(12 * heads)
  if ffn < 1:
    row['ffn'] = round(3072 * ffn)
  if embed < 1:
    row['embed'] = round(768 * embed)
  return row


@pytest.mark.parametrize('sandwich', [False, True])
def test_extraction_is_its_slow_twin(sandwich):
  cohort, extraction = [3, 8, 21, 40, 77], _slices(5, sandwich=sandwich)
  for rnd in range(20):
    roles = host_rng('roles', 5, rnd).permutation(len(cohort))
    want = []
    for client, role in zip(cohort, roles, strict=True):
      if role == 0:
        want.append({'layer': 12})
      elif role == 1 and sandwich:
        want.append(_SMALLEST)
      else:
        want.append(_slow_row(host_rng('allocation', 5, rnd, client)))
    assert extraction.draw(rnd, cohort) == want
  assert _smallest(extraction) == _SMALLEST


def test_who_has_the_full_and_the_smallest_model_is_uniformly_random():
  # Nothing that is drawn is full or smallest, so the two show.
  fine = tuple(np.linspace(0.3, 0.9, 50))
  extraction = _slices(0, spaces.Space(ffn=fine, heads=(0.75, 0.5)))
  cohort, rounds = [2, 5, 6, 11, 13], 500
  full, smallest = np.zeros((2, 5))
  for rnd in range(rounds):
    rows = extraction.draw(rnd, cohort)
    full += [_full(row) for row in rows]
    smallest += [row == _smallest(extraction) for row in rows]
  assert full.sum() == rounds
  # 100 each, with a deviation of 9; one draw in a hundred is the smallest.
  assert np.all(abs(full - 100) < 40)
  assert np.all(abs(smallest - 103) < 40)


def test_an_allocation_is_a_function_of_seed_round_and_cohort():
  cohort = list(range(10, 20))
  extraction = _slices(1)
  first = extraction.draw(7, cohort)
  extraction.draw(8, cohort)
  assert _slices(1).draw(7, cohort) == first
  assert extraction.draw(8, cohort) != first
  assert _slices(2).draw(7, cohort) != first


def test_every_subnetwork_is_drawn():
  rng = np.random.default_rng(0)
  assert {_SPACE.draw(rng) for _ in range(600)} == set(_SPACE.choices())
  assert len(_SPACE.choices()) == 48


def test_released_spaces_are_the_authors_sizes():
  sizes = {
    name: [spaces.row_of(c, _SIZES) for c in space.choices()]
    for name, space in spaces.SPACES.items()
  }
  of = lambda name, axis: {r.get(axis, _SIZES[axis]) for r in sizes[name]}
  assert of('released', 'ffn') == {3072, 1920, 1280}
  assert of('released', 'embed') == {768}
  assert of('ofm_bert', 'ffn') == {3072, 960, 600}
  assert of('ofm_bert', 'embed') == {768, 600}
  assert of('ofm_vit', 'ffn') == {3072, 1280, 960}
  assert of('ofm_vit', 'embed') == {768, 648}
  for name in sizes:
    assert of(name, 'qk_dim') == {64}


# -- aggregation

_AXES = {'head': {'bias': ('class',)}, 'w': ('layer', 'ffn')}
# Nobody holds w[3], nor w[2, 4].
_ROWS = ({'layer': 3, 'ffn': 4}, {'layer': 2}, {'layer': 3, 'ffn': 1})
_WEIGHTS = (1.0, 2.0, 5.0)


def _theta():
  start = {'head': {'bias': jnp.zeros(3)}, 'w': jnp.zeros((4, 5))}
  return tiny.noise(start, 0, 1.0)


def _aggregator(**options) -> Aggregator:
  """Returns how the method averages, given fields of its section."""
  e = tiny.experiment('raffm', raffm=options)
  return tiny.build(e, tiny.stack()).aggregator


def _merge(aggregation, theta, rows, deltas, weights):
  """Merges what clients of these rows changed, by their full-shape deltas."""
  total = selection.zero_sum(theta, _AXES, ['layer', 'ffn'])
  for row, delta, weight in zip(rows, deltas, weights, strict=True):
    held = selection.select(delta, _AXES, row)
    lead = jax.tree.map(lambda x: x[None], held)
    part = selection.group_sum(
      theta, _AXES, row, lead, jnp.full(1, weight), ['layer', 'ffn']
    )
    total = jax.tree.map(jnp.add, total, part)
  update, _ = _aggregator(aggregation=aggregation).merge(
    theta, {'all': total}, ()
  )
  apply = lambda w, d, c: jnp.where(c, w + d, w)
  return jax.tree.map(apply, theta, update.delta, update.covered)


def _slow_merge(aggregation, w, holds, deltas, weights):
  """The three rules of the notes' section 3.5, on full shapes."""
  ones = np.asarray(weights)
  local = [w + hold * delta for hold, delta in zip(holds, deltas, strict=True)]
  if aggregation == 'mean':
    return sum(o * x for o, x in zip(ones, local, strict=True)) / ones.sum()
  padded = [o * h * x for o, h, x in zip(ones, holds, local, strict=True)]
  if aggregation == 'zero_filled':
    return sum(padded) / ones.sum()
  count = sum(o * h for o, h in zip(ones, holds, strict=True))
  return np.where(count > 0, sum(padded) / np.maximum(count, 1), w)


@pytest.mark.parametrize('aggregation', ['mean', 'coverage', 'zero_filled'])
def test_each_rule_is_its_slow_twin(aggregation):
  theta = _theta()
  deltas = [tiny.noise(theta, seed) for seed in (1, 2, 3)]
  got = _merge(aggregation, theta, _ROWS, deltas, _WEIGHTS)
  for leaf in ('head', 'w'):
    w, *changes = (
      np.asarray(tree[leaf]['bias'] if leaf == 'head' else tree[leaf])
      for tree in (theta, *deltas)
    )
    holds = [np.ones(3)] * 3
    if leaf == 'w':
      holds = [np.zeros((4, 5)) for _ in _ROWS]
      for hold, row in zip(holds, _ROWS, strict=True):
        hold[: row['layer'], : row.get('ffn', 5)] = 1
    want = _slow_merge(aggregation, w, holds, changes, _WEIGHTS)
    merged = got[leaf]['bias'] if leaf == 'head' else got[leaf]
    np.testing.assert_allclose(merged, want, rtol=1e-5, atol=1e-6)


def test_the_mean_never_moves_what_nobody_trains():
  theta = _theta()
  deltas = [tiny.noise(theta, seed) for seed in (1, 2, 3)]
  got = _merge('mean', theta, _ROWS, deltas, _WEIGHTS)
  trained = np.zeros((4, 5), bool)
  trained[:3, :4] = trained[:2] = True
  np.testing.assert_array_equal(np.asarray(got['w'] != theta['w']), trained)


def test_if_all_are_full_the_mean_is_the_coverage_mean():
  theta = _theta()
  deltas = [tiny.noise(theta, seed) for seed in (1, 2, 3)]
  args = (theta, [{'layer': 4}] * 3, deltas, _WEIGHTS)
  tiny.assert_close(_merge('mean', *args), _merge('coverage', *args), rtol=1e-6)


def test_only_zero_filled_shrinks_what_few_hold():
  theta = jax.tree.map(lambda x: jnp.full_like(x, 1.2), _theta())
  rows = [{'layer': 4}] + [{'layer': 3}] * 9
  still = [jax.tree.map(jnp.zeros_like, theta)] * 10
  got = _merge('zero_filled', theta, rows, still, [1.0] * 10)
  np.testing.assert_allclose(got['w'][3], 0.12, rtol=1e-6)
  np.testing.assert_allclose(got['w'][:3], 1.2, rtol=1e-6)
  for name in ('mean', 'coverage'):
    tiny.assert_equal(_merge(name, theta, rows, still, [1.0] * 10), theta)
  assert config.Raffm().aggregation == 'mean'
  assert _aggregator().merge is raffm.participant_mean


# On a stack it is in the laws.
@pytest.mark.slow
def test_full_everywhere_is_fedavg():
  got = tiny.vit_run('raffm', embed=(1.0,), layers=(1.0,)).rounds(1)
  want = tiny.vit_run('all_large').rounds(1)
  tiny.assert_close(got.theta, want.theta, rtol=1e-4, atol=1e-6)


# -- refusals


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (
      {'mode': 'mask', 'space': 'released'},
      r"raffm\.space='released' must be one of paper_bert",
    ),
    (
      {'mode': 'mask', 'space': 'paper_vit', 'tune': 'lora'},
      r"model\.tune='lora' must be 'full'",
    ),
    (
      {'mode': 'mask', 'space': 'paper_vit', 'sampling': 'resource'},
      r"raffm\.sampling='resource' must be",
    ),
    ({'space': 'paper_vit'}, r"raffm\.space='paper_vit' must be one of rel"),
    (
      {'space': 'released', 'ffn': (1.0, 0.5)},
      r"raffm\.space='released' must be 'custom'",
    ),
  ],
)
def test_contradictions_are_refused(options, message):
  e = config.Experiment(method='raffm')
  options = dict(options)
  e.model.tune = options.pop('tune', 'full')
  e.raffm = dataclasses.replace(e.raffm, **options)
  with pytest.raises(ValueError, match=message):
    METHODS['raffm'].check(e, _SIZES, (12,) * 4)

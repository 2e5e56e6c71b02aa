"""Clients that are limited along several axes at once."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from fedjax_tune.engine.algorithm import Update
from fedjax_tune.methods import METHODS, compose, means
from fedjax_tune.methods.depth import layers
from fedjax_tune.methods.rank import ranks
from fedjax_tune.selection import GroupSum

_ALONE = {
  'fedra': 'fedra',
  'raffm': 'raffm',
  'heterofl': 'heterofl',
  'fedrolex': 'fedrolex',
  'federated_dropout': 'random',
  'fedit': 'fedit',
  'hetlora': 'hetlora',
  'rbla': 'rbla',
}


# Each compiles two runs; the others in the long test run.
_SHORT = ('fedra', 'federated_dropout', 'fedit')


@pytest.mark.parametrize(
  ('method', 'part'),
  [
    pytest.param(*pair, marks=() if pair[0] in _SHORT else pytest.mark.slow)
    for pair in _ALONE.items()
  ],
)
def test_one_axis_is_the_method_of_that_name(method, part):
  changes = {'raffm': {'layers': (1.0,)}}
  want = tiny.run(tiny.experiment(method, **changes))
  got = tiny.run(tiny.experiment(f'composed:{part}', **changes))
  assert [m.sig for m in got.planner.rounds[0]] == [
    m.sig for m in want.planner.rounds[0]
  ]
  state, expected = got.rounds(2), want.rounds(2)
  tiny.assert_equal(state.theta, expected.theta)
  tiny.assert_equal(dict(state.clients), dict(expected.clients))
  models = got.algorithm.evaluation.models
  assert {n: dict(h) for n, h in models.items()} == {
    n: dict(h) for n, h in want.algorithm.evaluation.models.items()
  }


def test_prefixes_of_blocks_are_averaged_over_their_holders():
  want = tiny.run(tiny.experiment('inclusivefl:fedra_port')).rounds(2)
  got = tiny.run(tiny.experiment('composed:prefix')).rounds(2)
  tiny.assert_equal(got.theta, want.theta)


# -- the mean, coordinate by coordinate

_AXES = {
  'blocks': {
    'lora_a': ('layer', 'embed', 'rank'),
    'lora_b': ('layer', 'rank', 'ffn'),
    'kernel': ('layer', 'embed', 'ffn'),
  },
  'head': ('embed', 'class'),
}
_SIZES = {'layer': 5, 'embed': 3, 'rank': 3, 'ffn': 4, 'class': 2}


def _trees(rng, clients):
  shape = lambda names: [_SIZES[name] for name in names]
  is_names = lambda x: isinstance(x, tuple)
  draw = lambda names: rng.normal(size=shape(names))
  make = lambda: jax.tree.map(draw, _AXES, is_leaf=is_names)
  return make(), [make() for _ in range(clients)]


def _mask(names, held):
  """Says which coordinates of a leaf a client holds."""
  mask = np.ones([_SIZES[name] for name in names], bool)
  for dim, name in enumerate(names):
    inside = np.zeros(_SIZES[name], bool)
    amount = held.get(name, _SIZES[name])
    inside[np.arange(amount) if isinstance(amount, int) else amount] = True
    shape = [-1 if d == dim else 1 for d in range(len(names))]
    mask &= inside.reshape(shape)
  return mask


def _twin(path, w, ends, held, weights, names, still, zeros):
  """Returns the mean of a leaf, one coordinate after another."""
  new = w.copy()
  pads = zeros and 'rank' in names
  without = lambda h, axes: {a: n for a, n in h.items() if a not in axes}
  for at in np.ndindex(w.shape):
    holds = [_mask(names, h)[at] for h in held]
    # Who would count here, were it not for the axes that are filled.
    filled = [*still, 'rank'] if pads else still
    counts = [_mask(names, without(h, filled))[at] for h in held]
    of_rank = [_mask(names, without(h, still))[at] for h in held]
    some_rank = any(_mask(names, without(h, ['rank']))[at] for h in held)
    if not any(counts) or not (any(holds) or (pads and some_rank)):
      continue
    if pads and path == 'lora_a' and not any(of_rank):
      continue
    values = [
      end[at] if holds[k] else w[at] if of_rank[k] or not pads else 0.0
      for k, end in enumerate(ends)
    ]
    share = np.array(weights) * counts
    new[at] = np.sum(share * values) / np.sum(share)
  return new


@pytest.mark.parametrize('zeros', [False, True])
@pytest.mark.parametrize('still', [(), ('embed', 'ffn')])
@pytest.mark.parametrize('seed', range(3))
def test_mean_is_its_twin(still, zeros, seed):
  """Random layers, nested widths and ranks, and a weight per coordinate."""
  rng = np.random.default_rng(seed)
  weights = [1.0, 2.0, 0.5]
  held = [
    {
      'layer': np.sort(rng.permutation(5)[:2]),
      'embed': int(rng.integers(1, 4)),
      'ffn': int(rng.integers(1, 5)),
      'rank': int(rng.integers(1, 4)),
    }
    for _ in weights
  ]
  theta, ends = _trees(rng, len(weights))

  def sums(w, names, *ends):
    num, den = np.zeros_like(w), np.zeros_like(w)
    is_sent_whole = zeros and 'rank' in names
    for k, end in enumerate(ends):
      mask = weights[k] * _mask(names, held[k])
      num += mask * (end if is_sent_whole else end - w)
      den += mask
    return num, den

  is_names = lambda x: isinstance(x, tuple)
  both = jax.tree.map(sums, theta, _AXES, *ends)
  num, den = (
    jax.tree.map(lambda x, i=i: jnp.asarray(x[i]), both, is_leaf=is_names)
    for i in (0, 1)
  )
  merge = means.filled_mean(_AXES, still, zeros=zeros)
  update, _ = merge(theta, {'all': GroupSum(num, den)}, ())
  got = _moved(theta, update)
  want = jax.tree.map_with_path(
    lambda path, w, names, *ends: _twin(
      path[-1].key, w, ends, held, weights, names, still, zeros
    ),
    theta,
    _AXES,
    *ends,
  )
  tiny.assert_close(got, want, rtol=1e-5, atol=1e-6)


def _moved(theta, update: Update):
  put = lambda w, delta, covered: w + np.where(covered, delta, 0)
  return jax.tree.map(put, theta, update.delta, update.covered)


# -- rules


def test_draws_of_layers_and_widths_are_their_own():
  """Not one stream that decides both."""
  run = tiny.run(tiny.experiment('composed:fedra+random'))
  alone = tiny.run(tiny.experiment('federated_dropout'))
  cohort = [0, 1, 2, 3]
  drawn = [
    [
      np.asarray(row['embed']).tolist()
      for rnd in range(4)
      for row in r.algorithm.rule.draw(rnd, cohort)
    ]
    for r in (run, alone)
  ]
  assert drawn[0] != drawn[1]


def test_two_rules_of_one_axis_are_refused():
  rule = layers.whole(4, 2)
  with pytest.raises(ValueError, match="axis 'layer' must be decided by one"):
    compose.product(ranks.Prefix((1, 2)), rule, rule)


@pytest.mark.parametrize(
  ('case', 'changes', 'message'),
  [
    ('composed:', {}, "composed.depth='', width='', rank='' and branches=()"),
    (
      'composed:raffm',
      {'raffm': {'aggregation': 'zero_filled'}},
      "raffm.aggregation='zero_filled' must be 'mean' or 'coverage'",
    ),
    ('composed:raffm', {'raffm': {'layers': (0.5,)}}, 'raffm.layers=(0.5,)'),
    ('composed:raffm', {'raffm': {'mode': 'mask'}}, "raffm.mode='mask'"),
    ('composed:fedit', {'rank': {'ranks': (4,)}}, 'rank.ranks=(4,)'),
    ('composed:fedit', {'model': {'tune': 'full'}}, "model.tune='full'"),
    ('composed:heterofl', {'width': {'axes': ('x',)}}, 'width.axes'),
    ('composed:branches', {'model': {'tune': 'lora'}}, "model.tune='lora'"),
    (
      'composed:branches',
      {'composed': {'branches': (3,)}},
      'composed.branches=(3,) must be at most 2',
    ),
    (
      'composed:fedra',
      {'fedra': {'coverage_repair': True}, 'clients': {'cohort_size': 1}},
      'fedra.coverage_repair=True',
    ),
  ],
)
def test_refusals(case, changes, message):
  e = tiny.experiment(case, **changes)
  sizes = {'layer': tiny.DEPTH, 'embed': 6}
  with pytest.raises(ValueError, match=re.escape(message)):
    METHODS['composed'].check(e, sizes, (3,) * 4)

"""Methods of ranks: what the server makes of a round, against float64 NumPy."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from fedjax_tune import selection
from fedjax_tune.engine.algorithm import Algorithm
from fedjax_tune.methods.rank import adapters
from fedjax_tune.selection import Selection

_RANK, _RANKS, _ALPHA = 4, (4, 2, 1), 6.0
_WEIGHTS = np.array([1.0, 2.0, 3.0])
_MAPS = {('embed',): 0, ('blocks',): 1}


class Round(NamedTuple):
  """A round of clients whose changes are noise.

  `starts` and `ends` are what the clients trained from and what became of it.
  """

  cohort: tuple[int, ...]
  algorithm: Algorithm
  base: Any
  before: Any
  after: Any
  memory: Any
  starts: list[Any]
  ends: list[Any]


def _start(algorithm, theta, memory, client, rnd=0):
  """Returns what a client starts from, and what it knows."""
  context = tiny.context(algorithm, client, rnd)._replace(memory=memory)
  axes = algorithm.model.axes
  held = selection.select_within(theta, axes, context.held)
  start = algorithm.client.init(held, context, jax.random.key(client))
  return start, context


@functools.cache
def _round(name, scaling='common', ranks=_RANKS, cohort=(0, 1, 2)):
  e = tiny.experiment(
    name,
    lora={'rank': _RANK, 'alpha': _ALPHA},
    rank={'ranks': ranks, 'scaling': scaling},
  )
  algorithm = tiny.build(e, tiny.stack(0.0, _RANK), (tiny.DEPTH,) * 3)
  model, aggregator = algorithm.model, algorithm.aggregator
  theta, memory = model.theta, aggregator.init(model.theta)
  like, names = aggregator.spec(theta, model.axes)
  starts, ends, parts = [], [], []
  for k in cohort:
    start, context = _start(algorithm, theta, memory, k)
    delta = tiny.noise(jax.tree.map(jnp.zeros_like, start), k)
    sent = algorithm.client.finish(start, delta, jnp.float32(1), context)
    held = aggregator.where(context.held, context.info)
    part = selection.group_sum(
      like,
      names,
      Selection.stack([selection.within(held, names)]),
      jax.tree.map(lambda x: x[None], sent.tree),
      jnp.array([_WEIGHTS[k]]) * sent.factor,
      {'layer', 'rank'},
    )
    parts.append(part)
    starts.append(start)
    ends.append(jax.tree.map(jnp.add, start, delta))
  total = jax.tree.map(lambda *xs: sum(xs), *parts)
  update, memory = aggregator.merge(theta, {'all': total}, memory)
  move = lambda moves, w, d: jnp.where(moves, w + d, w)
  after = jax.tree.map(move, update.covered, theta, update.delta)
  base = model.base
  return Round(cohort, algorithm, base, theta, after, memory, starts, ends)


# -- in NumPy


def _pair(tree, path):
  pair = adapters.pair(tree, path)
  return [np.asarray(x, np.float64) for x in pair]


def _kernel(tree, path, scale):
  a, b = _pair(tree, path)
  return scale * np.einsum('...ir,...ro->...io', a, b)


def _scale(rank, scaling):
  return _ALPHA / (_RANK if scaling == 'common' else rank)


def _mean_kernel(run, path, scaling='common'):
  """Returns the weighted mean of what the clients' adapters multiply to."""
  kernels = [
    _kernel(end, path, _scale(_RANKS[k], scaling))
    for k, end in zip(run.cohort, run.ends, strict=True)
  ]
  return np.average(kernels, axis=0, weights=_WEIGHTS[list(run.cohort)])


def _padded(x, axis):
  missing = _RANK - x.shape[axis]
  return np.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)])


def _padded_mean(run, path, weights):
  """Returns the means of A and B filled up with zeros."""
  pairs = [_pair(end, path) for end in run.ends]
  return [
    np.average([_padded(x, axis) for x in same], axis=0, weights=weights)
    for same, axis in zip(
      zip(*pairs, strict=True), (_MAPS[path] + 1, _MAPS[path]), strict=True
    )
  ]


def _assert_head(run, weights):
  heads = [np.asarray(end['head']['kernel'], np.float64) for end in run.ends]
  want = np.average(heads, axis=0, weights=weights)
  np.testing.assert_allclose(run.after['head']['kernel'], want, atol=1e-6)


def _assert_pair(run, path, want):
  for got, x in zip(adapters.pair(run.after, path), want, strict=True):
    np.testing.assert_allclose(got, x, atol=1e-6)


# -- the means


@pytest.mark.parametrize('path', _MAPS)
@pytest.mark.parametrize('name', ['fedit', 'fedex_lora'])
def test_zero_padding(name, path):
  run = _round(name)
  _assert_pair(run, path, _padded_mean(run, path, _WEIGHTS))
  _assert_head(run, _WEIGHTS)


@pytest.mark.parametrize('path', _MAPS)
def test_rbla_averages_each_rank_over_its_holders(path):
  run = _round('rbla')
  padded = _padded_mean(run, path, _WEIGHTS)
  # Rank i is held by the clients of a rank above i, others padded with 0.
  share = [
    _WEIGHTS[np.array(_RANKS) > i].sum() / _WEIGHTS.sum() for i in range(_RANK)
  ]
  assert len(set(share)) == 3
  a, b = padded
  _assert_pair(run, path, [a / share, b / np.array(share)[:, None]])
  _assert_head(run, _WEIGHTS)


@pytest.mark.parametrize('path', _MAPS)
def test_hetlora_weighs_by_norms(path):
  run = _round('hetlora')
  norms = [
    np.sqrt(sum(np.sum(_kernel(end, p, 1.0) ** 2) for p in _MAPS))
    for end in run.ends
  ]
  assert max(norms) > 2 * min(norms)
  weights = _WEIGHTS * norms
  _assert_pair(run, path, _padded_mean(run, path, weights))
  _assert_head(run, weights)


@pytest.mark.parametrize('path', _MAPS)
@pytest.mark.parametrize('name', ['fedit', 'fedex_lora'])
def test_of_ranks_that_nobody_sends_b_is_zero(name, path):
  run = _round(name, cohort=(1, 2))
  before_a, before_b = _pair(run.before, path)
  assert np.all(before_b != 0)
  a, b = _padded_mean(run, path, _WEIGHTS[1:])
  assert np.all(a[..., 2:] == 0)
  a[..., 2:] = before_a[..., 2:]
  _assert_pair(run, path, [a, b])


def test_equal_ranks_are_fedavg_of_adapters():
  for path in _MAPS:
    runs = [_round(n, ranks=(_RANK,)) for n in ('fedit', 'rbla', 'fedex_lora')]
    want = [
      np.average(same, axis=0, weights=_WEIGHTS)
      for same in zip(*(_pair(end, path) for end in runs[0].ends), strict=True)
    ]
    for run in runs:
      _assert_pair(run, path, want)


# -- the mean of products


@pytest.mark.parametrize('path', _MAPS)
@pytest.mark.parametrize('cohort', [(0, 1, 2), (1, 2)])
@pytest.mark.parametrize('scaling', ['common', 'client'])
@pytest.mark.parametrize('name', ['flora', 'fedex_lora'])
def test_the_model_is_exactly_the_mean_of_the_clients(
  name, scaling, cohort, path
):
  run = _round(name, scaling, cohort=cohort)
  added = run.algorithm.aggregator.frozen_delta(run.memory)
  for part in path:
    added = added[part]
  got = added['kernel'] + _kernel(run.after, path, _ALPHA / _RANK)
  want = _mean_kernel(run, path, scaling)
  np.testing.assert_allclose(got, want, atol=1e-5)
  fedit = _round('fedit', scaling, cohort=cohort)
  naive = _kernel(fedit.after, path, _ALPHA / _RANK)
  assert np.abs(naive - want).max() > 1e-2
  _assert_head(run, _WEIGHTS[list(cohort)])


@pytest.mark.parametrize('path', _MAPS)
@pytest.mark.parametrize('cohort', [(0, 1, 2), (1, 2)])
def test_ffa_is_exact_and_trains_b_alone(cohort, path):
  run = _round('ffa_lora', cohort=cohort)
  base, after = run.base, run.after
  for part in path:
    base, after = base[part], after[part]
  assert set(base) == {'kernel', 'bias', 'lora_a'}
  assert set(after) == {'lora_b'}
  a = np.asarray(base['lora_a'], np.float64)
  kernels = []
  for k, end in zip(cohort, run.ends, strict=True):
    for part in path:
      end = end[part]
    b = np.asarray(end['lora_b'], np.float64)
    kernels.append(a[..., : _RANKS[k]] @ b)
  want = np.average(kernels, axis=0, weights=_WEIGHTS[list(cohort)])
  np.testing.assert_allclose(a @ after['lora_b'], want, atol=1e-6)


@pytest.mark.parametrize('path', _MAPS)
@pytest.mark.parametrize('scaling', ['common', 'client'])
def test_flexlora_is_the_best_of_every_rank(scaling, path):
  run = _round('flexlora', scaling)
  u, s, v = np.linalg.svd(_mean_kernel(run, path, scaling), full_matrices=False)
  a, b = _pair(run.after, path)
  np.testing.assert_allclose(
    _ALPHA / _RANK * a @ b,
    (u[..., :_RANK] * s[..., None, :_RANK]) @ v[..., :_RANK, :],
    atol=1e-5,
  )
  for k, rank in enumerate(_RANKS):
    start, _ = _start(run.algorithm, run.after, run.memory, k, 1)
    got = _kernel(start, path, _scale(rank, scaling))
    want = (u[..., :rank] * s[..., None, :rank]) @ v[..., :rank, :]
    np.testing.assert_allclose(got, want, atol=1e-5)
  gram = np.swapaxes(a, -1, -2) @ a
  np.testing.assert_allclose(
    gram, np.broadcast_to(np.eye(_RANK), gram.shape), atol=1e-5
  )


def test_a_kernel_of_less_rank_is_filled_up():
  a, b = jnp.ones((3, 5)), jnp.ones((5, 6))
  kernel = np.outer(np.arange(3), np.arange(6)).astype(np.float32)
  got_a, got_b = adapters.factor(jnp.asarray(kernel), a, b, 0)
  np.testing.assert_allclose(got_a @ got_b, kernel, atol=1e-5)
  assert (got_a.shape, got_b.shape) == (a.shape, b.shape)
  assert np.all(got_b[3:] == 0)


def test_flora_restarts_every_client():
  run = _round('flora')
  for path, stack in _MAPS.items():
    pairs = [_pair(start, path) for start in run.starts]
    bound = np.prod(pairs[0][0].shape[stack:-1]) ** -0.5
    for a, b in pairs:
      assert np.all(b == 0)
      assert 0.9 * bound < np.abs(a).max() <= bound or a.size < 30
    assert np.all(pairs[0][0][..., 0] != pairs[1][0][..., 0])
    tiny.assert_equal(_pair(run.after, path), _pair(run.before, path))
    assert np.all(_pair(run.after, path)[1] == 0)

"""PriSM: factors, draws, sums over those who hold a kernel, the decay."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from fedjax_tune import selection
from fedjax_tune.engine.algorithm import Context
from fedjax_tune.methods import METHODS, compose
from fedjax_tune.methods.raffm import prism
from fedjax_tune.models import factored
from fedjax_tune.selection import Selection

_SIZES = {'layer': tiny.DEPTH}
_AXES = {'fc1': 'fc1_kernel', 'fc2': 'fc2_kernel'}
_RANK = 16


def _experiment(**options):
  e = tiny.experiment(
    'prism',
    model={'tune': 'full'},
    clients={'budgets': (tiny.DEPTH,) * 2, 'count': 2, 'cohort_size': 2},
    local={'steps': 1},
  )
  for name, value in options.items():
    setattr(e.prism, name, value)
  return e


@functools.cache
def _dense():
  return tiny.vit_foundation(targets=(), full=True)


@functools.cache
def _run(**options):
  return tiny.run(_experiment(**options), _dense())


def _algorithm(**options):
  """Returns the method on the model that it factored."""
  return _run(**options).algorithm


def _kernels(**options) -> prism.Kernels:
  """Returns the part of its rule that draws kernels."""
  rule = _algorithm(**options).rule
  assert isinstance(rule, compose.Product)
  _, kernels = rule.rules
  assert isinstance(kernels, prism.Kernels)
  return kernels


def _whole(found):
  """Returns the full model."""
  return found.assemble(found.base, found.theta, {'layer': tiny.DEPTH})


# -- factors


def test_factors_are_the_singular_value_decomposition():
  found = _algorithm().model
  for name, axis in _AXES.items():
    part = found.theta['blocks']['mlp'][name]
    kernel = np.asarray(_dense().theta['blocks']['mlp'][name]['kernel'])
    u, v = (np.asarray(part[side]) for side in 'uv')
    assert u.shape == (tiny.DEPTH, kernel.shape[1], _RANK)
    assert v.shape == (tiny.DEPTH, _RANK, kernel.shape[2])
    assert found.axes['blocks']['mlp'][name]['u'][-1] == axis
    assert found.axes['blocks']['mlp'][name]['v'][1] == axis
    for layer in range(tiny.DEPTH):
      singular = np.linalg.svd(kernel[layer], compute_uv=False)
      np.testing.assert_allclose(u[layer] @ v[layer], kernel[layer], atol=1e-5)
      np.testing.assert_allclose(
        u[layer].T @ u[layer], np.diag(singular), atol=1e-4
      )
      np.testing.assert_allclose(
        v[layer] @ v[layer].T, np.diag(singular), atol=1e-4
      )


def test_the_model_computes_what_it_did():
  found = _algorithm().model
  images = tiny.batch(tiny.VIT_SIZE, 2).inputs
  layers = np.arange(tiny.DEPTH)
  want, got = (_whole(f)(images, layers) for f in (_dense(), found))
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_a_text_model_is_factored_too():
  dense = tiny.text_foundation(full=True)
  found = tiny.build(_experiment(), dense, (4, 4)).model
  texts, layers = tiny.texts(2), np.arange(tiny.DEPTH)
  want, got = (_whole(f)(texts, layers) for f in (dense, found))
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_kernels_are_orthogonal_again_and_the_map_stays():
  algorithm = _algorithm()
  moved = tiny.noise(algorithm.model.theta, 5)
  after = _reordered(algorithm, moved)
  for name in _AXES:
    old, new = (t['blocks']['mlp'][name] for t in (moved, after))
    np.testing.assert_allclose(_map(after, name), _map(moved, name), atol=1e-4)
    gram = np.asarray(new['u'].swapaxes(1, 2) @ new['u'])
    off = gram - gram * np.eye(_RANK)
    np.testing.assert_allclose(off, 0, atol=1e-4)
    assert np.all(np.diff(np.diagonal(gram, axis1=1, axis2=2)) <= 1e-5)
    np.testing.assert_array_equal(new['bias'], old['bias'])
  tiny.assert_equal(after['blocks']['attn'], moved['blocks']['attn'])


def _reordered(algorithm, theta):
  """Returns what theta becomes before the next round."""
  assert algorithm.reorder is not None
  move = algorithm.reorder(theta, algorithm.model.axes)
  assert move is not None
  return move(theta)


# -- draws


def test_a_client_holds_distinct_kernels_of_its_own():
  rule = _algorithm(keep=0.6).rule
  first, second = rule.draw(3, [0, 1])
  for axis in _AXES.values():
    assert len(first[axis]) == int(np.ceil(0.6 * _RANK))
    assert len(set(first[axis])) == len(first[axis])
    assert set(first[axis]) <= set(range(_RANK))
  assert any(np.any(first[a] != second[a]) for a in _AXES.values())
  again = rule.draw(3, [1])[0]
  for axis in _AXES.values():
    np.testing.assert_array_equal(again[axis], second[axis])


def test_larger_kernels_are_drawn_more_often():
  spectra = {'fc1_kernel': np.linspace(9, 0, _RANK)}
  kernels = dataclasses.replace(_kernels(keep=0.5), spectra=spectra)
  rows = kernels.draw(0, range(400))
  often = np.bincount(np.concatenate([r['fc1_kernel'] for r in rows]))
  assert often[0] > often[_RANK // 2] > often[-1]
  # Of a single draw the odds are exactly s / sum(s).
  single = dataclasses.replace(kernels, keep=1 / _RANK)
  drawn = [r['fc1_kernel'][0] for r in single.draw(1, range(2000))]
  share = np.bincount(drawn, minlength=_RANK) / 2000
  odds = spectra['fc1_kernel'] / spectra['fc1_kernel'].sum()
  np.testing.assert_allclose(share, odds, atol=0.03)


def test_odds_are_the_singular_values():
  kernels = _kernels()
  for name, axis in _AXES.items():
    kernel = np.asarray(_dense().theta['blocks']['mlp'][name]['kernel'])
    want = np.mean(np.linalg.svd(kernel, compute_uv=False), 0)
    np.testing.assert_allclose(kernels.spectra[axis], want, rtol=1e-4)


# -- rounds


def test_what_nobody_holds_stays_in_the_map():
  run = _run(keep=0.6)
  start = run.engine.init()
  planned = run.planner.plan(0)
  (work,) = planned.works
  after, _ = run.engine.round(start, planned, jax.random.key(1), 0.1)
  product = lambda s: np.asarray(_map(s.theta, 'fc1'))
  holders = np.bincount(np.ravel(work.slab.held['fc1_kernel']), minlength=_RANK)
  nobody = holders == 0
  assert np.any(nobody)
  # What nobody held is still in the map, beside what the others made.
  u, v = (np.asarray(start.theta['blocks']['mlp']['fc1'][s]) for s in 'uv')
  rest = product(after) - u[..., nobody] @ v[:, nobody]
  assert np.linalg.matrix_rank(rest, tol=1e-3).max() == np.sum(~nobody)
  assert np.max(np.abs(product(after) - product(start))) > 1e-4


def _map(theta, name):
  part = theta['blocks']['mlp'][name]
  return part['u'] @ part['v']


def test_a_kernel_is_averaged_over_its_holders():
  run = _run(keep=0.6)
  rows = run.algorithm.rule.draw(0, [0, 1])
  at = [r['fc1_kernel'] for r in rows]
  theta, axes = (t['blocks']['mlp']['fc1'] for t in (run.theta, run.axes))
  deltas = [
    tiny.noise(
      jax.tree.map(jnp.zeros_like, selection.select_within(theta, axes, row)), k
    )
    for k, row in enumerate(rows)
  ]
  alloc = {
    axis: np.stack([r[axis] for r in rows]) for axis in _AXES.values()
  } | {'layer': tiny.DEPTH}
  stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *deltas)
  total = selection.group_sum(
    theta,
    axes,
    selection.within(alloc, axes),
    stacked,
    jnp.array([1.0, 3.0]),
  )
  update, _ = run.algorithm.aggregator.merge(theta, {'all': total}, ())
  num = np.zeros(theta['u'].shape)
  den = np.zeros(_RANK)
  for index, delta, weight in zip(at, deltas, (1, 3), strict=True):
    part = np.asarray(delta['u'])
    for i, kernel in enumerate(index):
      num[..., kernel] += weight * part[..., i]
      den[kernel] += weight
  want = np.where(den > 0, num / np.maximum(den, 1), 0)
  np.testing.assert_allclose(update.delta['u'], want, atol=1e-6)


def test_holding_all_is_fedavg_of_the_factors():
  run = _run(keep=1.0, frob_decay=0.0)
  assert run.algorithm.rule.draw(0, [0])[0] == {
    'layer': tiny.DEPTH,
    'fc1_kernel': _RANK,
    'fc2_kernel': _RANK,
  }
  e = dataclasses.replace(run.experiment, method='all_large')
  want = tiny.run(e, run.algorithm.model).rounds(1).theta
  got = run.rounds(1).theta
  tiny.assert_close(got['blocks']['attn'], want['blocks']['attn'], atol=1e-5)
  tiny.assert_close(got['head'], want['head'], atol=1e-5)
  for name in _AXES:
    np.testing.assert_allclose(_map(got, name), _map(want, name), atol=1e-4)


def test_the_penalty_is_half_the_square_of_the_map():
  rng = np.random.default_rng(0)
  u, v = (jnp.asarray(rng.normal(size=n)) for n in ((2, 3, 2), (2, 2, 5)))
  want = sum(np.sum((a @ b) ** 2) for a, b in zip(u, v, strict=True))
  np.testing.assert_allclose(prism.squared_norm(u, v), want, rtol=1e-5)
  # Its gradient is what the authors add: U V V^T.
  grad = jax.grad(lambda u: prism.squared_norm(u, v) / 2)(u)
  np.testing.assert_allclose(
    grad, u @ v @ v.swapaxes(1, 2), rtol=1e-4, atol=1e-5
  )


def test_the_decay_is_in_the_loss():
  losses = []
  for decay in (0.0, 0.5):
    algorithm = _algorithm(frob_decay=decay)
    context = Context(
      tiny.signature(algorithm, 0),
      Selection.of({'layer': tiny.DEPTH}),
      info={},
      memory=(),
      state=(),
      lr=jnp.float32(0),
      rnd=jnp.int32(0),
    )
    loss, metrics = algorithm.client.loss(
      _whole(algorithm.model),
      tiny.batch(tiny.VIT_SIZE, 2),
      context,
      jax.random.key(0),
    )
    losses.append((float(loss), float(metrics['loss'])))
  kernels = [_dense().theta['blocks']['mlp'][name]['kernel'] for name in _AXES]
  square = sum(float(jnp.sum(k**2)) for k in kernels)
  np.testing.assert_allclose(losses[1][0] - losses[0][0], square / 4, rtol=1e-3)
  assert losses[0][1] == losses[1][1]


@pytest.mark.parametrize(
  ('section', 'field', 'value'),
  [('model', 'tune', 'lora'), ('server', 'optimizer', 'fedavgm')],
)
def test_what_it_cannot_do_is_refused(section, field, value):
  e = _experiment()
  setattr(getattr(e, section), field, value)
  with pytest.raises(ValueError, match=rf"{section}\.{field}='{value}' must"):
    METHODS['prism'].check(e, _SIZES, (4, 4))


def test_decompose_takes_wide_and_tall():
  rng = np.random.default_rng(0)
  for shape in ((1, 3, 5), (1, 5, 3)):
    product = jnp.asarray(rng.normal(size=shape))
    u, v = factored.decompose(product)
    assert u.shape[-1] == v.shape[1] == 3
    np.testing.assert_allclose(u @ v, product, atol=1e-5)

"""FedAdapter against its formula, and where it stands in a block."""

from flax import nnx
import jax
import numpy as np
import pytest
from scipy import special
import tiny

from fedjax_tune.models import bottleneck, foundation, vit

_RANK, _BRANCHES = 3, 2


def _module(**choices):
  """Returns a noisy FedAdapter without its layer axis, and its arrays."""
  sides = bottleneck.Bottleneck(_RANK, _BRANCHES, **choices)
  module = bottleneck.FedAdapter(tiny.vit_config(), sides, nnx.Rngs(0))
  graph, state = nnx.split(module)
  state = jax.tree.map(lambda x: x[0], tiny.noise(state, 1))
  return nnx.merge(graph, state), jax.device_get(nnx.to_pure_dict(state))


def _twin(p, read, out, choices, branches=_BRANCHES):
  """Computes the formula in float64."""
  p = {name: np.asarray(x, np.float64) for name, x in p.items()}
  aligned = choices.get('projections', 'free') != 'free'
  x = read if choices.get('placement') == 'parallel' else out
  h = (x - p['mean'] if aligned else x) @ p['down']
  gating = choices.get('gating', 'static')
  logits = {
    'static': lambda: np.tile(p['gate'], (len(h), 1)),
    'token': lambda: h @ p['gate'],
    'uniform': lambda: np.zeros((len(h), branches)),
  }[gating]()
  gates = special.softmax(logits, -1)
  mixed = 0
  for b in range(branches):
    z = h @ p['core_in'][b]
    z = z + p['core_in_bias'][b] if aligned else z
    if choices.get('core', 'mlp') == 'mlp':
      z = z * special.ndtr(z) @ p['core_out'][b]
      z = z + p['core_out_bias'][b] if aligned else z
    mixed = mixed + gates[:, b : b + 1] * z
  return out + choices.get('scale', 1.0) * mixed @ p['up']


@pytest.mark.parametrize(
  'choices',
  [
    {},
    {'gating': 'token', 'placement': 'parallel'},
    {'gating': 'uniform', 'core': 'linear', 'scale': 0.5},
    {'projections': 'aligned', 'placement': 'parallel'},
    {
      'projections': 'aligned_start',
      'placement': 'parallel',
      'core': 'linear',
      'gating': 'token',
    },
  ],
)
def test_formula(choices):
  module, arrays = _module(**choices)
  read, out = np.random.default_rng(2).normal(size=(2, 5, 16))
  got = module(read.astype(np.float32), out.astype(np.float32))
  np.testing.assert_allclose(
    got, _twin(arrays, read, out, choices), rtol=2e-4, atol=2e-5
  )


@pytest.mark.parametrize('names', [('mlp',), ('attn', 'mlp')])
def test_the_start_is_the_frozen_model(names):
  sides = bottleneck.Bottleneck(_RANK, _BRANCHES)
  build = lambda adapters: foundation.split(
    vit.ViT(tiny.vit_config(), adapters, rngs=nnx.Rngs(0)), tiny.DEPTH
  )
  plain, added = build({}), build(dict.fromkeys(names, sides))
  base = tiny.noise(plain.base, 2)
  images = tiny.batch(tiny.VIT_SIZE, 3).inputs
  model = added.merge(base, added.theta)
  want = plain.merge(base, {'head': added.theta['head']})
  layers = np.arange(tiny.DEPTH)
  np.testing.assert_array_equal(model(images, layers), want(images, layers))
  # And where U is no longer zero, it is another.
  moved = added.merge(base, tiny.noise(added.theta, 3))
  head = tiny.noise(added.theta, 3)['head']
  frozen = plain.merge(base, {'head': head})
  gap = np.abs(moved(images, layers) - frozen(images, layers))
  assert gap.max() > 1e-2


@pytest.mark.parametrize('projections', ['aligned', 'random', 'aligned_start'])
@pytest.mark.parametrize('core', ['mlp', 'linear'])
def test_set_projections_add_nothing_at_first(projections, core):
  """Although U is not zero: the last map of the cores is."""
  module, arrays = _module(
    projections=projections, placement='parallel', core=core
  )
  fresh = bottleneck.FedAdapter(tiny.vit_config(), module.sizes, nnx.Rngs(0))
  start = nnx.to_pure_dict(nnx.state(fresh, nnx.Param))
  for name in ('mean', 'down', 'up'):
    start.pop(name, None)
  for name, value in start.items():
    getattr(module, name)[...] = value[0]
  read, out = np.random.default_rng(3).normal(size=(2, 5, 16))
  read, out = read.astype(np.float32), out.astype(np.float32)
  assert np.abs(arrays['up']).max() > 0.1
  np.testing.assert_array_equal(module(read, out), out)


@pytest.mark.parametrize('seed', range(5))
def test_free_projections_leave_cores_a_gauge(seed):
  """(D, W1) and (D R^-1, R W1) are one function for every invertible R."""
  module, arrays = _module(placement='parallel')
  rng = np.random.default_rng(seed)
  turn = rng.normal(size=(_RANK, _RANK)) + 2 * np.eye(_RANK)
  read, out = rng.normal(size=(2, 5, 16)).astype(np.float32)
  want = module(read, out)
  module.down[...] = arrays['down'] @ np.linalg.inv(turn).astype(np.float32)
  module.core_in[...] = np.float32(turn) @ arrays['core_in']
  np.testing.assert_allclose(module(read, out), want, rtol=2e-3, atol=2e-4)
  # The core alone does not tell what it does.
  assert np.abs(module.core_in[...] - arrays['core_in']).max() > 0.1


def test_a_private_branch_is_mixed_in():
  choices = {'placement': 'parallel', 'projections': 'aligned'}
  module, arrays = _module(private=True, scale=0.5, **choices)
  read, out = np.random.default_rng(4).normal(size=(2, 5, 16))
  own = {**arrays.pop('private'), 'gate': np.zeros((1, 1))}
  share = special.expit(arrays.pop('mix'))
  nothing = np.zeros_like(out)
  both = [
    _twin(arrays, read, nothing, choices, _BRANCHES),
    _twin(own, read, nothing, {'placement': 'parallel'}, 1),
  ]
  want = out + 0.5 * ((1 - share) * both[0] + share * both[1])
  got = module(read.astype(np.float32), out.astype(np.float32))
  np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize('projections', ['aligned', 'aligned_start'])
def test_what_trains(projections):
  sides = bottleneck.Bottleneck(
    _RANK, _BRANCHES, placement='parallel', projections=projections
  )
  module = bottleneck.FedAdapter(tiny.vit_config(), sides, nnx.Rngs(0))
  trained = set(nnx.to_pure_dict(nnx.state(module, nnx.Param)))
  own = {'down', 'up'} if projections == 'aligned_start' else set()
  assert trained == {*bottleneck.SHARED, 'gate', *own}

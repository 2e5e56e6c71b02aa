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


def _twin(p, read, out, choices):
  """Computes the formula in float64."""
  p = {name: np.asarray(x, np.float64) for name, x in p.items()}
  h = (read if choices.get('placement') == 'parallel' else out) @ p['down']
  gating = choices.get('gating', 'static')
  logits = {
    'static': lambda: np.tile(p['gate'], (len(h), 1)),
    'token': lambda: h @ p['gate'],
    'uniform': lambda: np.zeros((len(h), _BRANCHES)),
  }[gating]()
  gates = special.softmax(logits, -1)
  mixed = 0
  for b in range(_BRANCHES):
    z = h @ p['core_in'][b]
    if choices.get('core', 'mlp') == 'mlp':
      z = z * special.ndtr(z) @ p['core_out'][b]
    mixed = mixed + gates[:, b : b + 1] * z
  return out + choices.get('scale', 1.0) * mixed @ p['up']


@pytest.mark.parametrize(
  'choices',
  [
    {},
    {'gating': 'token', 'placement': 'parallel'},
    {'gating': 'uniform', 'core': 'linear', 'scale': 0.5},
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

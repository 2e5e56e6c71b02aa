"""Alignment: what it recovers, what it starts from, and what it gives away."""

import dataclasses
import functools

from flax import nnx
import jax
import numpy as np
import pytest
import tiny

from fedjax_tune import config, selection
from fedjax_tune.data import public, shares, tasks
from fedjax_tune.engine import plan
from fedjax_tune.methods.facts import Facts
from fedjax_tune.methods.heterotune import heterotune
from fedjax_tune.models import (
  alignment,
  bottleneck,
  federation,
  foundation,
  peft,
  pretrained,
  reads,
  spaces,
  text,
  vit,
)

_RANK, _CODE, _SIDE = 4, 5, 16


def _rows(seed=0, width=12, count=400):
  """Returns rows of which each direction has a variance of its own."""
  rng = np.random.default_rng(seed)
  scale = 2.0 ** -np.arange(width)
  turn = spaces.polar(rng.normal(size=(width, width)))
  return rng.normal(size=(count, width)) * scale @ turn + rng.normal(size=width)


def _code(x, q, space):
  return (x - x.mean(0)) @ q / space.sigma


@pytest.mark.parametrize('width', [12, 20])
def test_a_known_rotation_is_recovered(width):
  """Turned, shifted and in a wider space, the same rows have the same codes."""
  x = _rows()
  rng = np.random.default_rng(1)
  turn = spaces.polar(rng.normal(size=(width, 12))).T
  other = x @ turn + rng.normal(size=width)
  space = spaces.find_space(x, _RANK, 'rank')
  own = spaces.rotation(x, space)
  theirs = spaces.rotation(other, space)
  np.testing.assert_allclose(
    _code(other, theirs, space), _code(x, own, space), atol=1e-9
  )
  np.testing.assert_allclose(theirs, turn.T @ own, atol=1e-9)
  # What comes back means the same, too.
  np.testing.assert_allclose(theirs.T, own.T @ turn, atol=1e-9)


def test_the_space_is_that_of_the_principal_directions():
  x = _rows(2)
  space = spaces.find_space(x, _RANK, 'rank')
  code = _code(x, spaces.rotation(x, space), space)
  np.testing.assert_allclose(code.T @ code / len(x), np.eye(_RANK), atol=1e-9)
  values = np.linalg.eigvalsh(np.cov(x.T, bias=True))[::-1]
  np.testing.assert_allclose(space.sigma, np.sqrt(values[:_RANK]), rtol=1e-9)
  flat = x[:, :3] @ np.random.default_rng(3).normal(size=(3, 6))
  with pytest.raises(ValueError, match=r'rank=5 must be at most 3: the public'):
    spaces.find_space(flat, 5, 'rank')


def test_a_ridge_fits_what_no_rotation_does():
  """Features that are stretched besides; a rotation keeps lengths."""
  x = _rows(4)
  stretched = x * np.linspace(0.2, 3, 12)
  space = spaces.find_space(x, _RANK, 'rank')
  want = _code(x, spaces.rotation(x, space), space)
  centred = stretched - stretched.mean(0)
  fitted = centred @ spaces.regression(stretched, space)
  turned = _code(stretched, spaces.rotation(stretched, space), space)
  error = lambda got: np.mean((got - want) ** 2)
  assert error(fitted) < 0.1 * error(turned)


@functools.cache
def _vit(projections='aligned', code=_CODE, depth=4):
  """Returns the first blocks of one network, not yet aligned."""
  e = config.Experiment(model=config.Model(tune='adapter'))
  e.fedadapter = config.Fedadapter(
    rank=_RANK, after=('attn', 'mlp'), placement='parallel'
  )
  weights = pretrained.load_pretrained('random:vit_test', '', _SIDE)
  task = tasks.Task('classification', 3)
  found = peft.build(e, weights, task, projections, code)
  # Weights as they are drawn change little of what a block reads.
  noisy = {**found.base, 'embed': tiny.noise(found.base['embed'], 5, 0.5)}
  return foundation.cut(
    dataclasses.replace(found, base=noisy), {'layer': depth}
  )


def _finer():
  """Returns a ViT of smaller patches, and so of more tokens."""
  shape = tiny.vit_config(patch=4)
  sides = bottleneck.Bottleneck(
    _RANK, placement='parallel', projections='aligned'
  )
  model = vit.ViT(shape, {'mlp': sides, 'attn': sides}, rngs=nnx.Rngs(0))
  found = foundation.split(model, tiny.DEPTH)
  return dataclasses.replace(found, base=tiny.noise(found.base, 8, 0.5))


def _align(
  *tiers,
  projections='aligned',
  head_map='procrustes',
  first_token=True,
  **options,
):
  named = dict(zip('abc', tiers, strict=False))
  images = tiny.examples(40, _SIDE).inputs
  return alignment.align(
    named,
    federation.find_sites(named, **options),
    dict.fromkeys(named, public.Shown(images)),
    projections=projections,
    head_map=head_map,
    first_token=first_token,
    seed=0,
  )


def _adapter(tier, sublayer='mlp'):
  return jax.device_get(tier.base['blocks'][f'{sublayer}_adapter'])


def test_what_is_read():
  """The first block reads normalised tokens, the head the class token."""
  found, images = _vit(), tiny.examples(70, _SIDE).inputs
  got = reads.read(found, images, 'some')
  model = found.merge(found.base, found.theta)
  tokens = model.embed(images, None)
  scale, bias = (
    x[0] for x in (model.blocks.norm1.scale, model.blocks.norm1.bias)
  )
  mean, std = tokens.mean(-1, keepdims=True), tokens.std(-1, keepdims=True)
  want = (tokens - mean) / std * scale + bias
  some = np.arange(8) * 5 // 8  # Of five tokens.
  want = np.asarray(want)[:, some].reshape(-1, 16)
  np.testing.assert_allclose(
    got.adapters['attn'][0], want, rtol=1e-3, atol=1e-4
  )
  assert got.adapters['mlp'].shape == (4, 70 * 8, 16)
  np.testing.assert_array_equal(got.first['mlp'], got.adapters['mlp'][:, ::8])
  exits = model.class_tokens(images, np.arange(4))
  np.testing.assert_allclose(got.head, exits[-1], rtol=1e-4, atol=1e-5)
  mean = reads.read(found, images, 'mean').adapters['attn'][0]
  assert mean.shape == (70, 16)


@pytest.mark.parametrize('weights', ['some', 'mean'])
def test_padding_is_not_read(weights):
  sides = bottleneck.Bottleneck(_RANK)
  shape, texts = tiny.text_config(), tiny.texts(6)
  found = foundation.split(
    text.TextEncoder(shape, {'mlp': sides}, rngs=nnx.Rngs(0)), tiny.DEPTH
  )
  found = dataclasses.replace(found, base=tiny.noise(found.base, 2))
  more = jax.tree.map(lambda x: np.pad(x, ((0, 0), (0, 3))), texts)
  a, b = (reads.read(found, x, weights) for x in (texts, more))
  tiny.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('projections', ['aligned', 'aligned_start'])
def test_the_start_is_the_frozen_model(projections):
  tier = _align(_vit(projections), projections=projections)['a']
  plain = _vit('free')
  images = tiny.examples(9, _SIDE, seed=1).inputs
  got, want = (
    t.merge(t.base, t.theta).class_tokens(images, np.arange(4))
    for t in (tier, plain)
  )
  np.testing.assert_array_equal(got, want)
  # A common head says nothing at first.
  assert not np.any(tier.merge(tier.base, tier.theta)(images, np.arange(4)))
  where = tier.theta if projections == 'aligned_start' else tier.base
  up = where['blocks']['mlp_adapter']['up']
  assert np.abs(up).max((1, 2)).min() > 1e-3


def test_aligned_projections_are_scaled_rotations():
  tiers = _align(_vit(), _vit(depth=2))
  for tier in tiers.values():
    for sublayer in ('attn', 'mlp'):
      part = _adapter(tier, sublayer)
      for down, up in zip(part['down'], part['up'], strict=True):
        scale = (up @ up.T)[0, 0]
        np.testing.assert_allclose(
          up @ up.T, scale * np.eye(_RANK), atol=1e-4 * scale
        )
        # D is U transposed but for the scale of each direction.
        ratio = down / up.T
        np.testing.assert_allclose(
          ratio, np.tile(ratio[:1], (16, 1)), rtol=1e-2
        )


def test_the_last_site_is_aligned_by_first_tokens():
  images = tiny.examples(40, _SIDE).inputs
  found = reads.read(_vit(), images, 'some')
  for first in (True, False):
    mean = _adapter(_align(_vit(), first_token=first)['a'])['mean']
    for block in range(4):
      rows = found.first if first and block == 3 else found.adapters
      np.testing.assert_allclose(
        mean[block], rows['mlp'][block].mean(0), rtol=1e-4, atol=1e-5
      )


@pytest.mark.parametrize('mapping', ['depth', 'index'])
def test_tiers_of_other_patches_are_aligned_by_means(mapping):
  """But the last site by class tokens, which both have."""
  tiers, images = (_vit(code=0), _finer()), tiny.examples(40, _SIDE).inputs
  aligned = _align(*tiers, by_index=mapping == 'index')
  for tier, before in zip(aligned.values(), tiers, strict=True):
    found = reads.read(before, images, 'mean')
    for block in range(4):
      rows = found.first if block == 3 else found.adapters
      np.testing.assert_allclose(
        _adapter(tier)['mean'][block],
        rows['mlp'][block].mean(0),
        rtol=1e-3,
        atol=1e-4,
      )


def test_equal_tiers_are_projected_alike():
  tiers = _align(_vit(), _vit(depth=4))
  tiny.assert_close(_adapter(tiers['a']), _adapter(tiers['b']), atol=1e-6)
  other = _align(_vit('random'), _vit('random'), projections='random')
  a, b = (_adapter(t)['up'] for t in other.values())
  assert np.abs(a - b).max() > 1e-2


def test_codes_of_one_site_agree():
  """Of images that nobody was aligned on; random projections' do not."""
  images = tiny.examples(60, _SIDE, seed=7).inputs

  def codes(projections):
    tiers = _align(
      _vit(projections), _vit(projections, depth=2), projections=projections
    )
    found = []
    for tier, block in zip(tiers.values(), (3, 1), strict=True):
      part = _adapter(tier)
      x = reads.read(tier, images, 'some').first['mlp'][block]
      code = (x - part['mean'][block]) @ part['down'][block]
      found.append(code / np.linalg.norm(code))
    return float(np.sum(found[0] * found[1]))

  assert codes('aligned') > 0.6 > abs(codes('random')) + 0.1


def test_a_block_without_an_adapter_has_no_projection():
  tier = _align(_vit(), _vit(depth=2), sites=1, every_block=False)['a']
  up = _adapter(tier)['up']
  assert [bool(np.any(x)) for x in up] == [False, False, False, True]


@pytest.mark.parametrize(
  ('rank', 'code', 'message'),
  [
    (20, 0, r'fedadapter\.rank=20 must be at most 16, the width of tier'),
    (_RANK, 20, r'tiers\.head_rank=20 must be at most 16, the width'),
  ],
)
def test_a_code_wider_than_a_tier(rank, code, message):
  e = config.Experiment(model=config.Model(tune='adapter'))
  e.fedadapter = config.Fedadapter(rank=rank, placement='parallel')
  weights = pretrained.load_pretrained('random:vit_test', '', _SIDE)
  task = tasks.Task('classification', 3)
  found = peft.build(e, weights, task, 'aligned', code)
  with pytest.raises(ValueError, match=message):
    _align(found)


def _join(projections, head):
  """Trains the first of two tiers, which joins before the second.

  Returns:
    How good the first tier's model is on 90 pictures; the algorithm, theta, and
    those pictures.
  """
  local = {'optimizer': 'adam', 'lr': 0.02, 'steps': 8, 'batch_size': 16}
  e = tiny.experiment(
    'heterotune',
    fedadapter={
      'rank': _RANK,
      'placement': 'parallel',
      'projections': projections,
    },
    tiers={'head': head, 'joins': (0, 2)},
    heterotune={'branches': (1, 1)},
    clients={'count': 2, 'cohort_size': 2},
    engine={'slab': 1},
    local={**local, 'clip_norm': 0.0},
  )
  code = 0 if head == 'own' else _CODE
  models = {
    name: _noisy(_vit(projections, code, depth))
    for name, depth in (('large', 4), ('small', 3))
  }
  train, test = tiny.examples(240, _SIDE), tiny.examples(90, _SIDE, seed=9)
  shown = tiny.examples(60, _SIDE, seed=4).inputs
  facts = Facts(
    e,
    {'layer': 4, 'tier:large': 4, 'tier:small': 3},
    (4, 4),
    train.task,
    None,
    {name: lambda _, found=found: found for name, found in models.items()},
    public=lambda _: public.Shown(shown),
  )
  algorithm = heterotune.build(facts)
  halves = shares.Shares.of(np.array_split(np.arange(240), 2))
  # Two rounds: the second tier's program is for none of them.
  e.rounds = 2
  planner = plan.Planner(e, algorithm, train, halves, np.zeros(2, int))
  theta = tiny.Run(e, algorithm, planner).rounds(2).theta
  logits = _assemble(algorithm, theta, 'large')(test.inputs, np.arange(4))
  return np.mean(np.argmax(logits, -1) == test.labels), algorithm, theta, test


def _noisy(found):
  """Returns a model whose random weights are far from the identity."""
  return dataclasses.replace(found, base=tiny.noise(found.base, 6, 0.3))


def _assemble(algorithm, theta, name):
  model, row = algorithm.model, algorithm.evaluation.models[name]
  local = selection.select_within(theta, model.axes, row)
  return model.assemble(model.base, local, row)


def test_a_tier_that_joins_knows_what_others_learned():
  large, algorithm, theta, test = _join('aligned', 'common')
  logits = _assemble(algorithm, theta, 'small')(test.inputs, np.arange(3))
  assert large > 0.85
  assert np.mean(np.argmax(logits, -1) == test.labels) > 0.75
  # All of its own is a gate, which has not moved.
  assert not np.any(theta['small']['blocks']['mlp_adapter']['gate'])


def test_without_a_common_space_it_is_at_chance():
  """Whatever others learned, its own head is drawn: any of a hundred."""
  large, algorithm, theta, test = _join('free', 'own')
  assert large > 0.85
  model = _assemble(algorithm, theta, 'small')
  features = np.asarray(model.class_tokens(test.inputs, np.arange(3))[-1])
  rng = np.random.default_rng(0)
  drawn = [
    np.mean(np.argmax(features @ rng.normal(size=(16, 3)), -1) == test.labels)
    for _ in range(100)
  ]
  assert np.mean(drawn) == pytest.approx(1 / 3, abs=0.1)

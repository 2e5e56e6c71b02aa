"""Salience: its twin, and that reordering channels changes no output."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from fedjax_tune import config, plugins
from fedjax_tune.config import validate
from fedjax_tune.engine import server, server_optimizer
from fedjax_tune.methods.raffm import salience

_EVERYWHERE = tuple(
  f'{module}.{name}'
  for module, names in (
    ('attn', ('q', 'k', 'v', 'proj')),
    ('mlp', ('fc1', 'fc2')),
  )
  for name in names
)
_SCOPES = ('qk', 'qk+vo', 'qk+vo+ffn')


def _built(found, scope, *, every_round=True):
  """Returns the method on a model, everyone with all of it."""
  options = {
    'priority': scope,
    'embed': (1.0,),
    'layers': (1.0,),
    'reorder': 'every_round' if every_round else 'once',
  }
  return tiny.build(tiny.experiment('raffm', raffm=options), found)


def _find(found, scope, *, every_round=True):
  """Returns what reorders such a model before a round, or None."""
  algorithm = _built(found, scope, every_round=every_round)
  return algorithm.reorder and algorithm.reorder(found.theta, found.axes)


class Model:
  """A model of one kind and tuning, and its outputs on one batch."""

  def __init__(self, kind, tune):
    build = tiny.vit_foundation if kind == 'vit' else tiny.text_foundation
    targets = _EVERYWHERE if tune == 'lora' else ()
    self.found = build(targets=targets, full=tune == 'full')
    inputs = tiny.texts(3)
    if kind == 'vit':
      inputs = tiny.batch(tiny.VIT_SIZE, 3).inputs
    self.outputs = jax.jit(
      lambda found: self.found.merge(found[1], found[0])(
        inputs, np.arange(tiny.DEPTH)
      )
    )

  def __call__(self, found):
    return np.asarray(self.outputs((found.theta, found.base)))

  @property
  def kernels(self):
    """The blocks that have the kernels, and their axes."""
    found = self.found
    if found.base.get('blocks'):
      return found.base['blocks'], found.base_axes['blocks']
    return found.theta['blocks'], found.axes['blocks']


@pytest.fixture(
  scope='module', params=['vit-full', 'vit-lora', 'bert-full', 'bert-lora']
)
def model(request):
  return Model(*request.param.split('-'))


# -- the twin: section 3.2 of the notes, loop by loop


def _slow_order(first_LxHxExD, second_LxHxExD):
  """Ranks the channels of each head by the mean L1 norm of their rows."""
  order = []
  for a_HxExD, b_HxExD in zip(first_LxHxExD, second_LxHxExD, strict=True):
    for a_ExD, b_ExD in zip(a_HxExD, b_HxExD, strict=True):
      scores = [
        (np.abs(a).sum() + np.abs(b).sum()) / 2
        for a, b in zip(a_ExD, b_ExD, strict=True)
      ]
      order.append(sorted(range(len(scores)), key=lambda j, s=scores: -s[j]))
  return np.reshape(order, first_LxHxExD.shape[:3])


def test_the_order_is_its_slow_twin():
  model = Model('vit', 'full')
  blocks, axes = model.kernels
  order = salience.rank(blocks, axes, 'qk+vo+ffn')
  attn, mlp = blocks['attn'], blocks['mlp']
  # Kernels [L, D, H, E] as torch's rows, [L, H, E, D].
  rows = lambda name: np.moveaxis(np.asarray(attn[name]['kernel']), 1, 3)
  want = {
    'qk_dim': _slow_order(rows('q'), rows('k')),
    'v_dim': _slow_order(rows('v'), np.asarray(attn['proj']['kernel'])),
    'ffn': _slow_order(
      np.swapaxes(mlp['fc1']['kernel'], 1, 2)[:, None],
      np.asarray(mlp['fc2']['kernel'])[:, None],
    )[:, 0],
  }
  tiny.assert_equal(dict(order), want)
  assert all(np.any(o != np.arange(o.shape[-1])) for o in want.values())
  # The kernels and biases that it moves.
  got = salience.reorder(blocks, axes, order)
  for layer in range(tiny.DEPTH):
    for head in range(2):
      at = want['qk_dim'][layer, head]
      for name in ('q', 'k'):
        old, new = attn[name], got['attn'][name]
        np.testing.assert_array_equal(
          new['kernel'][layer, :, head], old['kernel'][layer, :, head][:, at]
        )
        np.testing.assert_array_equal(
          new['bias'][layer, head], old['bias'][layer, head][at]
        )


def test_biases_do_not_count_and_ties_keep_their_order():
  blocks, axes = Model('vit', 'full').kernels
  equal = jax.tree.map(jnp.ones_like, blocks)
  for name in ('q', 'k'):
    equal['attn'][name]['bias'] = blocks['attn'][name]['bias']
  order = salience.rank(equal, axes, 'qk')['qk_dim']
  np.testing.assert_array_equal(
    order, np.broadcast_to(np.arange(8), order.shape)
  )


# -- what it preserves


@pytest.mark.parametrize('scope', _SCOPES)
def test_reordering_changes_no_output(model, scope):
  start = model(model.found)
  prepared = _built(model.found, scope).model
  np.testing.assert_allclose(model(prepared), start, atol=1e-4)
  moved = jax.tree.leaves(
    jax.tree.map(
      lambda a, b: np.any(a != b),
      (model.found.theta, model.found.base),
      (prepared.theta, prepared.base),
    )
  )
  # Kernels, and biases where outputs move; with LoRA everywhere also A or B.
  pretrained = {'qk': 4, 'qk+vo': 7, 'qk+vo+ffn': 10}[scope]
  adapters = {'qk': 2, 'qk+vo': 4, 'qk+vo+ffn': 6}[scope]
  has_lora = bool(model.found.base)
  assert sum(map(bool, moved)) == pretrained + has_lora * adapters


def test_none_leaves_all_where_it_is(model):
  prepared = _built(model.found, 'none').model
  tiny.assert_equal(prepared.theta, model.found.theta)
  tiny.assert_equal(prepared.base, model.found.base)


def test_reordering_again_changes_nothing(model):
  once = _built(model.found, 'qk+vo+ffn').model
  twice = _built(once, 'qk+vo+ffn').model
  tiny.assert_equal(twice.theta, once.theta)
  tiny.assert_equal(twice.base, once.base)


def test_ranking_queries_and_keys_apart_destroys_the_model():
  model = Model('vit', 'full')
  theta, axes = model.found.theta, model.found.axes
  start = model(model.found)
  joint = salience.rank(theta['blocks'], axes['blocks'], 'qk')
  apart = {}
  for name in ('q', 'k'):
    norms = jnp.abs(theta['blocks']['attn'][name]['kernel']).sum(1)
    order = {'qk_dim': jnp.argsort(-norms, axis=-1)}
    part = theta['blocks']['attn'][name]
    names = axes['blocks']['attn'][name]
    apart[name] = salience.reorder(part, names, order)
  attn = {**theta['blocks']['attn'], **apart}
  broken = {**theta, 'blocks': {**theta['blocks'], 'attn': attn}}
  right = salience.reorder(theta, axes, joint)
  off = lambda t: np.abs(model.outputs((t, {})) - start).max()
  assert off(right) < 1e-4
  assert off(broken) > 100 * max(off(right), 1e-4)


# -- between rounds


@pytest.mark.parametrize('name', ['fedavgm', 'fedadam'])
def test_what_the_server_remembers_follows_its_channel(name):
  found = tiny.vit_foundation(targets=(), full=True)
  opt = server_optimizer.build(config.Server(optimizer=name))
  # Of each parameter three times its value, so that it tells whose it is.
  opt_state = optax.tree.map_params(
    opt, lambda _, w: 3 * w, opt.init(found.theta), found.theta
  )
  start = server.ServerState(found.theta, opt_state, ('memory',))
  step = server.build_reorder(_built(found, 'qk+vo+ffn'))
  end = step(start)
  moved = jax.tree.map(lambda a, b: np.any(a != b), end.theta, found.theta)
  assert moved['blocks']['attn']['q']['kernel']
  assert not moved['head']['kernel']
  triple = [3 * np.asarray(w) for w in jax.tree.leaves(end.theta)]
  leaves = tiny.remembered(opt, end.opt_state)
  assert len(leaves) == len(triple) * (2 if name == 'fedadam' else 1)
  for got, want in zip(leaves, triple * 2, strict=False):
    np.testing.assert_allclose(got, want, rtol=1e-6)
  assert end.memory == start.memory


def test_once_and_frozen_kernels_stay_between_rounds():
  full = tiny.vit_foundation(targets=(), full=True)
  lora = tiny.vit_foundation()
  assert _find(full, 'qk', every_round=False) is None
  assert _find(lora, 'qk') is None
  assert _find(full, 'qk') is not None


def test_an_unknown_scope():
  check = functools.partial(validate.validate, choices=plugins.choices())
  check(tiny.experiment('raffm', raffm={'priority': 'qk+vo'}))
  with pytest.raises(ValueError, match=r"raffm\.priority='v' must be one of"):
    check(tiny.experiment('raffm', raffm={'priority': 'v'}))

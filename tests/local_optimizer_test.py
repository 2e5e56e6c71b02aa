"""A client's optimizer, schedule and decay, against torch and transformers."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import torch
import transformers

from fedjax_tune import config, plugins
from fedjax_tune.config import validate
from fedjax_tune.engine import client, local_optimizer

_LR, _EPOCHS, _STEPS = 0.05, 3, 9
_PARAMS = {
  'norm1': {'scale': np.array([1.0, -2.0]), 'bias': np.array([0.5, 3.0])},
  'fc1': {'kernel': np.array([2.0, -1.0]), 'bias': np.array([1.0, 2.0])},
}


def _batches(steps, padded):
  """Gradients of the steps; steps of padding behind them."""
  rng = np.random.default_rng(0)
  grads = rng.normal(size=(padded, 4, 2)).astype(np.float32)
  valid = np.arange(padded)[:, None] < np.full((1, 2), steps)
  return client.Batch(jnp.asarray(grads), valid, jnp.asarray(valid))


def _ours(cfg, steps=_STEPS, padded=_STEPS + 4):
  batches = _batches(steps, padded)

  def objective(local, batch, key):
    del key
    leaves = jnp.stack(jax.tree.leaves(local))
    return jnp.sum(leaves * batch.inputs), {}

  start = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), _PARAMS)
  delta, _ = client.client_update(
    objective,
    local_optimizer.build(cfg),
    start,
    batches,
    jax.random.key(0),
    jnp.float32(local_optimizer.learning_rate(cfg, 0, 1)),
    schedule=local_optimizer.schedule(cfg),
  )
  return jax.tree.map(jnp.add, start, delta)


def _torch(build, schedule, steps=_STEPS, clip=0.0, per_epoch=False):
  """The same steps by torch; `build` gets decayed and undecayed parameters."""
  leaves = [
    torch.tensor(x, requires_grad=True) for x in jax.tree.leaves(_PARAMS)
  ]
  # Biases and norms: all but fc1.kernel, in the order of the leaves.
  decayed, rest = [leaves[1]], [leaves[0], *leaves[2:]]
  optimizer = build(decayed, rest)
  scheduler = schedule(optimizer)
  grads = np.asarray(_batches(steps, steps).inputs, np.float64)
  for i, grad in enumerate(grads):
    for leaf, g in zip(leaves, grad, strict=True):
      leaf.grad = torch.tensor(g)
    if clip:
      torch.nn.utils.clip_grad_norm_(leaves, clip)
    optimizer.step()
    if not per_epoch or (i + 1) % (steps // _EPOCHS) == 0:
      scheduler.step()
  return [leaf.detach().numpy() for leaf in leaves]


def _assert_same(got, want):
  for a, b in zip(jax.tree.leaves(got), want, strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


def test_texts_of_raffm_train_as_trainer_does():
  """AdamW, linear to 0, clipped at 1, no decay of biases and norms."""
  cfg = config.Local(
    optimizer='adamw',
    lr=_LR,
    weight_decay=0.3,
    clip_norm=1.0,
    schedule='linear',
    decay_mask='no_bias_norm',
  )

  def build(decayed, rest):
    groups = [
      {'params': decayed, 'weight_decay': 0.3},
      {'params': rest, 'weight_decay': 0.0},
    ]
    return torch.optim.AdamW(groups, lr=_LR)

  linear = lambda o: transformers.get_linear_schedule_with_warmup(o, 0, _STEPS)
  want = _torch(build, linear, clip=1.0)
  _assert_same(_ours(cfg), want)
  for change in ({'decay_mask': 'all'}, {'schedule': 'constant'}):
    other = jax.tree.leaves(_ours(dataclasses.replace(cfg, **change)))
    assert (
      max(np.abs(a - b).max() for a, b in zip(other, want, strict=True)) > 0.01
    )


def test_images_of_raffm_train_as_their_script_does():
  """Adam, times 0.95 after each local epoch."""
  cfg = config.Local(
    optimizer='adam',
    lr=_LR,
    weight_decay=0.0,
    clip_norm=0.0,
    steps=0,
    epochs=_EPOCHS,
    schedule='exponential',
    gamma=0.7,
  )
  build = lambda decayed, rest: torch.optim.Adam([*rest, *decayed], lr=_LR)
  by_epoch = lambda o: torch.optim.lr_scheduler.ExponentialLR(o, gamma=0.7)
  _assert_same(_ours(cfg), _torch(build, by_epoch, per_epoch=True))


def test_cosine_is_that_of_transformers():
  cfg = config.Local(
    lr=_LR, momentum=0.0, weight_decay=0.2, clip_norm=0.0, schedule='cosine'
  )
  cfg.decay_mask = 'no_bias_norm'

  def build(decayed, rest):
    groups = [{'params': decayed, 'weight_decay': 0.2}, {'params': rest}]
    return torch.optim.SGD(groups, lr=_LR)

  cosine = lambda o: transformers.get_cosine_schedule_with_warmup(o, 0, _STEPS)
  _assert_same(_ours(cfg), _torch(build, cosine))


@pytest.mark.parametrize('name', ['linear', 'cosine', 'exponential'])
def test_a_client_counts_its_own_steps(name):
  cfg = config.Local(lr=_LR, steps=0, epochs=3, schedule=name)
  tiny.assert_equal(_ours(cfg, 6, 6), _ours(cfg, 6, 20))
  # Padding is a client of no steps.
  factor: Any = local_optimizer.schedule(cfg)
  still = _ours(cfg, 0, 4)
  tiny.assert_equal(still, jax.tree.map(np.float32, _PARAMS))
  factors = [float(factor(jnp.int32(i), jnp.int32(6))) for i in range(6)]
  want = {
    'linear': [1 - i / 6 for i in range(6)],
    'cosine': [(1 + np.cos(np.pi * i / 6)) / 2 for i in range(6)],
    'exponential': [1, 1, 0.95, 0.95, 0.95**2, 0.95**2],
  }
  np.testing.assert_allclose(factors, want[name], rtol=1e-5)


def test_without_a_schedule_nothing_changes():
  assert local_optimizer.schedule(config.Local()) is None
  assert local_optimizer.learning_rate(
    config.Local(lr=1.0, decay=0.5, decay_every=5), 14, 20
  ) == pytest.approx(0.25)


def _rates(rounds, **options):
  cfg = config.Local(lr=_LR, **options)
  return [
    local_optimizer.learning_rate(cfg, rnd, rounds) for rnd in range(rounds)
  ]


@pytest.mark.parametrize('warmup', [0, 3])
def test_cosine_over_rounds_is_that_of_transformers(warmup):
  """But for the first round, which there has a rate of 0 while it warms up."""
  optimizer = torch.optim.SGD([torch.zeros(1)], lr=_LR)
  schedule = transformers.get_cosine_schedule_with_warmup(
    optimizer, warmup, _STEPS
  )
  want = []
  for _ in range(_STEPS):
    want.append(optimizer.param_groups[0]['lr'])
    optimizer.step()
    schedule.step()
  got = _rates(_STEPS, over_rounds='cosine', warmup=warmup)
  np.testing.assert_allclose(got[warmup:], want[warmup:], rtol=1e-6)
  rising = [_LR * (i + 1) / 3 for i in range(warmup)]
  np.testing.assert_allclose(got[:warmup], rising)
  assert min(got) > 0


def test_decay_can_be_warmed_up():
  got = _rates(6, decay=0.5, decay_every=2, warmup=4)
  factors = [1 / 4, 2 / 4, 3 / 8, 4 / 8, 1 / 4, 1 / 4]
  np.testing.assert_allclose(got, [_LR * f for f in factors])


def test_a_warmup_as_long_as_the_run_is_refused():
  e = config.Experiment(rounds=5, local=config.Local(warmup=5))
  with pytest.raises(
    ValueError, match=r'local\.warmup=5 must lie below rounds'
  ):
    validate.validate(e, plugins.choices())


def test_the_exponential_schedule_needs_epochs():
  e = config.Experiment(local=config.Local(schedule='exponential', steps=4))
  with pytest.raises(ValueError, match=r'so that local\.steps=4 must be 0\.'):
    validate.validate(e, plugins.choices())
  e.local.steps = 0
  validate.validate(e, plugins.choices())


def test_biases_and_norms_of_models_do_not_decay():
  for found in (
    tiny.vit_foundation(targets=(), full=True),
    tiny.text_foundation(full=True),
  ):
    masked = local_optimizer.decays(found.theta)
    flat = {
      jax.tree_util.keystr(path, simple=True, separator='.'): decays
      for path, decays in jax.tree_util.tree_leaves_with_path(masked)
    }
    still = {name for name, decays in flat.items() if not decays}
    assert still == {n for n in flat if n.endswith('bias') or 'norm' in n}
    assert {'blocks.mlp.fc1.kernel', 'head.kernel'} <= flat.keys() - still


def test_a_tier_may_be_called_as_norms_are():
  tree = {'norm_bert': {'attn': {'kernel': 0}, 'norm1': {'scale': 0}}}
  assert local_optimizer.decays(tree) == {
    'norm_bert': {'attn': {'kernel': True}, 'norm1': {'scale': False}}
  }


@pytest.mark.parametrize(
  ('gradient', 'want'),
  [
    ([0.3, 0.4], [0.3, 0.4]),
    ([3.0, 4.0], [0.6, 0.8]),
    ([0.0, 0.0], [0.0, 0.0]),
    ([np.inf, 0.0], [np.nan, np.nan]),
    ([np.nan, 0.0], [np.nan, np.nan]),
    # Both are finite, but the square of their norm is not.
    ([3e30, 4e30], [np.nan, np.nan]),
  ],
)
def test_gradients_are_clipped_by_norm(gradient, want):
  cfg = config.Local(momentum=0.0, weight_decay=0.0, clip_norm=1.0)
  steps = local_optimizer.build(cfg)
  gradient = jnp.array(gradient)
  update, _ = steps.update(gradient, steps.init(gradient), gradient)
  np.testing.assert_allclose(np.asarray(update), -np.array(want), rtol=1e-6)


@pytest.mark.parametrize(
  ('optimizer', 'copies'), [('sgd', 2), ('adam', 3), ('adamw', 3)]
)
@pytest.mark.parametrize('clip_norm', [0.0, 1.0])
def test_steps_change_parameters_and_state_in_place(
  optimizer, copies, clip_norm
):
  """A client needs room for its parameters and its optimizer's state, once."""
  cfg = config.Local(optimizer=optimizer, momentum=0.9, clip_norm=clip_norm)

  def objective(local, batch, key):
    del key
    return jnp.sum(jnp.sin(local) * batch.inputs[0, 0]), {}

  def update(start, batches):
    return client.client_update(
      objective,
      local_optimizer.build(cfg),
      start,
      batches,
      jax.random.key(0),
      jnp.float32(_LR),
    )

  start = jnp.zeros(2**16)
  compiled = jax.jit(update).lower(start, _batches(3, 4)).compile()
  memory = compiled.memory_analysis()
  assert memory is not None
  assert memory.temp_size_in_bytes < (copies + 0.1) * start.nbytes

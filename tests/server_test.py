"""Server optimizers against the paper's formulas."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from fedjax_tune import config
from fedjax_tune.engine import server, server_optimizer
from fedjax_tune.engine.algorithm import Aggregator
from fedjax_tune.selection import GroupSum

_ADAPTIVE = {
  'fedadagrad': lambda v, d2, _: v + d2,
  'fedyogi': lambda v, d2, beta2: v - (1 - beta2) * d2 * np.sign(v - d2),
  'fedadam': lambda v, d2, beta2: beta2 * v + (1 - beta2) * d2,
}


def _deltas(rounds=4):
  rng = np.random.default_rng(0)
  # From far below to far above tau.
  return rng.normal(size=(rounds, 5)) * np.array([1e-4, 1e-3, 1e-2, 0.1, 1])


def _run(cfg, deltas, den=1.0):
  opt = server_optimizer.build(cfg)
  theta = {'w': jnp.ones(deltas.shape[1])}
  state = server.ServerState(theta, opt.init(theta), ())
  step = server.build_server_step(Aggregator(), opt)
  den = jnp.broadcast_to(jnp.asarray(den, jnp.float32), deltas.shape[1:])
  for delta in deltas:
    total = GroupSum({'w': den * jnp.asarray(delta, jnp.float32)}, {'w': den})
    state = step(state, {'all': total})
  return state


@pytest.mark.parametrize('name', sorted(_ADAPTIVE))
def test_adaptive_is_algorithm_2(name):
  """Algorithm 2 of arXiv 2003.00295, line by line."""
  cfg = config.Server(
    optimizer=name, lr=0.3, momentum=0.8, beta2=0.95, eps=0.01
  )
  deltas = _deltas()
  x, m, v = np.ones(5), np.zeros(5), np.full(5, cfg.eps**2)
  # Section 5: Adagrad knows no momentum.
  beta1 = 0 if name == 'fedadagrad' else cfg.momentum
  for delta in deltas:
    m = beta1 * m + (1 - beta1) * delta
    v = _ADAPTIVE[name](v, delta**2, cfg.beta2)
    x = x + cfg.lr * m / (np.sqrt(v) + cfg.eps)
  state = _run(cfg, deltas)
  np.testing.assert_allclose(state.theta['w'], x, rtol=1e-5)
  got_m, got_v = tiny.remembered(server_optimizer.build(cfg), state.opt_state)
  np.testing.assert_allclose(-got_m, m, rtol=1e-4, atol=1e-7)
  np.testing.assert_allclose(got_v, v, rtol=1e-4)


def test_fedavgm_is_momentum_on_the_server():
  cfg = config.Server(optimizer='fedavgm', lr=0.5, momentum=0.7)
  x, velocity = np.ones(5), np.zeros(5)
  for delta in _deltas():
    velocity = cfg.momentum * velocity + delta
    x = x + cfg.lr * velocity
  np.testing.assert_allclose(_run(cfg, _deltas()).theta['w'], x, rtol=1e-5)


def test_fedavg_is_the_mean():
  delta = _deltas(1)
  state = _run(config.Server(), delta, den=7.0)
  np.testing.assert_allclose(state.theta['w'], 1 + delta[0], rtol=1e-6)


@pytest.mark.parametrize('name', ['fedavgm', *sorted(_ADAPTIVE)])
def test_uncovered_coordinates_miss_the_round(name):
  cfg = config.Server(optimizer=name)
  deltas = _deltas(3)
  den = [1.0, 1, 0, 1, 0]
  # Coordinates 2 and 4 are held in the first round only.
  opt = server_optimizer.build(cfg)
  step = server.build_server_step(Aggregator(), opt)
  state = _run(cfg, deltas[:1])
  once = state
  for delta in deltas[1:]:
    held = {'w': jnp.asarray(den)}
    num = {'w': jnp.asarray(delta * den, jnp.float32)}
    state = step(state, {'all': GroupSum(num, held)})
  always = _run(cfg, deltas)
  held = np.array(den) > 0
  leaves = [
    [np.asarray(s.theta['w']), *tiny.remembered(opt, s.opt_state)]
    for s in (state, once, always)
  ]
  for got, first, full in zip(*leaves, strict=True):
    np.testing.assert_array_equal(got[~held], first[~held])
    np.testing.assert_allclose(got[held], full[held], rtol=1e-6)


def test_unknown_optimizer():
  with pytest.raises(ValueError, match=r"server\.optimizer='sgd' must be one"):
    server_optimizer.build(config.Server(optimizer='sgd'))

"""The server optimizers by name; they step along the mean delta."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_tune import config
from fedjax_tune.typing import Tree

Optimizer = Callable[[config.Server], optax.GradientTransformation]

# Reddi et al., arXiv 2003.00295. Each is fed the negative mean delta, as if that
# were a gradient; fedavg with lr 1 is then the plain mean. The adaptive ones have
# no bias correction, as in the paper's algorithm 2; fedavgm is momentum on the
# server (arXiv 1909.06335). FedAdagrad has beta1 = 0 in the paper's experiments
# (section 5), since Adagrad knows no momentum.
OPTIMIZERS: dict[str, Optimizer] = {
  'fedavg': lambda cfg: optax.sgd(cfg.lr),
  'fedavgm': lambda cfg: optax.sgd(cfg.lr, momentum=cfg.momentum),
  'fedadam': lambda cfg: _adaptive(
    cfg, cfg.momentum, lambda v, d2: _mix(cfg.beta2, v, d2)
  ),
  'fedyogi': lambda cfg: _adaptive(
    cfg,
    cfg.momentum,
    lambda v, d2: v - (1 - cfg.beta2) * d2 * jnp.sign(v - d2),
  ),
  'fedadagrad': lambda cfg: _adaptive(cfg, 0.0, jnp.add),
}


def build(cfg: config.Server) -> optax.GradientTransformation:
  """Builds the server optimizer, one of `OPTIMIZERS`.

  Raises:
    ValueError: The name is unknown.
  """
  if cfg.optimizer not in OPTIMIZERS:
    raise ValueError(
      f'server.optimizer={cfg.optimizer!r} must be one of'
      f' {", ".join(OPTIMIZERS)}.'
    )
  return OPTIMIZERS[cfg.optimizer](cfg)


class AdaptiveState(NamedTuple):
  """First and second moment of the adaptive server optimizers."""

  mu: Tree
  nu: Tree


def _mix(decay: float, old: jax.Array, new: jax.Array) -> jax.Array:
  return decay * old + (1 - decay) * new


def _adaptive(
  cfg: config.Server,
  beta1: float,
  second: Callable[[jax.Array, jax.Array], jax.Array],
) -> optax.GradientTransformation:
  """Algorithm 2 of arXiv 2003.00295: x += lr * m / (sqrt(v) + tau)."""

  def init(params):
    zeros = jax.tree.map(jnp.zeros_like, params)
    start = jax.tree.map(lambda p: jnp.full_like(p, cfg.eps**2), params)
    return AdaptiveState(zeros, start)

  def update(grads, state, params=None):
    del params
    mu = jax.tree.map(lambda m, g: _mix(beta1, m, g), state.mu, grads)
    nu = jax.tree.map(lambda v, g: second(v, g**2), state.nu, grads)
    move = lambda m, v: -cfg.lr * m / (jnp.sqrt(v) + cfg.eps)
    return jax.tree.map(move, mu, nu), AdaptiveState(mu, nu)

  return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]

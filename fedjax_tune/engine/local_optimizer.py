"""The clients' optimizer, and its learning rate step by step."""

from collections.abc import Callable
import math

import jax
import jax.numpy as jnp
from jax.tree_util import KeyPath
import optax

from fedjax_tune import config
from fedjax_tune.engine.client import RateSchedule
from fedjax_tune.typing import Tree

# (options, which parameters decay, or None for all) -> one of learning rate 1.
Optimizer = Callable[
  [config.Local, Callable[[Tree], Tree] | None], optax.GradientTransformation
]

# Weight decay enters the gradient, as in torch; adamw decouples it.
OPTIMIZERS: dict[str, Optimizer] = {
  'sgd': lambda cfg, mask: optax.chain(
    *_decay(cfg, mask), optax.sgd(1.0, momentum=cfg.momentum or None)
  ),
  'adam': lambda cfg, mask: optax.chain(*_decay(cfg, mask), optax.adam(1.0)),
  'adamw': lambda cfg, mask: optax.adamw(
    1.0, weight_decay=cfg.weight_decay, mask=mask
  ),
}


def build(cfg: config.Local) -> optax.GradientTransformation:
  """Builds the clients' optimizer for learning rate 1; clipping comes first."""
  mask = decays if cfg.decay_mask == 'no_bias_norm' else None
  steps = OPTIMIZERS[cfg.optimizer](cfg, mask)
  if not cfg.clip_norm:
    return steps
  return optax.chain(optax.stateless(_clip(cfg.clip_norm)), steps)


def _decay(
  cfg: config.Local, mask: Callable[[Tree], Tree] | None
) -> list[optax.GradientTransformation]:
  decay = optax.add_decayed_weights(cfg.weight_decay, mask)
  return [decay] if cfg.weight_decay else []


def _clip(limit: float) -> Callable[[Tree, Tree], Tree]:
  """Scales gradients to a global norm of at most `limit`.

  They become NaN if their norm is not finite. Otherwise clipping would make
  them 0, and a client that diverges would seem to stand still.
  """

  def clip(grads: Tree, params: Tree) -> Tree:
    del params
    norm = optax.tree.norm(grads)
    scale = jnp.minimum(1, limit / norm)
    scale = jnp.where(jnp.isfinite(norm), scale, jnp.nan)
    return jax.tree.map(lambda g: g * scale, grads)

  return clip


def decays(params: Tree) -> Tree:
  """Says which parameters decay: all but biases and those of norms.

  This is the rule of Hugging Face's `Trainer`.
  """

  def of(path: KeyPath, _: jax.Array) -> bool:
    *modules, name = (p.key for p in path)
    # The innermost alone: the outermost may be a tier of any name.
    in_norm = bool(modules) and modules[-1].startswith('norm')
    return not (in_norm or name.endswith('bias'))

  return jax.tree.map_with_path(of, params)


def learning_rate(cfg: config.Local, rnd: int, rounds: int) -> float:
  """Returns the clients' learning rate in a round, at its first step.

  Args:
    cfg: The options.
    rnd: The round.
    rounds: Number of rounds of the run.
  """
  if cfg.over_rounds == 'cosine':
    gone = max(0, rnd - cfg.warmup) / (rounds - cfg.warmup)
    rate = cfg.lr * (1 + math.cos(math.pi * gone)) / 2
  else:
    rate = cfg.lr * cfg.decay ** (rnd // cfg.decay_every)
  if rnd < cfg.warmup:
    rate *= (rnd + 1) / cfg.warmup
  return rate


def _by_epoch(cfg: config.Local) -> RateSchedule:
  def factor(step: jax.Array, steps: jax.Array) -> jax.Array:
    epoch = step * cfg.epochs // steps
    return jnp.float32(cfg.gamma) ** epoch

  return factor


# How the learning rate falls within a client's round: factor(step, steps), which
# is 1 at step 0, or None for a constant rate. 'linear' and 'cosine' would reach 0
# at step `steps`, one after the last (`Trainer`'s schedules without warm-up).
SCHEDULES: dict[str, Callable[[config.Local], RateSchedule | None]] = {
  'constant': lambda _: None,
  'linear': lambda _: lambda step, steps: 1 - step / steps,
  'cosine': lambda _: (
    lambda step, steps: (1 + jnp.cos(jnp.pi * step / steps)) / 2
  ),
  'exponential': _by_epoch,
}


def schedule(cfg: config.Local) -> RateSchedule | None:
  """Returns one of `SCHEDULES`; a client counts its own steps."""
  return SCHEDULES[cfg.schedule](cfg)

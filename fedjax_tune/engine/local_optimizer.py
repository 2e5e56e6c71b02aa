"""How a client steps: its optimizer, its learning rate, step by step."""

import jax
import jax.numpy as jnp
from jax.tree_util import KeyPath
import optax

from fedjax_tune import config
from fedjax_tune.engine.client import RateSchedule
from fedjax_tune.typing import Tree


def build(cfg: config.Local) -> optax.GradientTransformation:
  """Builds the clients' optimizer for learning rate 1.

  Clipping comes first and weight decay enters the gradient of SGD, as in
  torch; adamw decouples it.
  """
  clip = [
    optax.stateless(_refuse_overflow),
    optax.clip_by_global_norm(cfg.clip_norm),
  ]
  parts = clip if cfg.clip_norm else []
  mask = decays if cfg.decay_mask == 'no_bias_norm' else None
  if cfg.optimizer == 'adamw':
    parts.append(optax.adamw(1.0, weight_decay=cfg.weight_decay, mask=mask))
  else:
    decay = optax.add_decayed_weights(cfg.weight_decay, mask)
    parts += [decay] if cfg.weight_decay else []
    sgd = optax.sgd(1.0, momentum=cfg.momentum or None)
    parts.append(optax.adam(1.0) if cfg.optimizer == 'adam' else sgd)
  return optax.chain(*parts)


def _refuse_overflow(grads: Tree, params: Tree) -> Tree:
  """Makes gradients NaN if their norm is not finite.

  Clipping would make them 0: a client that diverges would seem to stand still.
  """
  del params
  is_finite = jnp.isfinite(optax.tree.norm(grads))
  return jax.tree.map(lambda g: jnp.where(is_finite, g, jnp.nan), grads)


def decays(params: Tree) -> Tree:
  """Says which parameters decay: all but biases and those of norms.

  The rule of Hugging Face's `Trainer`.
  """

  def of(path: KeyPath, _: jax.Array) -> bool:
    *modules, name = (p.key for p in path)
    return name != 'bias' and not any(m.startswith('norm') for m in modules)

  return jax.tree.map_with_path(of, params)


def learning_rate(cfg: config.Local, rnd: int) -> float:
  """Returns the clients' learning rate in a round, at its first step."""
  return cfg.lr * cfg.decay ** (rnd // cfg.decay_every)


def schedule(cfg: config.Local) -> RateSchedule | None:
  """Returns how the learning rate falls within a client's round.

  A client counts its own steps, however many others take.

  Returns:
    factor(step, steps), which is 1 at step 0, or None for a constant rate.
    'linear' and 'cosine' would reach 0 at step `steps`, one after the last
    (`Trainer`'s schedules without warm-up).
  """
  if cfg.schedule == 'constant':
    return None
  if cfg.schedule == 'linear':
    return lambda step, steps: 1 - step / steps
  if cfg.schedule == 'cosine':
    return lambda step, steps: (1 + jnp.cos(jnp.pi * step / steps)) / 2

  def by_epoch(step: jax.Array, steps: jax.Array) -> jax.Array:
    epoch = step * cfg.epochs // steps
    return jnp.float32(cfg.gamma) ** epoch

  return by_epoch

"""Plain JAX, the yardstick: one jitted round, `lax.map` over small chunks."""

import jax
import jax.numpy as jnp
import numpy as np

from .. import fixed_workload as fixed
from . import harness, jax_model


def start(options: harness.Options) -> harness.RunRound:
  """Loads the model; returns what runs a round."""
  work = options.work
  shared, frozen = jax_model.split(options.init)

  def train_client(shared, frozen, images, labels):
    def step(carry, batch):
      local, momentum = carry
      value, grad = jax.value_and_grad(jax_model.loss)(
        local, frozen, *batch, work
      )
      add = lambda m, g: fixed.MOMENTUM * m + g
      momentum = jax.tree.map(add, momentum, grad)
      local = jax.tree.map(lambda w, m: w - fixed.LR * m, local, momentum)
      return (local, momentum), value

    start = (shared, jax.tree.map(jnp.zeros_like, shared))
    (local, _), losses = jax.lax.scan(step, start, (images, labels))
    return jax.tree.map(jnp.subtract, local, shared), jnp.mean(losses)

  @jax.jit
  def run(shared, frozen, images, labels):
    client = lambda data: train_client(shared, frozen, *data)
    deltas, losses = jax.lax.map(
      client, (images, labels), batch_size=work.chunk
    )
    mean = lambda x, delta: x + jnp.mean(delta, axis=0)
    return jax.tree.map(mean, shared, deltas), jnp.mean(losses)

  def run_round(images: np.ndarray, labels: np.ndarray) -> float:
    nonlocal shared
    data = jnp.asarray(images), jnp.asarray(labels)
    shared, value = run(shared, frozen, *data)
    jax.block_until_ready(shared)
    return float(value)

  return run_round


if __name__ == '__main__':
  harness.main(start, ('jax',))

"""FedJAX: one jitted call for each local step of each client, its default."""

import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import fixed_workload as fixed
from . import harness, jax_model


def start(options: harness.Options) -> harness.RunRound:
  """Loads the model; returns what runs a round."""
  # Release 0.0.17 calls it, and JAX has dropped it since.
  if not hasattr(jax, 'tree_map'):
    jax.tree_map = jax.tree.map  # pyright: ignore[reportAttributeAccessIssue]
  fedjax = importlib.import_module('fedjax')
  shared, frozen = jax_model.split(options.init)
  optimizer = fedjax.optimizers.sgd(fixed.LR, momentum=fixed.MOMENTUM)
  grad = jax.value_and_grad(jax_model.loss)

  def client_init(shared: Any, _: Any) -> Any:
    return shared[0], optimizer.init(shared[0]), shared[1]

  def client_step(state: Any, batch: Any) -> Any:
    local, opt_state, frozen = state
    value, found = grad(local, frozen, batch['x'], batch['y'], options.work)
    opt_state, local = optimizer.apply(found, opt_state, local)
    return (local, opt_state, frozen), value

  def client_final(shared: Any, state: Any) -> Any:
    return jax.tree.map(jnp.subtract, state[0], shared[0])

  train = fedjax.for_each_client(
    client_init, client_step, client_final, with_step_result=True
  )

  def run_round(images: np.ndarray, labels: np.ndarray) -> float:
    nonlocal shared
    clients = []
    for k in range(len(labels)):
      pairs = zip(images[k], labels[k], strict=True)
      clients.append((k, [{'x': x, 'y': y} for x, y in pairs], None))
    deltas, losses = [], []
    for _, delta, steps in train((shared, frozen), clients):
      deltas.append((delta, 1.0))
      losses += steps
    mean = fedjax.tree_util.tree_mean(deltas)
    shared = jax.tree.map(jnp.add, shared, mean)
    jax.block_until_ready(shared)
    return float(np.mean(losses))

  return run_round


if __name__ == '__main__':
  harness.main(start, ('fedjax', 'jax'))

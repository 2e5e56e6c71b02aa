"""SCAFFOLD: control variates against the drift of clients.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh, "SCAFFOLD: Stochastic Controlled
Averaging for Federated Learning", ICML 2020, arXiv 1910.06378, algorithm 1 with
option II. Its authors published no code.
"""

from collections.abc import Mapping
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_tune import config
from fedjax_tune.engine.algorithm import (
  Aggregator,
  Algorithm,
  Client,
  Context,
  GroupSums,
  Sent,
  Update,
  both_ways,
  covered_mean,
  everyone,
)
from fedjax_tune.methods import refusals
from fedjax_tune.methods.depth import uniform
from fedjax_tune.methods.facts import Facts
from fedjax_tune.models.foundation import num_bytes
from fedjax_tune.selection import GroupSum
from fedjax_tune.typing import Axes, Tree


def correcting(client: Client, theta: Tree) -> Client:
  """Returns the client that corrects its gradients by control variates.

  It steps along g - c_k + c, where c_k is its own variate and c the server's,
  and then remembers (option II)

    c_k <- c_k - c + (start - end) / (K lr),

  where K is the number of its steps. It sends its change and that of its
  variate.

  Args:
    client: The client without the correction.
    theta: What the client trains; only shapes are read.
  """

  def transform(context: Context) -> optax.GradientTransformation:
    own, everyones = context.state, context.memory

    def correct(grads: Tree, params: Tree) -> Tree:
      del params
      return jax.tree.map(lambda g, ck, c: g - ck + c, grads, own, everyones)

    return optax.stateless(correct)

  def finish(
    start: Tree, delta: Tree, steps: jax.Array, context: Context
  ) -> Sent:
    del start
    walked = jnp.maximum(steps, 1) * context.lr
    renew = lambda ck, c, d: ck - c - d / walked
    own = jax.tree.map(renew, context.state, context.memory, delta)
    change = jax.tree.map(jnp.subtract, own, context.state)
    return Sent({'theta': delta, 'variate': change}, jnp.ones(()), own)

  zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), theta)
  return dataclasses.replace(
    client, transform=transform, finish=finish, state=lambda _: zeros
  )


def aggregator(clients: int) -> Aggregator:
  """Averages what clients changed, and moves the server's variate.

    c <- c + 1/N sum_k (change of c_k), where N is the number of all clients.

  Args:
    clients: Number of clients, in the cohort or not.
  """

  def spec(theta: Tree, axes: Axes) -> tuple[Tree, Axes]:
    return {'theta': theta, 'variate': theta}, {'theta': axes, 'variate': axes}

  def merge(theta: Tree, sums: GroupSums, memory: Tree) -> tuple[Update, Tree]:
    del theta
    num, den = everyone(sums)
    move = lambda c, change: c + change / clients
    memory = jax.tree.map(move, memory, num['variate'])
    return covered_mean(GroupSum(num['theta'], den['theta'])), memory

  init = lambda theta: jax.tree.map(jnp.zeros_like, theta)
  return Aggregator(merge, init, spec)


def build(facts: Facts) -> Algorithm:
  """Builds SCAFFOLD: FedAvg of full models with control variates.

  Every client holds the whole model, as in the paper. The paper's server step
  size is `server.lr`. Variates start at zero.
  """
  fedavg = uniform.build_all_large(facts)
  return dataclasses.replace(
    fedavg,
    client=correcting(fedavg.client, fedavg.model.theta),
    aggregator=aggregator(len(facts.budgets)),
    # Theta and a variate.
    traffic=both_ways(lambda held: 2 * num_bytes(held)),
  )


def check(
  experiment: config.Experiment,
  sizes: Mapping[str, int],
  budgets: tuple[int, ...],
) -> None:
  """Checks the options.

  Raises:
    ValueError: Clients do not step by plain SGD at one rate, or the server
      weights them. Then a client's mean gradient would not follow from its
      change.
  """
  del sizes, budgets
  why = 'it recovers a mean gradient from how far a client has moved'
  by = refusals.method(experiment)
  refusals.momentum(experiment, by, why)
  refusals.falling_rate(experiment, by, why)
  refusals.weighted(experiment, by)

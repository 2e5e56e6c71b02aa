"""FedDyn: a regularizer that follows each client's own gradient.

Acar, Zhao, Matas Navarro, Mattina, Whatmough, Saligrama, "Federated Learning
Based on Dynamic Regularization", ICLR 2021, arXiv 2111.04263, algorithm 1; the
authors' code is github.com/alpemreacar/FedDyn (utils_methods.py
`train_FedDyn`). This departs from it in one point: they divide alpha by each
client's share of the examples.
"""

from collections.abc import Mapping
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_tune import config, selection
from fedjax_tune.engine.algorithm import (
  Aggregator,
  Algorithm,
  Client,
  Context,
  GroupSums,
  Sent,
  Update,
  covered_mean,
  everyone,
)
from fedjax_tune.methods import proximal, refusals
from fedjax_tune.methods.depth import uniform
from fedjax_tune.methods.facts import Facts
from fedjax_tune.models.foundation import Models
from fedjax_tune.selection import GroupSum
from fedjax_tune.typing import Tree


def regularized(client: Client, model: Models, alpha: float) -> Client:
  """Returns the client that also follows its own gradient.

  It minimises

    loss(w) - <g_k, w> + alpha/2 ||w - start||^2,

  and then remembers g_k <- g_k - alpha (end - start), which at a minimum is the
  client's own gradient there. The memory has the server's coordinates, and is 0
  where the client holds nothing.

  Args:
    client: The client without the regularizer.
    model: The model that the client trains a part of; only shapes and axes are
      read.
    alpha: Coefficient of the regularizer.
  """

  def transform(context: Context) -> optax.GradientTransformation:
    own = selection.select_within(context.state, model.axes, context.held)

    def tilt(grads: Tree, params: Tree) -> Tree:
      del params
      return jax.tree.map(jnp.subtract, grads, own)

    return optax.chain(optax.stateless(tilt), proximal.pull(alpha))

  def finish(
    start: Tree, delta: Tree, steps: jax.Array, context: Context
  ) -> Sent:
    del start, steps
    renew = lambda g, d: g - alpha * d
    moved = selection.put_back(context.state, model.axes, context.held, delta)
    own = jax.tree.map(renew, context.state, moved)
    return Sent(delta, jnp.ones(()), own)

  zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), model.theta)
  return dataclasses.replace(
    client, transform=transform, finish=finish, state=lambda _: zeros
  )


def aggregator(alpha: float, clients: int) -> Aggregator:
  """Averages the clients' models, and corrects the mean by what is remembered.

    h <- h - alpha / N sum_k (end_k - start),
    W <- mean_k end_k - h / alpha,

  each coordinate over the clients that hold it; it does not change where nobody
  does.

  Args:
    alpha: Coefficient of the regularizer.
    clients: Number of clients N, in the cohort or not.
  """

  def merge(theta: Tree, sums: GroupSums, memory: Tree) -> tuple[Update, Tree]:
    del theta
    total: GroupSum = everyone(sums)
    move = lambda h, change: h - alpha * change / clients
    memory = jax.tree.map(move, memory, total.num)
    update = covered_mean(total)
    correct = lambda mean, h: mean - h / alpha
    delta = jax.tree.map(correct, update.delta, memory)
    return update._replace(delta=delta), memory

  init = lambda theta: jax.tree.map(jnp.zeros_like, theta)
  return Aggregator(merge, init)


def build(facts: Facts) -> Algorithm:
  """Builds FedDyn: FedAvg of full models with a dynamic regularizer.

  Every client holds the whole model, as in the paper. What clients and server
  remember starts at zero.
  """
  fedavg = uniform.build_all_large(facts)
  alpha = facts.experiment.feddyn.alpha
  return dataclasses.replace(
    fedavg,
    client=regularized(fedavg.client, fedavg.model, alpha),
    aggregator=aggregator(alpha, len(facts.budgets)),
  )


def check(
  experiment: config.Experiment,
  sizes: Mapping[str, int],
  budgets: tuple[int, ...],
) -> None:
  """Checks the options.

  Raises:
    ValueError: Clients do not step by plain SGD, or the server weights them or
      changes their mean. With a momentum of 0.9 training diverges.
  """
  del sizes, budgets
  refuse(experiment, refusals.method(experiment))


def refuse(experiment: config.Experiment, by: str) -> None:
  """Refuses the same as `check`, for any method that trains with FedDyn.

  Args:
    experiment: The configuration.
    by: The field that asks for FedDyn, with its value.

  Raises:
    ValueError: See `check`.
  """
  refusals.momentum(
    experiment,
    by,
    'with momentum a client overshoots the minimum that it tracks',
  )
  refusals.weighted(experiment, by)
  refusals.server_steps(experiment, by, 'the correction is part of the mean')

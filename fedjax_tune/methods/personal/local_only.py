"""Every client trains alone: the baseline of all other methods."""

from collections.abc import Mapping
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_tune import selection
from fedjax_tune.engine.algorithm import (
  Algorithm,
  Alone,
  Client,
  Context,
  Sent,
  Traffic,
)
from fedjax_tune.methods import compose
from fedjax_tune.methods.depth import uniform
from fedjax_tune.methods.facts import Facts
from fedjax_tune.models.foundation import Models
from fedjax_tune.typing import Axes, Tree

# Of what clients send: nothing but that they took part.
# Of NumPy: hosts must join before JAX computes anything.
_PRESENT = {'present': np.zeros((), np.float32)}


def alone(client: Client, model: Models) -> Client:
  """Returns the client that continues from its own model, and keeps it.

  The memory has the server's coordinates; where the client holds nothing, it
  has the initial values.

  Args:
    client: The client that would start from the server's model.
    model: The model that the client trains a part of.
  """

  def init(held: Tree, context: Context, key: jax.Array) -> Tree:
    del held, key
    return selection.select_within(context.state, model.axes, context.held)

  def finish(
    start: Tree, delta: Tree, steps: jax.Array, context: Context
  ) -> Sent:
    del start, steps
    moved = selection.put_back(context.state, model.axes, context.held, delta)
    own = jax.tree.map(jnp.add, context.state, moved)
    return Sent(_PRESENT, jnp.ones(()), own)

  first = jax.tree.map(np.asarray, model.theta)
  return dataclasses.replace(
    client, init=init, finish=finish, state=lambda _: first
  )


def _send_nothing(theta: Tree, axes: Axes) -> tuple[Tree, Axes]:
  del theta, axes
  return _PRESENT, {'present': ()}


def _own(name: str, theta: Tree, own: Tree) -> Tree:
  del name, theta
  return own


def build(facts: Facts) -> Algorithm:
  """Builds training alone: clients never average.

  Each client holds the first blocks, as many as its budget, because its device
  can train no more. Its own model is evaluated on test data like the client's
  own (`engine/personal.py`); a client that never took part still has the
  initial model. The host keeps a copy of all trained parameters for each client
  that took part.
  """

  def ending(theta: Tree, clients: Mapping[int, Tree]) -> dict[str, Alone]:
    del theta
    return {
      f'client{k}': Alone(own, {'layer': facts.budgets[k]})
      for k, own in sorted(clients.items())
    }

  fedavg = uniform.fedavg(
    facts.foundation(), facts.task, facts.budgets, facts.depth
  )
  return dataclasses.replace(
    fedavg,
    client=alone(fedavg.client, fedavg.model),
    aggregator=dataclasses.replace(compose.PRIVATE, spec=_send_nothing),
    evaluation=dataclasses.replace(fedavg.evaluation, personal=_own),
    traffic=lambda *_: Traffic(0, 0),
    ending=ending,
  )

"""FedPer: every client keeps its head for itself.

Arivazhagan, Aggarwal, Singh, Choudhary, "Federated Learning with
Personalization Layers", arXiv 1912.00818, algorithms 1 and 2. Its authors
published no code.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_tune.engine.algorithm import (
  Aggregator,
  Algorithm,
  Alone,
  Client,
  Context,
  Sent,
  both_ways,
)
from fedjax_tune.methods import compose
from fedjax_tune.methods.depth import classifiers, uniform
from fedjax_tune.methods.facts import Facts
from fedjax_tune.models.foundation import num_bytes
from fedjax_tune.typing import Tree


def _shared(tree: Tree) -> Tree:
  """Returns everything but the head."""
  return {name: part for name, part in tree.items() if name != 'head'}


def private(name: str, theta: Tree, head: Tree) -> Tree:
  """Returns a client's own parameters: all, with its own head."""
  del name
  return {**theta, 'head': head}


def keeping(client: Client, head: Tree) -> Client:
  """Returns the client that trains and remembers a head of its own.

  Args:
    client: The client without its own head.
    head: The head with which all clients start.
  """

  def init(held: Tree, context: Context, key: jax.Array) -> Tree:
    del key
    return {**held, 'head': context.state}

  def finish(
    start: Tree, delta: Tree, steps: jax.Array, context: Context
  ) -> Sent:
    del steps, context
    own = jax.tree.map(jnp.add, start['head'], delta['head'])
    return Sent(_shared(delta), jnp.ones(()), own)

  first = jax.tree.map(np.asarray, head)
  return dataclasses.replace(
    client, init=init, finish=finish, state=lambda _: first
  )


def build(facts: Facts) -> Algorithm:
  """Builds FedPer: FedAvg of full models, in which clients keep their heads.

  The paper's personalization layers may be more than the classifier. Here they
  are the head, which is the paper's smallest case and that of its text
  experiments. Each client's own model is evaluated on test data like the
  client's own (`engine/personal.py`); clients that never took part still have
  the first head.

  Raises:
    ValueError: The task has no classes.
  """
  classifiers.require_classes('fedper', facts.task)
  fedavg = uniform.build_all_large(facts)
  return dataclasses.replace(
    fedavg,
    client=keeping(fedavg.client, fedavg.model.theta['head']),
    aggregator=compose.partition({'head': compose.PRIVATE}, Aggregator()),
    evaluation=dataclasses.replace(fedavg.evaluation, personal=private),
    traffic=both_ways(lambda held: num_bytes(_shared(held))),
    ending=lambda theta, clients: {
      f'client{k}': Alone({**theta, 'head': head}, {'layer': facts.depth})
      for k, head in sorted(clients.items())
    },
  )

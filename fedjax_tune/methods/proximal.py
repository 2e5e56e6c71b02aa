"""FedProx: clients are pulled back to where they started.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, "Federated Optimization in
Heterogeneous Networks", MLSys 2020, arXiv 1812.06127, equation 2. It changes
only a client's gradients, so it works with any method.
"""

import dataclasses

import jax
import optax

from fedjax_tune.engine.algorithm import Algorithm, Context


def pull(mu: float) -> optax.GradientTransformation:
  """Returns the gradient of mu/2 ||w - start||^2 as a transformation.

  The state is `start`, the initial parameters.
  """

  def update(grads, start, params=None):
    back = lambda g, w, w0: g + mu * (w - w0)
    return jax.tree.map(back, grads, params, start), start

  return optax.GradientTransformation(lambda params: params, update)  # pyright: ignore[reportArgumentType]


def add(algorithm: Algorithm, mu: float) -> Algorithm:
  """Returns a method whose clients are also pulled back to their start.

  Args:
    algorithm: The method.
    mu: FedProx coefficient.
  """
  inner = algorithm.client.transform

  def transform(context: Context) -> optax.GradientTransformation:
    parts = [] if inner is None else [inner(context)]
    return optax.chain(pull(mu), *parts)

  client = dataclasses.replace(algorithm.client, transform=transform)
  return dataclasses.replace(algorithm, client=client)

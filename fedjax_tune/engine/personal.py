"""How good each client's own model is on the client's own data."""

from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from fedjax_tune import endings
from fedjax_tune.data import metrics
from fedjax_tune.data.corpus import Corpus
from fedjax_tune.engine import divided, hosts, store
from fedjax_tune.engine.algorithm import Algorithm
from fedjax_tune.engine.client import Batch
from fedjax_tune.engine.evaluate import batches, build_predict
from fedjax_tune.engine.server import ServerState
from fedjax_tune.typing import Tree

# (base, state) -> metrics by name, as rows of a run have them
Evaluate = Callable[[Tree, ServerState], dict[str, float]]

_BATCH = 128


def own_examples(
  labels: np.ndarray,
  indices: Sequence[np.ndarray],
  domains: np.ndarray,
  test: Corpus,
) -> list[np.ndarray]:
  """Returns which test examples are like each client's own.

  Those of its domain, if it has one, and of the classes that it trains on.

  Args:
    labels: Of the training data, int [N].
    indices: For each client the positions of its examples.
    domains: Domain of each client; -1 if it may hold several.
    test: The test data.
  """
  found = []
  for held, domain in zip(indices, domains, strict=True):
    own = np.isin(test.labels, np.unique(labels[held]))
    if domain >= 0:
      own &= test.domains == domain
    found.append(np.flatnonzero(own))
  return found


def build(
  algorithm: Algorithm,
  tests: Mapping[str, Corpus],
  own: Sequence[np.ndarray],
  lengths: Sequence[int] = (),
) -> Evaluate:
  """Builds the evaluation of every client's own model.

  Args:
    algorithm: The method, of which clients have models of their own.
    tests: The test data, with classes, as each model reads them.
    own: For each client the positions of the test examples that are like its
      own; a client without any does not count.
    lengths: Tokens to which texts are padded.

  Returns:
    The evaluation: `eval/accuracy` is the mean over clients of the task's
    primary metric, `eval/accuracy/DOMAIN` that over their examples of a domain,
    `eval/worst_client/accuracy` the least of a client, and `eval/NAME/accuracy`
    that over the clients of a model, if there are several. It raises `Diverged`
    where outputs or metrics are not finite.
  """
  task = algorithm.evaluation.task
  predict = jax.jit(build_own_predict(algorithm), static_argnums=0)
  first, test = next(iter(tests.items()))
  model_of = lambda client: algorithm.tier(client) or first

  def of_client(name, base, theta, remembered, rows):
    order, parts = [], []
    for index, batch in batches(tests[name], rows, lengths, _BATCH):
      arrays = divided.beside(base, batch, split=True)
      found = jax.device_get(predict(name, base, theta, remembered, arrays))
      order.append(index)
      real = np.arange(len(index))
      parts.append(jax.tree.map(lambda x, real=real: x[real], found))
    joined = jax.tree.map(lambda *xs: np.concatenate(xs), *parts)
    return np.concatenate(order), joined

  def judge(rows, predicted):
    return metrics.evaluate(
      task.kind, task.metrics, predicted, test.labels[rows]
    )

  def of_own(base, state, client, rows):
    """Returns a client's metrics, and the primary one by domain."""
    states = store.gather(
      state.clients, np.array([client]), algorithm.client.state
    )
    remembered = jax.tree.map(lambda x: x[0], states)
    theta = divided.beside(base, state.theta)
    name = model_of(client)
    order, predicted = of_client(name, base, theta, remembered, rows)
    by_domain = {}
    for domain, domain_name in enumerate(test.domain_names):
      at = test.domains[order] == domain
      if at.any():
        part = {k: v[at] for k, v in predicted.items()}
        by_domain[domain_name] = judge(order[at], part)[task.primary]
    return judge(order, predicted), by_domain

  def evaluate(base, state):
    # Each host has every so manieth client.
    mine = range(hosts.index(), len(own), hosts.count())
    given = hosts.exchange(
      {k: of_own(base, state, k, own[k]) for k in mine if own[k].size}
    )
    found = {k: v for part in given for k, v in part.items()}
    by_client = {metric: [] for metric in task.metrics}
    by_domain = {domain: [] for domain in test.domain_names}
    by_model = {name: [] for name in tests}
    for client in sorted(found):
      metrics_of, domains_of = found[client]
      by_model[model_of(client)].append(metrics_of[task.primary])
      for values, into in ((metrics_of, by_client), (domains_of, by_domain)):
        for name, value in values.items():
          into[name].append(value)
    models = by_model if len(tests) > 1 else {}
    return _summarize(task.primary, by_client, by_domain, models)

  return evaluate


def build_own_predict(
  algorithm: Algorithm,
) -> Callable[[str, Tree, Tree, Tree, Batch], dict[str, jax.Array]]:
  """Builds the program of a batch.

  Returns:
    predict(name of the model, base, theta, remembered, batch).
  """
  evaluation = algorithm.evaluation
  assert evaluation.personal is not None
  make = evaluation.personal
  predict = build_predict(algorithm.model, evaluation)
  return lambda name, base, theta, remembered, batch: predict(
    name, base, make(name, theta, remembered), batch
  )


def _summarize(
  primary: str,
  by_client: dict[str, list[float]],
  by_domain: dict[str, list[float]],
  by_model: dict[str, list[float]],
) -> dict[str, float]:
  if not all(np.isfinite(values).all() for values in by_client.values()):
    raise endings.Diverged(
      "outputs or metrics of a client's own model must be finite."
    )
  mean = lambda values: float(np.mean(values))
  return (
    {'eval/accuracy': mean(by_client[primary])}
    | {f'metric/{m}': mean(v) for m, v in by_client.items() if m != primary}
    | {f'eval/accuracy/{d}': mean(v) for d, v in by_domain.items() if v}
    | {f'eval/{n}/accuracy': mean(v) for n, v in by_model.items() if v}
    | {'eval/worst_client/accuracy': float(np.min(by_client[primary]))}
  )

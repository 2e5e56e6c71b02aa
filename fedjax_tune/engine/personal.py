"""How good each client's own model is on the client's own data."""

from collections.abc import Callable, Sequence
import dataclasses

import jax
import numpy as np

from fedjax_tune import endings, selection
from fedjax_tune.data.corpus import Corpus
from fedjax_tune.engine import divided, features, hosts, store
from fedjax_tune.engine.algorithm import Algorithm, predict_outputs
from fedjax_tune.engine.client import Batch
from fedjax_tune.engine.evaluate import batches
from fedjax_tune.engine.server import ServerState
from fedjax_tune.models.probe import Probe
from fedjax_tune.selection import Selection
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

  Those of its domain, if it has one, and of the classes that it trains on, if
  there are any.

  Args:
    labels: Of the training data, int [N].
    indices: For each client the positions of its examples.
    domains: Domain of each client; -1 if it may hold several.
    test: The test data.
  """
  found = []
  for held, domain in zip(indices, domains, strict=True):
    own = np.ones(len(test), bool)
    if test.class_names:
      own = np.isin(test.labels, np.unique(labels[held]))
    if domain >= 0:
      own &= test.domains == domain
    found.append(np.flatnonzero(own))
  return found


def build(
  algorithm: Algorithm,
  test: Corpus,
  own: Sequence[np.ndarray],
  lengths: Sequence[int] = (),
) -> Evaluate:
  """Builds the evaluation of every client's own model.

  Args:
    algorithm: The method, of which clients have models of their own.
    test: The test data, with classes.
    own: For each client the positions of the test examples that are like its
      own; a client without any does not count.
    lengths: Tokens to which texts are padded.

  Returns:
    The evaluation: `eval/accuracy` is the mean over clients of the task's
    primary metric, `eval/accuracy/DOMAIN` that over their examples of a domain,
    `eval/worst_client/accuracy` the least of a client. It raises `Diverged`
    where outputs or metrics are not finite.
  """
  task = algorithm.evaluation.task
  of_head = _differ_in_head(algorithm)
  predict = jax.jit(build_own_predict(algorithm, of_head=of_head))
  first = next(iter(algorithm.evaluation.models.values()))
  extract = features.build(algorithm.model, first)

  def read(base, theta):
    """Returns the test data as the clients' models read them."""
    rows = np.unique(np.concatenate(own))
    if not of_head or not rows.size:
      return test
    made = extract(base, theta, test, rows, lengths)
    inputs = np.zeros((len(test), made.shape[1]), made.dtype)
    inputs[rows] = made
    return dataclasses.replace(test, inputs=inputs, lengths=None)

  def of_client(base, theta, remembered, held, seen, rows):
    order, parts = [], []
    for index, batch in batches(seen, rows, lengths, _BATCH):
      arrays = divided.beside(base, batch, split=True)
      found = jax.device_get(predict(base, theta, remembered, held, arrays))
      order.append(index)
      real = np.arange(len(index))
      parts.append(jax.tree.map(lambda x, real=real: x[real], found))
    joined = jax.tree.map(lambda *xs: np.concatenate(xs), *parts)
    return np.concatenate(order), joined

  def of_own(base, state, seen, client, rows):
    """Returns a client's metrics, and the primary one by domain."""
    states = store.gather(
      state.clients, np.array([client]), algorithm.client.state
    )
    remembered = jax.tree.map(lambda x: x[0], states)
    theta = divided.beside(base, state.theta)
    # The same in every round, or it could not be a model of the client's own.
    (held,) = algorithm.rule.draw(0, [client])
    order, predicted = of_client(base, theta, remembered, held, seen, rows)
    by_domain = {}
    for domain, domain_name in enumerate(test.domain_names):
      at = test.domains[order] == domain
      if at.any():
        part = {k: v[at] for k, v in predicted.items()}
        by_domain[domain_name] = test.judge(order[at], part)[task.primary]
    return test.judge(order, predicted), by_domain

  def evaluate(base, state):
    # Of n hosts each judges every n-th client.
    mine = range(hosts.index(), len(own), hosts.count())
    seen = read(base, state.theta)
    given = hosts.exchange(
      {k: of_own(base, state, seen, k, own[k]) for k in mine if own[k].size}
    )
    found = {k: v for part in given for k, v in part.items()}
    by_client = {metric: [] for metric in task.metrics}
    by_domain = {domain: [] for domain in test.domain_names}
    for client in sorted(found):
      for values, into in zip(
        found[client], (by_client, by_domain), strict=True
      ):
        for name, value in values.items():
          into[name].append(value)
    return _summarize(task.primary, by_client, by_domain)

  return evaluate


def build_own_predict(
  algorithm: Algorithm, *, of_head: bool = False
) -> Callable[[Tree, Tree, Tree, Selection, Batch], dict[str, jax.Array]]:
  """Builds the program of a batch.

  Args:
    algorithm: The method.
    of_head: Whether batches have what the head reads, instead of examples.

  Returns:
    predict(base, theta, remembered, held, batch).
  """
  evaluation, model = algorithm.evaluation, algorithm.model
  make, name = evaluation.personal, next(iter(evaluation.models))
  assert make is not None

  def predict(base, theta, remembered, held, batch):
    own = selection.select_within(make(theta, remembered), model.axes, held)
    if not of_head:
      return predict_held(algorithm, name, base, own, held, batch)
    scores = model.assemble(base, own, held).head(batch.inputs)
    return evaluation.task.predict(scores, batch)

  return predict


def _differ_in_head(algorithm: Algorithm) -> bool:
  """Says whether clients' models are one but for the head that classifies.

  All else then runs once for each example, not for each client.
  """
  evaluation, model = algorithm.evaluation, algorithm.model
  start, make = algorithm.client.state, evaluation.personal
  if start is None or make is None or isinstance(model, Probe):
    return False
  own = make(model.theta, start(0))
  same = all(own[name] is model.theta[name] for name in own if name != 'head')
  return same and evaluation.predict is predict_outputs


def predict_held(
  algorithm: Algorithm,
  name: str,
  base: Tree,
  local: Tree,
  held: Selection,
  batch: Batch,
) -> dict[str, jax.Array]:
  """Returns what a client's model says of a batch.

  Args:
    algorithm: The method.
    name: Of the evaluation in whose way outputs are read.
    base: Frozen parameters.
    local: The client's part of theta, as its model sees it.
    held: What the client holds.
    batch: The batch.
  """
  assembled = algorithm.model.assemble(base, local, held)
  evaluation = algorithm.evaluation
  scores = evaluation.predict(name, assembled, held, batch.inputs)
  return evaluation.task.predict(scores, batch)


def _summarize(
  primary: str,
  by_client: dict[str, list[float]],
  by_domain: dict[str, list[float]],
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
    | {'eval/worst_client/accuracy': float(np.min(by_client[primary]))}
  )

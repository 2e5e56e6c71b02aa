"""Evaluates each client's own model on the client's own data."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses

import jax
import numpy as np

from fedjax_tune import endings, selection
from fedjax_tune.data.corpus import Corpus
from fedjax_tune.engine import divided, features, hosts, store
from fedjax_tune.engine.algorithm import Algorithm, predict_outputs
from fedjax_tune.engine.client import Batch
from fedjax_tune.engine.predicted import Predicted
from fedjax_tune.engine.server import ServerState
from fedjax_tune.models.probe import Probe
from fedjax_tune.selection import Selection
from fedjax_tune.typing import Tree

# (base, state) -> metrics by name, as rows of a run have them
Evaluate = Callable[[Tree, ServerState], dict[str, float]]

_BATCH = 128
# What the evaluation calls the client whose own model fares worst.
WORST = 'worst_client'


def own_examples(
  labels: np.ndarray,
  indices: Sequence[np.ndarray],
  domains: np.ndarray,
  test: Corpus,
) -> list[np.ndarray]:
  """Returns which test examples are like each client's own.

  These are the examples of its domain, if it has one, and of the classes that
  it trains on, if there are classes.

  Args:
    labels: Labels of the training data, int [N].
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
  tests: Mapping[str, Corpus],
  own: Sequence[np.ndarray],
  lengths: Sequence[int] = (),
) -> Evaluate:
  """Builds the evaluation of every client's own model.

  Args:
    algorithm: The method, whose clients have models of their own.
    tests: The test data, with classes, as each model reads them.
    own: For each client the positions of the test examples that are like its
      own; a client without any does not count.
    lengths: Tokens to which texts are padded.

  Returns:
    The evaluation: `eval/accuracy` is the mean over clients of the task's
      primary metric, `eval/accuracy/DOMAIN` the mean over their examples of a
      domain, `eval/worst_client/accuracy` the lowest of any client, and
      `eval/NAME/accuracy` the mean over the clients of a model, if there are
      several models. It raises `Diverged` if outputs or metrics are not finite.
  """
  task = algorithm.evaluation.task
  of_head = _differ_in_head(algorithm)
  own_predict = build_own_predict(algorithm, of_head=of_head)
  predict = jax.jit(own_predict, static_argnums=0)
  first, test = next(iter(tests.items()))
  model_of = lambda client: algorithm.tier(client) or first
  extract = features.build(algorithm.model, algorithm.evaluation.models[first])

  def read(base, theta):
    """Returns the test data as the clients' models read them."""
    rows = np.unique(np.concatenate(own))
    if not of_head or not rows.size:
      return tests
    made = extract(base, theta, test, rows, lengths)
    inputs = np.zeros((len(test), made.shape[1]), made.dtype)
    inputs[rows] = made
    return {first: dataclasses.replace(test, inputs=inputs, lengths=None)}

  def of_client(name, base, theta, remembered, held, seen, rows):
    def say(batch):
      arrays = divided.beside(base, batch, split=True)
      return predict(name, base, theta, remembered, held, arrays)

    return Predicted.of(seen[name], rows, lengths, _BATCH, say)

  def of_own(base, state, seen, client, rows):
    """Returns a client's metrics, and the primary one by domain."""
    states = store.gather(
      state.clients, np.array([client]), algorithm.client.state
    )
    remembered = jax.tree.map(lambda x: x[0], states)
    theta = divided.beside(base, state.theta)
    # The same in every round, or it could not be a model of the client's own.
    (held,) = algorithm.rule.draw(0, [client])
    name = model_of(client)
    order, predicted = of_client(
      name, base, theta, remembered, held, seen, rows
    )
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
  algorithm: Algorithm, *, of_head: bool = False
) -> Callable[[str, Tree, Tree, Tree, Selection, Batch], dict[str, jax.Array]]:
  """Builds the program of a batch.

  Args:
    algorithm: The method.
    of_head: Whether batches hold the features that the head reads, not
      examples.

  Returns:
    predict(name of the model, base, theta, remembered, held, batch).
  """
  evaluation, model = algorithm.evaluation, algorithm.model
  assert evaluation.personal is not None
  make = evaluation.personal

  def predict(name, base, theta, remembered, held, batch):
    own = make(name, theta, remembered)
    own = selection.select_within(own, model.axes, held)
    if not of_head:
      return predict_held(algorithm, name, base, own, held, batch)
    scores = model.assemble(base, own, held).head(batch.inputs)
    return evaluation.task.predict(scores, batch)

  return predict


def _differ_in_head(algorithm: Algorithm) -> bool:
  """Whether clients' models differ only in the head that classifies.

  Everything else then runs once for each example, not for each client.
  """
  evaluation, model = algorithm.evaluation, algorithm.model
  start, make = algorithm.client.state, evaluation.personal
  if start is None or make is None or isinstance(model, Probe):
    return False
  if len(evaluation.models) > 1:
    return False
  (name,) = evaluation.models
  own = make(name, model.theta, start(0))
  same = all(own[part] is model.theta[part] for part in own if part != 'head')
  return same and evaluation.predict is predict_outputs


def predict_held(
  algorithm: Algorithm,
  name: str,
  base: Tree,
  local: Tree,
  held: Selection,
  batch: Batch,
) -> dict[str, jax.Array]:
  """Returns what a client's model predicts for a batch.

  Args:
    algorithm: The method.
    name: Name of the evaluation that says how to read outputs.
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
    | {f'eval/{WORST}/accuracy': float(np.min(by_client[primary]))}
  )

"""Evaluates each client's own model on the client's own data."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools

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
  return _OwnModels(algorithm, tests, own, lengths).evaluate


@dataclasses.dataclass(frozen=True, eq=False)
class _OwnModels:
  """Evaluates every client's own model; attributes are `build`'s arguments."""

  algorithm: Algorithm
  tests: Mapping[str, Corpus]
  own: Sequence[np.ndarray]
  lengths: Sequence[int]

  def evaluate(self, base: Tree, state: ServerState) -> dict[str, float]:
    """Evaluates a state, see `build`."""
    task, tests = self.algorithm.evaluation.task, self.tests
    # Of n hosts each judges every n-th client.
    mine = range(hosts.index(), len(self.own), hosts.count())
    seen = self._read(base, state.theta)
    given = hosts.exchange(
      {k: self._judge(base, state, seen, k) for k in mine if self.own[k].size}
    )
    found = {k: v for part in given for k, v in part.items()}
    by_client = {metric: [] for metric in task.metrics}
    by_domain = {domain: [] for domain in self._test.domain_names}
    by_model = {name: [] for name in tests}
    for client in sorted(found):
      metrics_of, domains_of = found[client]
      by_model[self._model_of(client)].append(metrics_of[task.primary])
      for values, into in ((metrics_of, by_client), (domains_of, by_domain)):
        for name, value in values.items():
          into[name].append(value)
    models = by_model if len(tests) > 1 else {}
    return _summarize(task.primary, by_client, by_domain, models)

  def _read(self, base: Tree, theta: Tree) -> Mapping[str, Corpus]:
    """Returns the test data as the clients' models read them."""
    rows = np.unique(np.concatenate(self.own))
    if not self._of_head or not rows.size:
      return self.tests
    test = self._test
    made = self._extract(base, theta, test, rows, self.lengths)
    inputs = np.zeros((len(test), made.shape[1]), made.dtype)
    inputs[rows] = made
    return {self._first: dataclasses.replace(test, inputs=inputs, lengths=None)}

  def _judge(
    self,
    base: Tree,
    state: ServerState,
    seen: Mapping[str, Corpus],
    client: int,
  ) -> tuple[Mapping[str, float], dict[str, float]]:
    """Returns a client's metrics, and the primary one by domain."""
    states = store.gather(
      state.clients, np.array([client]), self.algorithm.client.state
    )
    remembered = jax.tree.map(lambda x: x[0], states)
    theta = divided.beside(base, state.theta)
    # The same in every round, or it could not be a model of the client's own.
    (held,) = self.algorithm.rule.draw(0, [client])
    name, test = self._model_of(client), self._test

    def say(batch):
      arrays = divided.beside(base, batch, split=True)
      return self._predict(name, base, theta, remembered, held, arrays)

    order, predicted = Predicted.of(
      seen[name], self.own[client], self.lengths, _BATCH, say
    )
    primary, by_domain = self.algorithm.evaluation.task.primary, {}
    for domain, domain_name in enumerate(test.domain_names):
      at = test.domains[order] == domain
      if at.any():
        part = {k: v[at] for k, v in predicted.items()}
        by_domain[domain_name] = test.judge(order[at], part)[primary]
    return test.judge(order, predicted), by_domain

  @functools.cached_property
  def _of_head(self) -> bool:
    return _differ_in_head(self.algorithm)

  @functools.cached_property
  def _predict(self) -> Callable[..., dict[str, jax.Array]]:
    own = build_own_predict(self.algorithm, of_head=self._of_head)
    return jax.jit(own, static_argnums=0)

  @functools.cached_property
  def _extract(self) -> features.Extract:
    held = self.algorithm.evaluation.models[self._first]
    return features.build(self.algorithm.model, held)

  @property
  def _first(self) -> str:
    return next(iter(self.tests))

  @property
  def _test(self) -> Corpus:
    """The test data as the first model reads them; all have the same labels."""
    return self.tests[self._first]

  def _model_of(self, client: int) -> str:
    return self.algorithm.tier(client) or self._first


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

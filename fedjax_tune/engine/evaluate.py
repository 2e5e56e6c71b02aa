"""Evaluates the server's models by domain."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import jax
import numpy as np

from fedjax_tune import endings, selection
from fedjax_tune.data.corpus import Corpus
from fedjax_tune.engine import divided, hosts
from fedjax_tune.engine.algorithm import Evaluation
from fedjax_tune.engine.batches import bucket
from fedjax_tune.engine.client import Batch
from fedjax_tune.models.foundation import Model, Models
from fedjax_tune.typing import AnyArray, Inputs, Tree

# (base, theta) -> {evaluation: {metric: value by domain [domains]}}
Evaluate = Callable[[Tree, Tree], dict[str, dict[str, np.ndarray]]]
# (evaluations, base, theta, batch) -> for each what it says of each example
Predict = Callable[
  [tuple[str, ...], Tree, Tree, Batch], dict[str, dict[str, jax.Array]]
]


def build_evaluate(
  whole: Models,
  evaluation: Evaluation,
  examples: Mapping[str, Corpus],
  lengths: Sequence[int] = (),
  *,
  batch_size: int | None = None,
) -> Evaluate:
  """Builds the evaluation of every model that a method names.

  Args:
    whole: The model.
    evaluation: Says which parts of it to evaluate, and how they predict.
    examples: Test data of each evaluation, as its model reads it.
    lengths: Tokens to which texts are padded; texts are read in order of
      length, so that padding costs little.
    batch_size: Examples at a time; the last batch is padded. None is 128, or 16
      if every token has logits over the vocabulary.

  Returns:
    The evaluation. It raises `Diverged` if outputs or metrics are not finite:
    if all logits are NaN, the largest is that of class 0, and the accuracy
    would look valid.
  """
  if batch_size is None:
    batch_size = 16 if evaluation.task.kind == 'next_token' else 128

  predict = jax.jit(build_predict(whole, evaluation), static_argnums=0)

  def run(names, corpus, base, theta):
    """Evaluates the models that read one corpus; each host a part of it."""
    parts: dict[str, list[Tree]] = {name: [] for name in names}
    order, together = [], _groups(evaluation, names)
    # Where there are fewer examples than hosts, some are predicted twice.
    part = np.arange(hosts.index(), max(len(corpus), hosts.count()))
    part = part[:: hosts.count()] % len(corpus)
    for index, batch in batches(corpus, part, lengths, batch_size):
      order.append(index)
      arrays = divided.beside(base, batch, split=True)
      for group in together:
        for name, found in predict(group, base, theta, arrays).items():
          parts[name].append(found)

    def collect(*pieces):
      real = [p[: len(i)] for p, i in zip(pieces, order, strict=True)]
      return np.concatenate(real)

    own = {n: jax.tree.map(collect, *jax.device_get(parts[n])) for n in names}
    given = hosts.exchange((np.concatenate(order), own))
    seen, theirs = zip(*given, strict=True)
    _, first = np.unique(np.concatenate(seen), return_index=True)
    joined = jax.tree.map(lambda *xs: np.concatenate(xs)[first], *theirs)
    found = {}
    for name, predicted in joined.items():
      found[name] = corpus.score(predicted)
      _check(name, predicted, found[name])
    return found

  def evaluate(base, theta):
    theta = divided.beside(base, theta)
    found = {}
    for corpus in {id(c): c for c in examples.values()}.values():
      names = [n for n in evaluation.models if examples[n] is corpus]
      found |= run(names, corpus, base, theta)
    return {name: found[name] for name in evaluation.models}

  return evaluate


def build_predict(whole: Models, evaluation: Evaluation) -> Predict:
  """Builds the program of a batch.

  Returns:
    predict(names, base, theta, batch). The names are static and belong to
    evaluations that hold the same. What several of them need from the model is
    computed once.
  """

  def predict(names, base, theta, batch):
    held = evaluation.models[names[0]]
    local = selection.select_within(theta, whole.axes, held)
    model = whole.assemble(base, local, held)
    if len(names) > 1:
      model = cast(Model, _Remembering(model))
    found = {}
    for name in names:
      scores = evaluation.predict(name, model, held, batch.inputs)
      found[name] = evaluation.task.predict(scores, batch)
    return found

  return predict


class _Remembering:
  """A model that computes equal requests once within one trace."""

  def __init__(self, model: Model) -> None:
    self._model, self._known = model, {}

  def __getattr__(self, name: str) -> Any:
    return getattr(self._model, name)

  def __call__(self, inputs: Inputs, layers: AnyArray, **more: Any) -> Any:
    return self._once('__call__', inputs, layers, more)

  def tokens(self, inputs: Inputs, layers: AnyArray, **more: Any) -> Any:
    """Returns the model's tokens."""
    return self._once('tokens', inputs, layers, more)

  def class_tokens(self, inputs: Inputs, layers: AnyArray, **more: Any) -> Any:
    """Returns the model's class tokens."""
    return self._once('class_tokens', inputs, layers, more)

  def _once(
    self, name: str, inputs: Inputs, layers: AnyArray, more: dict[str, Any]
  ) -> Any:
    if not isinstance(layers, np.ndarray) or more.get('key') is not None:
      return getattr(self._model, name)(inputs, layers, **more)
    asked = (name, id(inputs), np.asarray(layers).tobytes())
    if asked not in self._known:
      self._known[asked] = getattr(self._model, name)(inputs, layers, **more)
    return self._known[asked]


def _groups(
  evaluation: Evaluation, names: Sequence[str]
) -> list[tuple[str, ...]]:
  """Groups evaluations that hold the same."""
  groups: dict[object, list[str]] = {}
  for name in names:
    leaves, held = jax.tree.flatten(evaluation.models[name])
    own = (held, *(np.asarray(x).tobytes() for x in leaves))
    groups.setdefault(own, []).append(name)
  return [tuple(group) for group in groups.values()]


def _check(
  name: str,
  predicted: Mapping[str, np.ndarray],
  found: Mapping[str, np.ndarray],
) -> None:
  """Refuses a model whose outputs or metrics are not finite."""
  finite = predicted['finite']
  if not finite.all():
    raise endings.Diverged(
      f'evaluation {name!r}: the outputs of {np.sum(~finite)} of {len(finite)}'
      ' test examples must be finite.'
    )
  for metric, values in found.items():
    if not np.isfinite(values).all():
      raise endings.Diverged(
        f'evaluation {name!r}: {metric}={values.tolist()} must be finite.'
      )


def batches(
  examples: Corpus, order: np.ndarray, lengths: Sequence[int], batch_size: int
) -> Iterator[tuple[np.ndarray, Batch]]:
  """Yields some examples in batches of one size, the last one padded.

  Args:
    examples: A corpus.
    order: Positions of the examples; texts are read in order of length.
    lengths: Tokens to which texts are padded.
    batch_size: Examples at a time.

  Yields:
    The positions of a batch's real examples, which are its first rows, and the
    batch.
  """
  if examples.lengths is not None:
    order = order[np.argsort(examples.lengths[order], kind='stable')]
  for begin in range(0, len(order), batch_size):
    index = order[begin : begin + batch_size]
    rows = np.pad(index, (0, batch_size - len(index)), mode='edge')
    length = 0
    if examples.lengths is not None:
      length = bucket(lengths, examples.lengths[rows])
    valid = np.arange(batch_size) < len(index)
    labels = examples.labels[rows]
    yield index, Batch(examples.read(rows, length), labels, valid)

"""Evaluates the models of a run, on test data and on a validation split."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from fedjax_tune.data.corpus import Corpus
from fedjax_tune.engine import personal
from fedjax_tune.engine.evaluate import build_evaluate
from fedjax_tune.engine.server import ServerState
from fedjax_tune.training import stopping
from fedjax_tune.training.build import Setup
from fedjax_tune.typing import Tree

# state -> metrics by name, as rows of a run have them.
Evaluate = Callable[[ServerState], dict[str, float]]


def build(setup: Setup, base: Callable[[ServerState], Tree]) -> Evaluate:
  """Builds the evaluation of a run.

  Args:
    setup: The run's setup.
    base: Gives the frozen parameters of a state.

  Returns:
    The evaluation; it raises `Diverged` where outputs or metrics of a model
    are not finite.
  """
  train, test = setup.inputs
  judge, kept = _on(setup, base, test, setup.own_data), setup.validation
  if kept is None:
    return judge
  validate = _on(
    setup,
    base,
    train.take(np.unique(kept.positions)),
    lambda clients: (train, [kept[k] for k in clients]),
  )

  def both(state: ServerState) -> dict[str, float]:
    score = validate(state)['eval/accuracy']
    return judge(state) | {stopping.VALIDATION: score}

  return both


def _on(
  setup: Setup,
  base: Callable[[ServerState], Tree],
  examples: Corpus,
  own_data: Callable[[Sequence[int]], tuple[Corpus, list[np.ndarray]]],
) -> Evaluate:
  """Builds the evaluation on some examples.

  Args:
    setup: The run's setup.
    base: Gives the frozen parameters of a state.
    examples: The examples by which the server's models are judged.
    own_data: Those by which clients' own models are; see `Setup.own_data`.
  """
  algorithm, lengths = setup.algorithm, setup.experiment.data.lengths
  view = lambda examples: {
    name: examples.view(setup.readers.get(name, 0))
    for name in algorithm.evaluation.models
  }
  if algorithm.evaluation.personal:
    own, rows = own_data(range(len(setup.partition)))
    each = personal.build(algorithm, view(own), rows, lengths)
    return lambda state: each(base(state), state)
  views = view(examples)
  whole = build_evaluate(algorithm.model, algorithm.evaluation, views, lengths)
  weights = algorithm.evaluation.weights
  return lambda state: _named(
    whole(base(state), state.theta), weights, examples
  )


def _named(
  results: Mapping[str, Mapping[str, np.ndarray]],
  weights: Mapping[str, float],
  examples: Corpus,
) -> dict[str, float]:
  """Returns the results of an evaluation as entries of a row.

  Args:
    results: For each model and metric its value by domain.
    weights: How much each model counts in the headline number.
    examples: The examples by which they were judged.
  """
  mean = lambda x: float(np.mean(x))
  primary, *others = examples.task.metrics
  # Values by domain of the models that count together.
  main = {
    metric: np.add.reduce([w * results[n][metric] for n, w in weights.items()])
    for metric in (primary, *others)
  }
  domains = zip(examples.domain_names, main[primary], strict=True)
  apart = [name for name in results if weights != {name: 1.0}]
  return (
    {'eval/accuracy': mean(main[primary])}
    | {f'metric/{m}': mean(main[m]) for m in others}
    | {f'eval/accuracy/{domain}': float(x) for domain, x in domains}
    | {f'eval/{name}/accuracy': mean(results[name][primary]) for name in apart}
  )

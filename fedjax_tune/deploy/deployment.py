"""Evaluates subnetworks of a finished run, and writes them as folders.

A subnetwork has the first n of each axis; `subnetworks.py` chooses n. Which
channels come first can be chosen even after training: salience reorders hidden
channels (RaFFM, arXiv 2310.00247), which changes no output of the whole model.
"""

from collections.abc import Callable, Mapping
import math
import os
import pathlib
from typing import Any

import numpy as np
import safetensors

from fedjax_tune.data.corpus import Corpus
from fedjax_tune.deploy import finished, folders, formats
from fedjax_tune.engine import evaluate
from fedjax_tune.engine.algorithm import Evaluation
from fedjax_tune.files import whole
from fedjax_tune.report import writer
from fedjax_tune.selection import Selection
from fedjax_tune.training import learned
from fedjax_tune.typing import Allocation, Tree

# params -> {subnetwork: {metric: value by domain}}
Evaluate = Callable[[Tree], dict[str, dict[str, np.ndarray]]]


def build_evaluate(
  trained: finished.Trained, rows: Mapping[str, Allocation]
) -> Evaluate:
  """Builds the evaluation of subnetworks on the run's test data.

  Args:
    trained: The run.
    rows: Subnetworks by name.

  Returns:
    A function of parameters; all orders of the parameters share its programs.
  """
  test, lengths = trained.test, trained.setup.experiment.data.lengths
  models = {n: Selection.of(trained.held(row)) for n, row in rows.items()}
  run = evaluate.build_evaluate(
    trained.model,
    Evaluation(test.task, models),
    dict.fromkeys(rows, test),
    lengths,
  )
  return lambda params: run({}, params)


def score(found: Mapping[str, np.ndarray]) -> float:
  """Returns the primary metric, mean over the domains, as runs report it."""
  return float(np.mean(next(iter(found.values()))))


def largest_class(test: Corpus) -> tuple[str, float] | None:
  """Returns the answer that is right most often, and how often it is right.

  The share is the mean over the domains, like the accuracy that is reported.
  None if the run does not report an accuracy of classes.
  """
  if (test.task.kind, test.task.primary) != ('classification', 'accuracy'):
    return None
  rows = [
    np.bincount(test.labels[test.domains == d], minlength=test.task.num_outputs)
    for d in range(len(test.domain_names))
  ]
  share = np.mean([row / max(1, row.sum()) for row in rows], axis=0)
  label = int(share.argmax())
  name = test.class_names[label] if test.class_names else f'LABEL_{label}'
  return name, float(share[label])


def write(
  trained: finished.Trained,
  row: Allocation,
  folder: str | os.PathLike[str],
  scope: str = 'none',
) -> dict[str, Any]:
  """Evaluates a subnetwork and writes it as a folder of its own.

  The folder has Hugging Face's format if that can describe the model, else our
  own, for `fedjax_tune.load_model`.

  Args:
    trained: The run.
    row: How much of each axis to keep, from the first on.
    folder: Gets model, tokenizer, and `deploy.json`; made if missing.
    scope: What salience reorders before the cut, a key of `salience.SCOPES`;
      'none' cuts the parameters in the order that the run left.

  Returns:
    What `deploy.json` holds.

  Raises:
    FileExistsError, NotADirectoryError: See `folders.check`.
  """
  folder = pathlib.Path(folder)
  folders.check(folder)
  held, setup, test = trained.held(row), trained.setup, trained.test
  params = trained.reorder(trained.rank(scope))
  names = {'full': trained.sizes, 'subnetwork': held}
  found = build_evaluate(trained, names)(params)
  context = formats.Context(
    learned.of(setup), trained.tokenizer, max(setup.experiment.data.lengths)
  )
  part = trained.part(row, params)
  count, total = trained.num_params(held), trained.num_params({})
  by_domain = next(iter(found['subnetwork'].values()))
  record = {
    'method': setup.experiment.method,
    'model': part.name,
    'about': part.about,
    'format': trained.form,
    'subnetwork': held,
    'priority': scope,
    'parameters': count,
    'share': count / total,
    'full_parameters': total,
    'metric': test.task.primary,
    'accuracy': score(found['subnetwork']),
    'accuracy_by_domain': dict(zip(test.domain_names, by_domain, strict=True)),
    'full_accuracy': score(found['full']),
    'test_examples': len(test),
  }
  with whole.folder(folder) as place:
    formats.FORMATS[trained.form].write(part, context, place)
    record |= _file_size(place / formats.TENSORS[trained.form])
    writer.write_json(place / folders.DEPLOYED, record)
  return record


def _file_size(path: pathlib.Path) -> dict[str, int]:
  """Counts the bytes written, including padding to Hugging Face's sizes."""
  with safetensors.safe_open(path, 'numpy') as file:
    shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
  return {
    'file_parameters': sum(map(math.prod, shapes)),
    'file_bytes': path.stat().st_size,
  }

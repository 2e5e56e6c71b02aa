"""Computes frozen features once per example: `engine.cache_frozen`."""

from collections.abc import Sequence
import dataclasses

import numpy as np

from fedjax_tune import config
from fedjax_tune.costs import capacity
from fedjax_tune.data.corpus import Corpus
from fedjax_tune.engine import features
from fedjax_tune.engine.algorithm import Algorithm
from fedjax_tune.engine.slabs import Signature
from fedjax_tune.models.probe import Probe
from fedjax_tune.report import tables
from fedjax_tune.selection import Selection


def check(experiment: config.Experiment) -> None:
  """Refuses settings that change an example in every step.

  Raises:
    ValueError: There is dropout below the head, pictures change, or the frozen
      model is divided among devices.
  """
  if experiment.engine.cache_frozen and experiment.engine.fsdp:
    raise ValueError(
      'engine.fsdp=True must be False with engine.cache_frozen=True: what is'
      ' computed once needs no devices afterwards.'
    )
  changes = experiment.data
  if experiment.engine.cache_frozen and (changes.flip or changes.crop):
    raise ValueError(
      f'data.flip={changes.flip} and data.crop={changes.crop} must be off with'
      ' engine.cache_frozen=True: pictures would be others in each step.'
    )
  if experiment.engine.cache_frozen and experiment.model.dropout:
    raise ValueError(
      f'model.dropout={experiment.model.dropout} must be 0 with'
      ' engine.cache_frozen=True: the frozen model would draw anew in each step.'
    )


def compute(
  experiment: config.Experiment,
  algorithm: Algorithm,
  clients: int,
  splits: Sequence[Corpus],
) -> tuple[tuple[Corpus, ...], str]:
  """Replaces the inputs of each split by the features that the head reads.

  Args:
    experiment: The configuration.
    algorithm: The method, on a `Probe`.
    clients: The number of clients.
    splits: The examples.

  Returns:
    The splits, and what to tell the user.

  Raises:
    ValueError: The head reads more than one vector of an example, clients hold
      different blocks, the model is not plain, or memory does not suffice.
  """
  model, task = algorithm.model, algorithm.task
  if task.kind not in ('classification', 'regression'):
    raise ValueError(
      f'engine.cache_frozen=True: the task, {task.kind!r}, must be to classify,'
      ' or to predict a number.'
    )
  if not isinstance(model, Probe):
    raise ValueError(
      f'engine.cache_frozen=True: method={experiment.method!r} must train one'
      ' plain model.'
    )
  held = _held(experiment, algorithm, clients)
  whole = model.whole
  width = int(whole.theta['head']['kernel'].shape[0])
  size = sum(map(len, splits)) * width * 4
  capacity.check(
    'engine.cache_frozen=True', 'what the head reads of all examples', size
  )
  extract = features.build(whole, held)
  found = []
  for split in splits:
    rows = np.arange(len(split))
    made = extract(
      whole.base, whole.theta, split, rows, experiment.data.lengths
    )
    found.append(dataclasses.replace(split, inputs=made, lengths=None))
  note = (
    f'The frozen model ran once over {sum(map(len, splits))} examples; what the'
    f' head reads of them takes {tables.human_bytes(size)}.'
  )
  return tuple(found), note


def _held(
  experiment: config.Experiment, algorithm: Algorithm, clients: int
) -> Selection:
  """Returns what every client holds of the frozen model."""
  rows = algorithm.rule.draw(0, range(clients))
  sigs = {Signature.of(row) for row in rows}
  (first, *others) = sigs
  if others or first.amounts or set(first.axes) != {'layer'}:
    raise ValueError(
      f'engine.cache_frozen=True: method={experiment.method!r} must give every'
      ' client the same blocks.'
    )
  return Selection.of({'layer': first['layer']})

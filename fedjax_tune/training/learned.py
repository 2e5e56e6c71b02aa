"""What a run has learned, and from what: `task.json` in its folder.

From it the run's model can be built again when the data are gone.
"""

from collections.abc import Sequence
import dataclasses
import itertools
import os
import pathlib
from typing import Any

import numpy as np

from fedjax_tune import config
from fedjax_tune.data import json_files, tasks
from fedjax_tune.engine.algorithm import Algorithm
from fedjax_tune.models import federation, peft, tiers
from fedjax_tune.training import aligned, build, method

FILE = 'task.json'


@dataclasses.dataclass(frozen=True)
class Learned:
  """What a model must know about the data it was trained on.

  Attributes:
    task: What is learned.
    class_names: The name of each label; () if there are none.
    domain_names: The name of each domain.
    clients: How many clients there were.
    budgets: The blocks that clients could hold, each number once.
    train_examples: Number of training examples that clients hold.
    test_examples: Number of test examples.
  """

  task: tasks.Task
  class_names: tuple[str, ...]
  domain_names: tuple[str, ...]
  clients: int
  budgets: tuple[int, ...]
  train_examples: int
  test_examples: int

  @property
  def labels(self) -> list[str]:
    """A name for each output of the head; none if the head predicts tokens."""
    outputs = 0 if self.task.kind == 'next_token' else self.task.num_outputs
    return list(self.class_names or (f'LABEL_{i}' for i in range(outputs)))


def of(setup: build.Setup) -> Learned:
  """Returns what a run's models must know of its data."""
  return Learned(
    task=setup.train.task,
    class_names=tuple(setup.train.class_names or ()),
    domain_names=tuple(setup.train.domain_names),
    clients=len(setup.partition),
    budgets=tuple(sorted(set(setup.budgets))),
    train_examples=len(np.unique(setup.partition.indices.positions)),
    test_examples=len(setup.test),
  )


def read(workdir: str | os.PathLike[str]) -> Learned | None:
  """Reads a run's file; None if the run is older than this file.

  Raises:
    ValueError: It is not what a run writes.
  """
  path = pathlib.Path(workdir) / FILE
  if not path.exists():
    return None
  said = json_files.read_object(path)
  try:
    task = said.pop('task')
    return Learned(
      task=tasks.Task(task['kind'], task['num_outputs'], (*task['metrics'],)),
      class_names=_names(said.pop('class_names')),
      domain_names=_names(said.pop('domain_names')),
      budgets=tuple(map(int, said.pop('budgets'))),
      **{name: int(number) for name, number in said.items()},
    )
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(f'{path} is not what a run writes ({error}).') from error


def _names(value: Any) -> tuple[str, ...]:
  if not isinstance(value, list) or not all(isinstance(x, str) for x in value):
    raise ValueError(f'{value!r:.60} must be names')
  return tuple(value)


@dataclasses.dataclass(frozen=True)
class Rebuilt:
  """A run's model, without its data.

  Attributes:
    algorithm: The method, with its model.
    tiers: The pretrained models.
    weights: Their hash, as checkpoints have it.
  """

  algorithm: Algorithm
  tiers: Sequence[tiers.Tier]
  weights: str


def rebuild(
  experiment: config.Experiment,
  learned: Learned,
  values: aligned.Values | None = None,
) -> Rebuilt:
  """Builds a run's model; its allocation to clients is not that of the run.

  Args:
    experiment: The run's experiment.
    learned: What the run has learned.
    values: What aligns its models, if anything does.

  Raises:
    FileNotFoundError, ValueError: The pretrained weights are gone, or damaged.
  """
  found = method.load_tiers(experiment)
  found = method.with_heads(found, learned.task, learned.class_names)
  weights = found[0].weights
  widths = peft.axis_sizes(
    peft.with_trained(weights.config, experiment.model), experiment.data
  )
  depths = {federation.tier_axis(t.name): t.kept['layer'] for t in found}
  # Of the method's structure only the levels and the number of clients matter.
  budgets = itertools.islice(itertools.cycle(learned.budgets), learned.clients)
  algorithm = method.build(
    experiment,
    found,
    learned.task,
    widths | depths,
    tuple(budgets),
    aligned=values,
  )
  return Rebuilt(algorithm, found, method.hash_weights(found))

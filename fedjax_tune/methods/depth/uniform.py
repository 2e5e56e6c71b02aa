"""FedAvg among clients of one depth: the bounds of every comparison.

AllLarge and AllSmall are as FedRA's authors ran them (main.py, `samelayer12`
and `samelayer3`). ExclusiveFL is a baseline of the paper that their code lacks;
the definition here follows the literature.
"""

from collections.abc import Mapping
import dataclasses

import numpy as np

from fedjax_tune import config
from fedjax_tune.data.tasks import Task
from fedjax_tune.engine.algorithm import (
  Aggregator,
  Algorithm,
  Evaluation,
  fedavg_client,
)
from fedjax_tune.methods.depth import layers
from fedjax_tune.methods.facts import Facts
from fedjax_tune.models.foundation import Models
from fedjax_tune.selection import Selection


def fedavg(
  found: Models, task: Task, budgets: tuple[int, ...], depth: int
) -> Algorithm:
  """Builds FedAvg of clients that each hold the first blocks.

  Args:
    found: The model.
    task: What is learned.
    budgets: How many blocks each client holds.
    depth: How many blocks the evaluated model has.
  """
  return Algorithm(
    model=found,
    rule=layers.Prefix(budgets),
    client=fedavg_client(task),
    aggregator=Aggregator(),
    evaluation=Evaluation(task, {'full': Selection.of({'layer': depth})}),
  )


def _build(facts: Facts, budgets: tuple[int, ...], depth: int) -> Algorithm:
  return fedavg(facts.foundation(), facts.task, budgets, depth)


def build_all_large(facts: Facts) -> Algorithm:
  """Builds FedAvg of full models, whatever the budgets: an upper bound."""
  return _build(facts, (facts.depth,) * len(facts.budgets), facts.depth)


def build_all_small(facts: Facts) -> Algorithm:
  """Builds FedAvg of the first c blocks, c the smallest budget of all.

  The server's model is this small one; later blocks are never run.
  """
  least = min(facts.budgets)
  return _build(facts, (least,) * len(facts.budgets), least)


def build_exclusivefl(facts: Facts) -> Algorithm:
  """Builds FedAvg of the clients that can hold the whole model."""
  able = np.asarray(facts.budgets) == facts.depth
  algorithm = _build(facts, facts.budgets, facts.depth)
  return dataclasses.replace(algorithm, eligible=lambda _: able)


def check_exclusivefl(
  experiment: config.Experiment,
  sizes: Mapping[str, int],
  budgets: tuple[int, ...],
) -> None:
  """Checks the budgets.

  Raises:
    ValueError: No client can hold the whole model.
  """
  del experiment
  depth = sizes['layer']
  if depth not in budgets:
    raise ValueError(
      f'method=exclusivefl needs a client with budget {depth} (all blocks); '
      f'clients.budgets reach {max(budgets)}.'
    )

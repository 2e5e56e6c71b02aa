"""FedAvg among clients of one depth: the bounds of every comparison.

AllLarge and AllSmall as FedRA's authors ran them (main.py, `samelayer12` and
`samelayer3`). ExclusiveFL is a baseline of the paper that their code lacks;
its definition here is the literature's.
"""

from collections.abc import Mapping
import dataclasses

import numpy as np

from fedjax_tune import config
from fedjax_tune.engine.group import Row
from fedjax_tune.methods import base


@dataclasses.dataclass(frozen=True)
class AllSmall(base.Method):
  """Every client holds the first c blocks, c the smallest budget of all.

  The server's model is that small one: later blocks are never run.
  """

  def evaluations(self) -> dict[str, Row]:
    """Evaluates the small model."""
    return {'full': {'layer': self.budgets[0]}}


@dataclasses.dataclass(frozen=True)
class ExclusiveFL(base.Method):
  """Only clients that can hold the whole model take part."""

  def eligible(self, rnd: int) -> np.ndarray:
    """Says who holds every block, bool [clients]."""
    del rnd
    return np.asarray(self.budgets) == self.depth


def build_all_large(
  experiment: config.Experiment,
  sizes: Mapping[str, int],
  budgets: tuple[int, ...],
) -> base.Method:
  """Builds FedAvg of full models, whatever the budgets: an upper bound."""
  return base.Method(
    sizes['layer'], (sizes['layer'],) * len(budgets), experiment.seed
  )


def build_all_small(
  experiment: config.Experiment,
  sizes: Mapping[str, int],
  budgets: tuple[int, ...],
) -> AllSmall:
  """Builds FedAvg of the smallest model."""
  return AllSmall(
    sizes['layer'], (min(budgets),) * len(budgets), experiment.seed
  )


def build_exclusivefl(
  experiment: config.Experiment,
  sizes: Mapping[str, int],
  budgets: tuple[int, ...],
) -> ExclusiveFL:
  """Builds FedAvg of the clients with budget = depth.

  Raises:
    ValueError: No client can hold the whole model.
  """
  depth = sizes['layer']
  if depth not in budgets:
    raise ValueError(
      f'method=exclusivefl needs a client with budget {depth} (all blocks); '
      f'clients.budgets reach {max(budgets)}.'
    )
  return ExclusiveFL(depth, budgets, experiment.seed)

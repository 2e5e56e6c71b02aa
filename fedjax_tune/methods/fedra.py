"""FedRA: a random allocation of layers to clients, new every round.

Su, Li, Xue, "FedRA: A Random Allocation Strategy for Federated Tuning to
Unleash the Power of Heterogeneous Clients", arXiv 2311.11227; the authors'
code is github.com/leondada/FedRA (server.py `get_para_range` and
`agg_range_fill`).
"""

from collections.abc import Mapping, Sequence
import dataclasses

import numpy as np

from fedjax_tune import config
from fedjax_tune.engine.group import Row
from fedjax_tune.methods import base
from fedjax_tune.randomness import host_rng


@dataclasses.dataclass(frozen=True)
class Fedra(base.Method):
  """FedRA's allocation; loss and aggregation are the defaults.

  A client with budget c gets c distinct layers, uniformly drawn, in their
  original order: its model is those blocks alone, a skipped block being the
  identity. The server averages each layer over the clients that held it, A
  and B of LoRA apart, uniformly; head and patch adapter over all clients.

  Attributes:
    coverage_repair: Redraw rows until every layer has an owner, the rule that
      the authors' code carries commented out for the case that nobody can
      hold the whole model. Whether the paper's tables used it is unknown.
  """

  coverage_repair: bool = False

  def allocate(self, rnd: int, cohort: Sequence[int]) -> list[Row]:
    """Draws the cohort's rows of the allocation matrix."""
    rows = [
      draw_row(self.seed, rnd, k, self.depth, self.budgets[k]) for k in cohort
    ]
    if self.coverage_repair:
      rng = host_rng('repair', self.seed, rnd)
      repair_coverage(rows, self.depth, rng)
    return [{'layer': row} for row in rows]


def draw_row(
  seed: int, rnd: int, client: int, depth: int, budget: int
) -> np.ndarray:
  """Draws the layers of one client, sorted int [budget]."""
  rng = host_rng('allocation', seed, rnd, client)
  return np.sort(rng.choice(depth, budget, replace=False))


def repair_coverage(
  rows: list[np.ndarray], depth: int, rng: np.random.Generator
) -> None:
  """Redraws rows in place until every layer has an owner.

  While a layer is uncovered, a random client takes over uncovered layers: as
  many as it can hold, filled up with random covered ones (server.py, the
  branch in comments). Each redraw covers the client's share of what is
  missing but may uncover its old layers, so the authors' loop need not end;
  where the budgets add up to less than the depth it cannot, and the rows are
  returned as drawn.
  """
  if sum(len(row) for row in rows) < depth:
    return
  while len(missing := _uncovered(rows, depth)):
    i = rng.integers(len(rows))
    budget = len(rows[i])
    if len(missing) > budget:
      row = rng.choice(missing, budget, replace=False)
    else:
      covered = np.setdiff1d(np.arange(depth), missing)
      fill = rng.choice(covered, budget - len(missing), replace=False)
      row = np.concatenate([missing, fill])
    rows[i] = np.sort(row)


def _uncovered(rows: list[np.ndarray], depth: int) -> np.ndarray:
  return np.setdiff1d(np.arange(depth), np.concatenate(rows))


def build(
  experiment: config.Experiment,
  sizes: Mapping[str, int],
  budgets: tuple[int, ...],
) -> Fedra:
  """Builds FedRA from an experiment."""
  return Fedra(
    depth=sizes['layer'],
    budgets=budgets,
    seed=experiment.seed,
    coverage_repair=experiment.fedra.coverage_repair,
  )

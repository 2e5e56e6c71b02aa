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
from fedjax_tune.methods import base, cover
from fedjax_tune.randomness import host_rng


@dataclasses.dataclass(frozen=True)
class Fedra(base.Method):
  """FedRA's allocation; loss and aggregation are the defaults.

  A client with budget c gets c distinct layers, uniformly drawn, in their
  original order: its model is those blocks alone, a skipped block being the
  identity. The server averages each layer over the clients that held it, A
  and B of LoRA apart, uniformly; head and patch adapter over all clients.

  Attributes:
    coverage_repair: Draw rows in which every layer has an owner, for the case
      that nobody can hold the whole model. The authors' code carries a rule
      for it commented out, which may never end; `repair_coverage` says how
      this differs. Whether the paper's tables used it is unknown.
  """

  coverage_repair: bool = False

  def allocate(self, rnd: int, cohort: Sequence[int]) -> list[Row]:
    """Draws the cohort's rows of the allocation matrix."""
    rows = [
      draw_row(self.seed, rnd, k, self.depth, self.budgets[k]) for k in cohort
    ]
    if self.coverage_repair:
      rng = host_rng('repair', self.seed, rnd)
      rows = repair_coverage(rows, self.depth, rng)
    return [{'layer': row} for row in rows]


def draw_row(
  seed: int, rnd: int, client: int, depth: int, budget: int
) -> np.ndarray:
  """Draws the layers of one client, sorted int [budget]."""
  rng = host_rng('allocation', seed, rnd, client)
  return np.sort(rng.choice(depth, budget, replace=False))


def repair_coverage(
  rows: list[np.ndarray], depth: int, rng: np.random.Generator
) -> list[np.ndarray]:
  """Returns the rows, or others if a layer has no owner.

  Rows that cover all layers stay. Otherwise they are drawn from all rows that
  do, or, where the budgets add up to less than the depth, from those that
  share no layer (`cover.py`). Together that is the distribution of rows that
  are redrawn, all of them, until they cover.

  The authors' loop (server.py, the branch in comments) is another rule: while
  a layer is uncovered, a random client takes over as many of the uncovered
  ones as it can hold, filled up with random covered ones, and may uncover its
  old layers. It need not end: of four clients with 8 of 32 layers it takes
  tens of thousands of redraws, or never stops. It also gives what is missing
  to one client, so that its layers are not uniform.
  """
  if len(np.unique(np.concatenate(rows))) == depth:
    return rows
  return cover.draw_cover([len(row) for row in rows], depth, rng)


def build(
  experiment: config.Experiment,
  sizes: Mapping[str, int],
  budgets: tuple[int, ...],
) -> Fedra:
  """Builds FedRA from an experiment.

  Raises:
    ValueError: `fedra.coverage_repair` where no cohort can hold all blocks.
  """
  depth, repair = sizes['layer'], experiment.fedra.coverage_repair
  together = sum(_largest_cohort(experiment.clients, budgets))
  if repair and together < depth:
    raise ValueError(
      f'fedra.coverage_repair=True needs a cohort that can hold all {depth}'
      f' blocks; clients.budgets of the largest add up to {together}.'
    )
  return Fedra(
    depth=depth, budgets=budgets, seed=experiment.seed, coverage_repair=repair
  )


def _largest_cohort(cfg: config.Clients, budgets: tuple[int, ...]) -> list[int]:
  """Returns the budgets of the cohort that can hold most."""
  if cfg.cohort == 'uniform':
    return sorted(budgets)[-cfg.cohort_size :]
  # One of each domain, whose clients follow one another.
  return [
    max(budgets[i : i + cfg.count]) for i in range(0, len(budgets), cfg.count)
  ]

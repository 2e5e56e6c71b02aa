"""Rules for the blocks that clients hold."""

from collections.abc import Mapping, Sequence
import dataclasses

import numpy as np

from fedjax_tune.engine.randomness import host_rng
from fedjax_tune.methods.depth import cover
from fedjax_tune.selection import Selection


@dataclasses.dataclass(frozen=True)
class Prefix:
  """Each client holds the first blocks, as many as its budget.

  Attributes:
    budgets: How many blocks each client holds.
  """

  budgets: tuple[int, ...]

  @property
  def axes(self) -> frozenset[str]:
    """The one axis that it decides."""
    return frozenset({'layer'})

  def draw(self, rnd: int, cohort: Sequence[int]) -> list[Selection]:
    """Returns the blocks of each client; they are the same in all rounds."""
    del rnd
    return [Selection.of({'layer': self.budgets[k]}) for k in cohort]


def whole(depth: int, clients: int) -> Prefix:
  """Gives all blocks to every client."""
  return Prefix((depth,) * clients)


@dataclasses.dataclass(frozen=True)
class ByBudget:
  """Clients with the same budget hold the same in every round.

  Attributes:
    budgets: The budget of each client.
    held: What is held, by budget.
  """

  budgets: tuple[int, ...]
  held: Mapping[int, Selection]

  @property
  def axes(self) -> frozenset[str]:
    """The axes along which clients hold anything."""
    return frozenset().union(*self.held.values())

  def draw(self, rnd: int, cohort: Sequence[int]) -> list[Selection]:
    """Returns what each client of the cohort holds."""
    del rnd
    return [self.held[self.budgets[k]] for k in cohort]


@dataclasses.dataclass(frozen=True)
class Random:
  """FedRA's allocation matrix: random blocks, new in every round.

  Attributes:
    depth: Blocks of the full model, L.
    budgets: How many blocks each client holds.
    seed: Seed of the run.
    coverage_repair: Whether to draw rows in which every block has an owner.
  """

  depth: int
  budgets: tuple[int, ...]
  seed: int
  coverage_repair: bool = False

  @property
  def axes(self) -> frozenset[str]:
    """The one axis that it decides."""
    return frozenset({'layer'})

  def draw(self, rnd: int, cohort: Sequence[int]) -> list[Selection]:
    """Draws the cohort's rows of the allocation matrix."""
    rows = [
      draw_row(self.seed, rnd, k, self.depth, self.budgets[k]) for k in cohort
    ]
    if self.coverage_repair:
      rng = host_rng('repair', self.seed, rnd)
      rows = repair_coverage(rows, self.depth, rng)
    return [Selection.of({'layer': row}) for row in rows]


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

  Rows that cover all layers stay. Otherwise new rows are drawn from all rows
  that cover or, if the budgets add up to less than the depth, from those that
  share no layer (`cover.py`). The result has the distribution of rows that are
  all redrawn until they cover.

  The authors' loop (server.py, commented out) is another rule. While a layer is
  uncovered, a random client takes as many of the uncovered layers as it can
  hold, and random covered ones for the rest, which may uncover its old layers.
  The loop need not end: with four clients that hold 8 of 32 layers it takes
  tens of thousands of redraws, or never stops. It also gives all missing layers
  to one client, so that this client's layers are not uniform.
  """
  if len(np.unique(np.concatenate(rows))) == depth:
    return rows
  return cover.draw_cover([len(row) for row in rows], depth, rng)

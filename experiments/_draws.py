"""Two methods that differ from FedRA in nothing but the draw.

`fedra_ablations.py` compares them:
  fedra_fixed   each client keeps the blocks of its first draw, so that a block
                has the same neighbours in every round;
  fedra_nested  the clients of a round share one random order of the blocks and
                each holds as many of the first as it can, so that what a small
                client trains has the most owners.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

from fedjax_tune import plugins
from fedjax_tune.engine.algorithm import Algorithm
from fedjax_tune.engine.randomness import host_rng
from fedjax_tune.methods.depth import layers, uniform
from fedjax_tune.methods.facts import Facts
from fedjax_tune.selection import Selection


@dataclasses.dataclass(frozen=True)
class Fixed(layers.Random):
  """FedRA's draw of round 0, in all rounds."""

  def draw(self, rnd: int, cohort: Sequence[int]) -> list[Selection]:
    """Returns the rows of the cohort."""
    del rnd
    return super().draw(0, cohort)


@dataclasses.dataclass(frozen=True)
class Nested(layers.Random):
  """One random order of the blocks a round, of which each holds the first."""

  def draw(self, rnd: int, cohort: Sequence[int]) -> list[Selection]:
    """Returns the rows of the cohort."""
    order = host_rng('nested', self.seed, rnd).permutation(self.depth)
    rows = (np.sort(order[: self.budgets[k]]) for k in cohort)
    return [Selection.of({'layer': row}) for row in rows]


def _build(rule: type[layers.Random], facts: Facts) -> Algorithm:
  """Builds FedRA with another draw."""
  drawn = rule(facts.depth, facts.budgets, facts.seed)
  return dataclasses.replace(uniform.build_all_large(facts), rule=drawn)


def build_fixed(facts: Facts) -> Algorithm:
  """Builds FedRA with a draw that stays."""
  return _build(Fixed, facts)


def build_nested(facts: Facts) -> Algorithm:
  """Builds FedRA with draws that lie within each other."""
  return _build(Nested, facts)


plugins.register_method('fedra_fixed', build_fixed)
plugins.register_method('fedra_nested', build_nested)

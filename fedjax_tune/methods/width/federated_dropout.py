"""Federated Dropout: random units of every width, new for each client and round.

Caldas, Konecny, McMahan, Talwalkar, "Expanding the Reach of Federated Learning
by Reducing Client Resource Requirements", arXiv 1812.07210.
"""

from collections.abc import Mapping
import dataclasses

import numpy as np

from fedjax_tune.engine.algorithm import Algorithm
from fedjax_tune.engine.randomness import host_rng
from fedjax_tune.methods.facts import Facts
from fedjax_tune.methods.width import rates


@dataclasses.dataclass(frozen=True)
class Random(rates.Prefix):
  """Random units, new for each client and round.

  One draw per axis serves all layers and heads: units of different layers have
  nothing to do with each other, so this is as random as a draw per layer.

  Attributes:
    seed: Seed of the run.
    purpose: Purpose of the draws, for `host_rng`.
  """

  seed: int
  purpose: str = 'allocation'

  def choose(
    self, rnd: int, client: int, amounts: Mapping[str, int]
  ) -> Mapping[str, np.ndarray | int]:
    """Returns distinct random indices, sorted."""
    rng = host_rng(self.purpose, self.seed, rnd, client)
    return {
      axis: np.sort(rng.permutation(size)[: amounts[axis]])
      for axis, size in sorted(self.sizes.items())
    }


def build(facts: Facts) -> Algorithm:
  """Builds Federated Dropout: random units, new for each client and round.

  Caldas, Konecny, McMahan, Talwalkar, "Expanding the Reach of Federated
  Learning by Reducing Client Resource Requirements", arXiv 1812.07210.
  """
  return rates.fedavg(facts, Random(*rates.of(facts), facts.seed))

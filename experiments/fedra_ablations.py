r"""What holds FedRA's training loss: the setting `feature`, one change a run.

  python -m launch.prepare --dataset=emoji_styles --image_size=42 \
    --weights=dinov2_vits14
  python -m launch.sweep --config=experiments/fedra_ablations.py --workdir=DIR \
    --methods=fedra,fixed=fedra_fixed,nested=fedra_nested,lr_0003=fedra:local.lr=0.0003,lr_003=fedra:local.lr=0.003,steps_15=fedra:local.steps=15:rounds=40 \
    --seeds=0 --last=3

Here are two methods that differ from FedRA in nothing but the draw:
  fedra_fixed   each client keeps the blocks of its first draw, so that a block
                has the same neighbours in every round;
  fedra_nested  the clients of a round share one random order of the blocks and
                each holds as many of the first as it can, so that what a small
                client trains has the most owners.

The setting after the colon is the blocks that each client holds, in place of
12/10/8/6/4/3: `fedra_ablations.py:9`.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

from experiments import fedra_emoji
from fedjax_tune import config, plugins
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


def get_config(blocks: str = '') -> config.Experiment:
  """Returns the experiment, `blocks` for each client where they are given."""
  experiment = fedra_emoji.get_config('feature')
  if blocks:
    experiment.clients.budgets = (int(blocks),) * 6
  experiment.imports = ('experiments.fedra_ablations',)
  return experiment

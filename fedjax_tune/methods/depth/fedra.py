"""FedRA: a random allocation of layers to clients, new every round.

Su, Li, Xue, "FedRA: A Random Allocation Strategy for Federated Tuning to
Unleash the Power of Heterogeneous Clients", arXiv 2311.11227; the authors'
code is github.com/leondada/FedRA (server.py `get_para_range` and
`agg_range_fill`).
"""

from collections.abc import Mapping
import dataclasses

from fedjax_tune import config
from fedjax_tune.engine.algorithm import Algorithm
from fedjax_tune.methods.depth import layers, uniform
from fedjax_tune.methods.facts import Facts


def build(facts: Facts) -> Algorithm:
  """Builds FedRA: its allocation, and otherwise FedAvg.

  A client with budget c gets c distinct layers, uniformly drawn, in their
  original order. Its model has only those blocks; a skipped block is the
  identity. The server averages each layer uniformly over the clients that held
  it, with A and B of LoRA separate, and head and patch adapter over all
  clients.

  With `fedra.coverage_repair` every layer has an owner in each round, for runs
  in which nobody can hold the whole model. The authors' code has a rule for
  this, commented out, which may never end; `layers.repair_coverage` says how
  ours differs. Whether the paper's tables used it is unknown.
  """
  repair = facts.experiment.fedra.coverage_repair
  rule = layers.Random(facts.depth, facts.budgets, facts.seed, repair)
  return dataclasses.replace(uniform.build_all_large(facts), rule=rule)


def check(
  experiment: config.Experiment,
  sizes: Mapping[str, int],
  budgets: tuple[int, ...],
) -> None:
  """Checks the options.

  Raises:
    ValueError: `fedra.coverage_repair` is set, but no cohort can hold all
      blocks.
  """
  depth, repair = sizes['layer'], experiment.fedra.coverage_repair
  together = sum(_largest_cohort(experiment.clients, budgets))
  if repair and together < depth:
    raise ValueError(
      f'fedra.coverage_repair=True needs a cohort that can hold all {depth}'
      f' blocks; clients.budgets of the largest add up to {together}.'
    )


def _largest_cohort(cfg: config.Clients, budgets: tuple[int, ...]) -> list[int]:
  """Returns the budgets of the cohort that can hold the most."""
  if cfg.cohort == 'uniform':
    return sorted(budgets)[-cfg.cohort_size :]
  # One of each domain, whose clients follow one another.
  return [
    max(budgets[i : i + cfg.count]) for i in range(0, len(budgets), cfg.count)
  ]

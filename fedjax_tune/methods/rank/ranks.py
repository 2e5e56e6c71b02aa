"""Clients of different LoRA rank: FedIT, RBLA, FFA-LoRA.

A client of rank r holds the first r columns of every A and the first r rows of
every B, in all blocks. The methods differ in what the server makes of A and B
of different ranks; a head is always averaged over all clients.
"""

from collections.abc import Mapping, Sequence
import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp

from fedjax_tune import config
from fedjax_tune.data.tasks import Task
from fedjax_tune.engine.algorithm import (
  Aggregator,
  Algorithm,
  Client,
  Context,
  Evaluation,
  Rule,
  Sent,
  fedavg_client,
)
from fedjax_tune.methods import compose, means
from fedjax_tune.methods.depth import layers
from fedjax_tune.methods.facts import Facts
from fedjax_tune.methods.rank import adapters
from fedjax_tune.models import foundation, linear
from fedjax_tune.models.foundation import Foundation
from fedjax_tune.selection import Selection
from fedjax_tune.typing import Axes, Tree


@dataclasses.dataclass(frozen=True)
class Prefix:
  """Each client holds the first ranks of every adapter.

  Attributes:
    ranks: Rank of each client.
  """

  ranks: tuple[int, ...]

  @property
  def axes(self) -> frozenset[str]:
    """The one axis that it decides."""
    return frozenset({'rank'})

  def draw(self, rnd: int, cohort: Sequence[int]) -> list[Selection]:
    """Returns the ranks of each client; they are the same in all rounds."""
    del rnd
    return [Selection.of({'rank': self.ranks[k]}) for k in cohort]


@dataclasses.dataclass(frozen=True)
class Ranks:
  """The adapters of a federation.

  Attributes:
    depth: Blocks of the model.
    ranks: Rank of each client.
    server_rank: Rank of the server's adapters, the largest.
    alpha: LoRA's alpha.
    scaling: 'common' or 'client', see `config.Rank`.
    axes: Axes of what trains.
    adapted: The adapted maps.
  """

  depth: int
  ranks: tuple[int, ...]
  server_rank: int
  alpha: float
  scaling: str
  axes: Axes
  adapted: adapters.Adapters

  @classmethod
  def of(cls, facts: Facts, found: Foundation) -> 'Ranks':
    """Reads the ranks of an experiment and its model.

    Raises:
      ValueError: The model has no adapters.
    """
    adapted = adapters.find(found.axes)
    if not adapted:
      raise ValueError(
        'lora.targets=() must name a linear map for methods of LoRA ranks.'
      )
    e = facts.experiment
    ranks = facts.fitted.get('rank') or in_turn(e, len(facts.budgets))
    return cls(
      depth=facts.depth,
      ranks=ranks,
      server_rank=e.lora.rank,
      alpha=e.lora.alpha,
      scaling=e.rank.scaling,
      axes=found.axes,
      adapted=adapted,
    )

  @property
  def rule(self) -> Rule:
    """All blocks, at each client's rank."""
    return compose.product(
      layers.whole(self.depth, len(self.ranks)), Prefix(self.ranks)
    )

  @property
  def smaller(self) -> list[int]:
    """The ranks below the server's, the largest first."""
    ranks = {rank for rank in self.ranks if rank < self.server_rank}
    return sorted(ranks, reverse=True)

  def evaluation(self, task: Task) -> Evaluation:
    """Evaluates the server's adapters, and those of clients of each rank."""
    models = {'full': Selection.of({'layer': self.depth})}
    for rank in self.smaller:
      held = {'layer': self.depth, 'rank': rank}
      models[f'rank{rank}'] = Selection.of(held)
    return Evaluation(task, models)

  @property
  def padded_mean(self) -> means.Merge:
    """Averages A and B separately, smaller ones padded with zeros.

    It sums the adapters themselves, and the change of everything else.
    """
    return means.filled_mean(self.axes, (), zeros=True)

  def scale(self, rank: int) -> float:
    """Returns the factor of a product A B of some rank."""
    common = self.scaling == 'common'
    return self.alpha / (self.server_rank if common else rank)


def in_turn(experiment: config.Experiment, clients: int) -> tuple[int, ...]:
  """Returns the rank of each client."""
  choices = experiment.rank.ranks or (experiment.lora.rank,)
  return tuple(choices[k % len(choices)] for k in range(clients))


def check(
  experiment: config.Experiment,
  sizes: Mapping[str, int],
  budgets: tuple[int, ...],
) -> None:
  """Checks the options.

  Raises:
    ValueError: Something other than LoRA trains, or the server's rank is not
      the largest of the clients'.
  """
  del sizes
  rank, lora = experiment.rank, experiment.lora
  if experiment.model.tune != 'lora':
    raise ValueError(
      f"model.tune={experiment.model.tune!r} must be 'lora' with"
      f' method={experiment.method!r}.'
    )
  ranks = in_turn(experiment, len(budgets))
  if max(ranks) != lora.rank:
    raise ValueError(
      f'rank.ranks={rank.ranks}: the largest that one of {len(ranks)} '
      f"clients has must be lora.rank={lora.rank}, the server's."
    )


def send_adapters(
  start: Tree, delta: Tree, steps: jax.Array, context: Context
) -> Sent:
  """Sends the adapters themselves, and the change of the head."""
  del steps
  end = adapters.change(jnp.add, delta, start)
  return Sent(end, jnp.ones(()), context.state)


def padding_client(task: Task) -> Client:
  """Returns the client that sends its adapters, for `Ranks.padded_mean`."""
  return dataclasses.replace(fedavg_client(task), finish=send_adapters)


def build_rbla(facts: Facts) -> Algorithm:
  """Builds RBLA: each rank is averaged over the clients that hold it.

  Chen, Tavallaie, Nazemi, Zomaya, "RBLA: Rank-Based-LoRA-Aggregation for
  Fine-tuning Heterogeneous Models in FLaaS", arXiv 2408.08699; its abstract was
  read, not its code. FediLoRA's dimension-wise mean is the same: the coverage
  mean, the default of every method here. A rank that few clients hold is
  averaged over few, so that the largest ranks move furthest.
  """
  found = facts.foundation()
  lora = Ranks.of(facts, found)
  return Algorithm(
    model=found,
    rule=lora.rule,
    client=fedavg_client(facts.task),
    aggregator=Aggregator(),
    evaluation=lora.evaluation(facts.task),
  )


def build_fedit(facts: Facts) -> Algorithm:
  """Builds FedIT: averages A and B separately, smaller ones padded with zeros.

  Zhang et al., "Towards Building the Federated GPT: Federated Instruction
  Tuning", arXiv 2305.05644, has one rank. Zero-padding for several ranks is the
  baseline of FLoRA's authors (github.com/ATP-1010/FederatedLLM,
  fed_utils/model_aggregation.py, `zero_padding`):

    A <- sum_k p_k pad(A_k),  B <- sum_k p_k pad(B_k),

  in which ranks that few clients hold shrink. They pad to the largest rank of
  all, so that ranks that no client of the cohort sends become zero. Here only
  their B becomes zero: the mean is the same, and if A and B were both zero,
  these ranks would never have a gradient again.

  They weight clients by examples, `server.weighting` 'examples'.
  """
  return _fedit(facts, facts.foundation())


def build_ffa_lora(facts: Facts) -> Algorithm:
  """Builds FFA-LoRA: A stays as drawn, the same for all clients; B trains.

  Sun, Li, Li, Ding, "Improving LoRA in Privacy-preserving Federated Learning",
  ICLR 2024, arXiv 2403.12313; summaries were read, not its code. The mean of
  products is then the product of means, at half the traffic. The paper has one
  rank, and weights clients equally; smaller B are padded with zeros here, which
  keeps the mean exact if `rank.scaling` is 'common'.
  """
  return _fedit(facts, _freeze_a(facts.foundation()))


def _fedit(facts: Facts, found: Foundation) -> Algorithm:
  lora = Ranks.of(facts, found)
  return Algorithm(
    model=found,
    rule=lora.rule,
    client=padding_client(facts.task),
    aggregator=Aggregator(lora.padded_mean),
    evaluation=lora.evaluation(facts.task),
  )


def _freeze_a(found: Foundation) -> Foundation:
  """Makes A frozen: it does not train and is not sent."""
  model = found.merge(found.base, found.theta)
  for _, module in nnx.iter_graph(model):
    if isinstance(module, linear.Linear) and module.adapter:
      a = module.lora_a
      module.lora_a = linear.Frozen(a[...], axes=a.get_metadata('axes'))
  return foundation.split(model, found.depth)

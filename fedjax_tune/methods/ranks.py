"""Clients of different LoRA rank: FedIT, RBLA, FFA-LoRA.

A client of rank r holds the first r columns of every A and the first r rows of
every B, in all blocks. What the server makes of A and B of different ranks is
what sets these methods apart; a head is always averaged over all clients.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any, Self

from flax import nnx
import jax
import jax.numpy as jnp

from fedjax_tune import config, foundation, selection
from fedjax_tune.engine.group import Row, Signature
from fedjax_tune.foundation import Foundation
from fedjax_tune.methods import adapters, base
from fedjax_tune.models import linear
from fedjax_tune.selection import GroupSum
from fedjax_tune.typing import Allocation, Tree


@dataclasses.dataclass(frozen=True)
class Rbla(base.Method):
  """RBLA: each rank is averaged over the clients that hold it.

  Chen, Tavallaie, Nazemi, Zomaya, "RBLA: Rank-Based-LoRA-Aggregation for
  Fine-tuning Heterogeneous Models in FLaaS", arXiv 2408.08699; its abstract
  was read, not its code. FediLoRA's dimension-wise mean is the same: the
  coverage mean, the default of every method here. A rank is averaged over few
  if few hold it, so that the largest ranks move furthest.

  Attributes:
    ranks: Rank of each client.
    server_rank: Rank of the server's adapters, the largest.
    alpha: LoRA's alpha.
    scaling: 'common' or 'client', see `method_config.Rank`.
    adapted: The adapted maps; `study` notes them.
  """

  ranks: tuple[int, ...]
  server_rank: int
  alpha: float
  scaling: str
  adapted: adapters.Adapters = dataclasses.field(
    default_factory=dict, kw_only=True
  )

  @classmethod
  def build(
    cls,
    experiment: config.Experiment,
    sizes: Mapping[str, int],
    budgets: tuple[int, ...],
    **options: Any,
  ) -> Self:
    """Builds the method from an experiment.

    Raises:
      ValueError: Something other than LoRA trains, or the server's rank is
        not the largest of the clients'.
    """
    rank, lora = experiment.rank, experiment.lora
    if experiment.model.tune != 'lora':
      raise ValueError(
        f"model.tune={experiment.model.tune!r} must be 'lora' with"
        f' method={experiment.method!r}.'
      )
    choices = rank.ranks or (lora.rank,)
    in_turn = [choices[k % len(choices)] for k in range(len(budgets))]
    if max(in_turn) != lora.rank:
      raise ValueError(
        f'rank.ranks={rank.ranks}: the largest that one of {len(in_turn)} '
        f"clients has must be lora.rank={lora.rank}, the server's."
      )
    return cls(
      depth=sizes['layer'],
      budgets=budgets,
      seed=experiment.seed,
      ranks=tuple(in_turn),
      server_rank=lora.rank,
      alpha=lora.alpha,
      scaling=rank.scaling,
      **options,
    )

  def study(self, found: Foundation) -> Self:
    """Notes where the adapters are.

    Raises:
      ValueError: There are none.
    """
    adapted = adapters.find(found.axes)
    if not adapted:
      raise ValueError(
        'lora.targets=() must name a linear map for methods of LoRA ranks.'
      )
    return dataclasses.replace(self, adapted=adapted)

  def allocate(self, rnd: int, cohort: Sequence[int]) -> list[Row]:
    """Returns all blocks, at the client's rank."""
    del rnd
    return [{'layer': self.depth, 'rank': self.ranks[k]} for k in cohort]

  def evaluations(self) -> dict[str, Row]:
    """Evaluates the server's adapters, and what clients of each rank get."""
    rows: dict[str, Row] = {'full': {'layer': self.depth}}
    smaller = {rank for rank in self.ranks if rank < self.server_rank}
    for rank in sorted(smaller, reverse=True):
      rows[f'rank{rank}'] = {'layer': self.depth, 'rank': rank}
    return rows

  def scale(self, rank: int) -> float:
    """Returns by what a product A B of a rank is multiplied."""
    common = self.scaling == 'common'
    return self.alpha / (self.server_rank if common else rank)


@dataclasses.dataclass(frozen=True)
class FedIT(Rbla):
  """FedIT: A and B are averaged apart, smaller ones filled up with zeros.

  Zhang et al., "Towards Building the Federated GPT: Federated Instruction
  Tuning", arXiv 2305.05644, knows one rank. Zero-padding for several is the
  baseline of FLoRA's authors (github.com/ATP-1010/FederatedLLM,
  fed_utils/model_aggregation.py, `zero_padding`):

    A <- sum_k p_k pad(A_k),  B <- sum_k p_k pad(B_k),

  in which ranks that few hold shrink. They pad to the largest rank of all, so
  that ranks of which a cohort sends nothing become zero. Here only B does: the
  mean is the same, and with A and B zero at once these ranks would have no
  gradient ever again.

  They weight clients by examples, `server.weighting` 'examples'.
  """

  def upload(
    self, sig: Signature, start: Tree, delta: Tree, alloc: Allocation
  ) -> Tree:
    """Sends the adapters themselves, of the head the change."""
    del sig, alloc
    return adapters.change(jnp.add, delta, start)

  def merge(
    self, theta: Tree, totals: Mapping[Any, GroupSum], memory: Tree
  ) -> tuple[base.Update, Tree]:
    """Divides by the weight of all clients, for everyone holds rank one."""
    total = base.everyone(totals)
    weight = jax.tree.map(jnp.max, total.den)
    mean = selection.coverage_mean(GroupSum(total.num, weight))
    delta = adapters.change(jnp.subtract, mean, theta)
    covered = jax.tree.map_with_path(_padded, mean, weight)
    return base.Update(delta, covered), memory


def _padded(path: Sequence[Any], mean: jax.Array, weight: jax.Array) -> Any:
  """Says what the mean replaces: all, but ranks of A that nobody sent."""
  if path[-1].key != 'lora_a':  # [..., R]
    return weight > 0
  return jnp.any(mean != 0, range(mean.ndim - 1))


@dataclasses.dataclass(frozen=True)
class FfaLora(FedIT):
  """FFA-LoRA: every A stays as it was drawn, the same for all; B trains.

  Sun, Li, Li, Ding, "Improving LoRA in Privacy-preserving Federated Learning",
  ICLR 2024, arXiv 2403.12313; read in summaries, not its code. The mean of
  products is then the product of means, at half the traffic. The paper knows
  one rank, and weights clients alike; smaller B are filled up with zeros, which
  keeps the mean exact if `rank.scaling` is 'common'.
  """

  def prepare(self, found: Foundation) -> Foundation:
    """Makes A frozen parameters: they don't train, and they don't travel."""
    model: Any = found.merge(found.base, found.theta)
    for _, module in nnx.iter_modules(model):
      if isinstance(module, linear.Linear) and module.adapter:
        a = module.lora_a
        module.lora_a = linear.Frozen(a[...], axes=a.get_metadata('axes'))
    return foundation.split(model, found.depth)

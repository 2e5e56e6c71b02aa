"""HetLoRA: ranks that prune themselves, and a mean that prefers full ones.

Cho, Liu, Xu, Fahrezi, Joshi, "Heterogeneous LoRA for Federated Fine-tuning of
On-Device Foundation Models", EMNLP 2024, arXiv 2401.06432. Its abstract and
figures were read; there is no code of its authors.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array
import numpy as np

from fedjax_tune import config, selection
from fedjax_tune.engine.client import Batch
from fedjax_tune.engine.group import Row, Signature
from fedjax_tune.methods import adapters, base, ranks
from fedjax_tune.selection import GroupSum
from fedjax_tune.typing import Allocation, Axes, Tree


@dataclasses.dataclass(frozen=True)
class HetLora(ranks.FedIT):
  """FedIT whose clients give up ranks, weighted by how much theirs do.

  A client gets the first r_k ranks and minimises

    loss + penalty * sum ||A_tail|| ||B_tail||,

  the tail being its ranks from gamma r_k on, the sum over adapted maps. If its
  sum is smaller after training than before, the client keeps gamma r_k ranks
  (rounded down, at least one) from then on. The server fills A and B up with
  zeros and weights clients by ||A_k B_k||, the Frobenius norm over all maps.

  How the paper rounds, and which norm it takes over many maps, is not known
  here; its weights know no number of examples, as `server.weighting` has it
  unless told otherwise; a head, which it has not, gets the same weights.

  The current ranks are the server's memory. Since programs are compiled for
  the rank that a client has at first, ranks it gave up are zeros in A and in
  B, which have no gradient; costs are counted as if it still had them.

  Attributes:
    gamma: Share of the ranks that survives; 1 turns pruning off.
    penalty: Coefficient of the tail's norms.
  """

  gamma: float = dataclasses.field(kw_only=True)
  penalty: float = dataclasses.field(kw_only=True)

  def allocate(self, rnd: int, cohort: Sequence[int]) -> list[Row]:
    """Adds whose rank to remember."""
    rows = super().allocate(rnd, cohort)
    return [
      {**row, 'client': np.array([k], np.int32)}
      for row, k in zip(rows, cohort, strict=True)
    ]

  def init_memory(self, theta: Tree) -> Tree:
    """Returns the current rank of each client, float32 [clients]."""
    del theta
    return {'rank': jnp.asarray(self.ranks, jnp.float32)}

  def begin(
    self,
    sig: Signature,
    held: Tree,
    alloc: Allocation,
    memory: Tree,
    key: jax.Array,
  ) -> Tree:
    """Silences the ranks that the client has given up."""
    del key
    rank = memory['rank'][jnp.asarray(alloc['client'])[0]]
    alive_R = jnp.arange(sig['rank']) < rank

    def silence(a, b, stack):
      rows = alive_R.reshape(-1, *[1] * (b.ndim - stack - 1))
      return jnp.where(alive_R, a, 0), jnp.where(rows, b, 0)

    return adapters.change_pairs(silence, held, self.adapted)

  def loss(
    self,
    sig: Signature,
    model: Any,
    alloc: Allocation,
    batch: Batch,
    key: jax.Array,
    rnd: jax.Array,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Adds the norms of the tail; metrics are the task's."""
    loss, metrics = super().loss(sig, model, alloc, batch, key, rnd)
    lora = nnx.to_pure_dict(nnx.state(model, nnx.LoRAParam))
    return loss + self.penalty * self.tail(lora), metrics

  def tail(self, local: Tree) -> jax.Array:
    """Returns the sum of ||A_tail|| ||B_tail|| over all adapted maps."""
    rank = self.current(local)
    keep = jnp.maximum(jnp.floor(self.gamma * rank), 1)
    total = jnp.zeros(())
    for path, stack in self.adapted.items():
      a, b = adapters.matrices(*adapters.pair(local, path), stack)
      cut_R = jnp.arange(a.shape[-1]) >= keep
      norms = _norm(jnp.where(cut_R, a, 0)) * _norm(
        jnp.where(cut_R[:, None], b, 0)
      )
      total += jnp.sum(norms)
    return total

  def current(self, local: Tree) -> jax.Array:
    """Returns a client's rank: ranks given up are zeros in A and B."""
    path, stack = next(iter(self.adapted.items()))
    a, b = adapters.matrices(*adapters.pair(local, path), stack)
    a_IxR = a.reshape(-1, a.shape[-1])
    b_OxR = jnp.swapaxes(b, -1, -2).reshape(-1, a.shape[-1])
    alive_R = jnp.any(a_IxR != 0, 0) | jnp.any(b_OxR != 0, 0)
    return jnp.sum(alive_R).astype(jnp.float32)

  def upload(
    self, sig: Signature, start: Tree, delta: Tree, alloc: Allocation
  ) -> Tree:
    """Sends the adapters, and the rank that the client will have."""
    end = super().upload(sig, start, delta, alloc)
    rank = self.current(start)
    less = jnp.maximum(jnp.floor(self.gamma * rank), 1)
    smaller = self.tail(end) < self.tail(start)
    return {'theta': end, 'rank': jnp.where(smaller, less, rank)[None]}

  def sums(self, theta: Tree, axes: Axes) -> tuple[Tree, Axes]:
    """Adds the ranks of all clients."""
    every = jax.ShapeDtypeStruct((len(self.ranks),), np.float32)
    return {'theta': theta, 'rank': every}, {'theta': axes, 'rank': ('client',)}

  def weigh(self, sig: Signature, start: Tree, delta: Tree) -> jax.Array:
    """Returns the norm of what the client's adapters multiply to."""
    del sig
    end = adapters.change(jnp.add, delta, start)
    square = jnp.zeros(())
    for path, stack in self.adapted.items():
      a, b = adapters.matrices(*adapters.pair(end, path), stack)
      inner = jnp.swapaxes(a, -1, -2) @ a, b @ jnp.swapaxes(b, -1, -2)
      square += jnp.sum(inner[0] * inner[1])
    return jnp.sqrt(jnp.maximum(square, 0))

  def merge(
    self, theta: Tree, totals: Mapping[Any, GroupSum], memory: Tree
  ) -> tuple[base.Update, Tree]:
    """Averages as FedIT, and notes the ranks of who took part."""
    num, den = base.everyone(totals)
    part = GroupSum(num['theta'], den['theta'])
    update, _ = super().merge(theta, {'all': part}, memory)
    rank = selection.coverage_mean(GroupSum(num['rank'], den['rank']))
    known = jnp.where(den['rank'] > 0, jnp.round(rank), memory['rank'])
    return update, {'rank': known}


def _norm(x: Array) -> jax.Array:
  """Returns the norms of matrices; at zero their gradient is zero."""
  square = jnp.sum(x**2, (-2, -1))
  some = square > 0
  return jnp.where(some, jnp.sqrt(jnp.where(some, square, 1)), 0)


def build(
  experiment: config.Experiment,
  sizes: Mapping[str, int],
  budgets: tuple[int, ...],
) -> HetLora:
  """Builds HetLoRA from an experiment."""
  options = experiment.hetlora
  return HetLora.build(
    experiment,
    sizes,
    budgets,
    gamma=options.gamma,
    penalty=options.penalty,
  )

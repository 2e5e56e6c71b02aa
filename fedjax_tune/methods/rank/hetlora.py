"""HetLoRA: ranks that prune themselves, and a mean that prefers full ones.

Cho, Liu, Xu, Fahrezi, Joshi, "Heterogeneous LoRA for Federated Fine-tuning of
On-Device Foundation Models", EMNLP 2024, arXiv 2401.06432. Its abstract and
figures were read; its authors published no code.
"""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array
import numpy as np

from fedjax_tune.engine.algorithm import (
  Aggregator,
  Algorithm,
  Client,
  Context,
  LossAndSums,
  Sent,
  fedavg_client,
)
from fedjax_tune.engine.client import Batch
from fedjax_tune.methods import compose
from fedjax_tune.methods.facts import Facts
from fedjax_tune.methods.rank import adapters, ranks
from fedjax_tune.models.foundation import Model
from fedjax_tune.typing import Tree


@dataclasses.dataclass(frozen=True)
class Pruning:
  """How a client gives up ranks.

  A client keeps gamma r_k of its ranks (rounded down, at least one) when the
  rest matters less than it did, that is, when the norms of the tail (the ranks
  from there on) are smaller after training than before.

  Attributes:
    adapted: The adapted maps.
    gamma: Share of the ranks that survives; 1 turns pruning off.
    penalty: Coefficient of the tail's norms in the loss.
  """

  adapted: adapters.Adapters
  gamma: float
  penalty: float

  def tail(self, local: Tree) -> jax.Array:
    """Returns the sum of ||A_tail|| ||B_tail|| over all adapted maps."""
    keep = self.fewer(self.current(local))
    total = jnp.zeros(())
    for path, stack in self.adapted.items():
      a, b = adapters.matrices(*adapters.pair(local, path), stack)
      cut_R = jnp.arange(a.shape[-1]) >= keep
      norms = _norm(jnp.where(cut_R, a, 0)) * _norm(
        jnp.where(cut_R[:, None], b, 0)
      )
      total += jnp.sum(norms)
    return total

  def fewer(self, rank: jax.Array) -> jax.Array:
    """Returns how many ranks are left after pruning."""
    return jnp.maximum(jnp.floor(self.gamma * rank), 1)

  def current(self, local: Tree) -> jax.Array:
    """Returns a client's rank: ranks given up are zeros in A and B."""
    path, stack = next(iter(self.adapted.items()))
    a, b = adapters.matrices(*adapters.pair(local, path), stack)
    a_IxR = a.reshape(-1, a.shape[-1])
    b_OxR = jnp.swapaxes(b, -1, -2).reshape(-1, a.shape[-1])
    alive_R = jnp.any(a_IxR != 0, 0) | jnp.any(b_OxR != 0, 0)
    return jnp.sum(alive_R).astype(jnp.float32)

  def weigh(self, end: Tree) -> jax.Array:
    """Returns the norm of the products of a client's adapters."""
    square = jnp.zeros(())
    for path, stack in self.adapted.items():
      a, b = adapters.matrices(*adapters.pair(end, path), stack)
      inner = jnp.swapaxes(a, -1, -2) @ a, b @ jnp.swapaxes(b, -1, -2)
      square += jnp.sum(inner[0] * inner[1])
    return jnp.sqrt(jnp.maximum(square, 0))


def pruned(
  inner: Client, pruning: Pruning, client_ranks: tuple[int, ...]
) -> Client:
  """Returns the client that also prunes its own ranks.

  It minimises

    loss + penalty * sum ||A_tail|| ||B_tail||,

  the sum over adapted maps, and remembers its rank. Programs are compiled for
  the client's first rank. So ranks that it gave up are zeros in A and B, which
  have no gradient; costs are counted as if it still had them.

  Args:
    inner: The client that does not prune.
    pruning: How ranks are given up.
    client_ranks: Rank of each client at first.
  """

  def init(held: Tree, context: Context, key: jax.Array) -> Tree:
    """Silences the ranks that the client has given up."""
    del key
    alive_R = jnp.arange(context.sig['rank']) < context.state['rank']

    def silence(a, b, stack):
      rows = alive_R.reshape(-1, *[1] * (b.ndim - stack - 1))
      return jnp.where(alive_R, a, 0), jnp.where(rows, b, 0)

    return adapters.change_pairs(silence, held, pruning.adapted)

  def loss(
    model: Model, batch: Batch, context: Context, key: jax.Array
  ) -> LossAndSums:
    """Adds the norms of the tail; metrics are the task's."""
    total, metrics = inner.loss(model, batch, context, key)
    lora = nnx.to_pure_dict(nnx.state(model, nnx.LoRAParam))
    return total + pruning.penalty * pruning.tail(lora), metrics

  def finish(
    start: Tree, delta: Tree, steps: jax.Array, context: Context
  ) -> Sent:
    """Sends the adapters, and notes the next rank."""
    end, _, _ = ranks.send_adapters(start, delta, steps, context)
    rank = pruning.current(start)
    smaller = pruning.tail(end) < pruning.tail(start)
    state = {'rank': jnp.where(smaller, pruning.fewer(rank), rank)}
    return Sent(end, jnp.ones(()), state)

  client = dataclasses.replace(
    inner,
    init=init,
    loss=loss,
    by_example=False,  # The penalty would be computed anew for each part.
    finish=finish,
    state=lambda k: {'rank': np.float32(client_ranks[k])},
  )
  return compose.weighted_by(pruning.weigh, client)


def _norm(x: Array) -> jax.Array:
  """Returns the norms of matrices; at zero their gradient is zero."""
  square = jnp.sum(x**2, (-2, -1))
  some = square > 0
  return jnp.where(some, jnp.sqrt(jnp.where(some, square, 1)), 0)


def build(facts: Facts) -> Algorithm:
  """Builds HetLoRA: FedIT whose clients give up ranks, weighted by their norm.

  The server pads A and B with zeros and weights clients by ||A_k B_k||, the
  Frobenius norm over all maps.

  How the paper rounds, and which norm it takes over many maps, is not known
  here. Its weights do not depend on the number of examples, which is also the
  default of `server.weighting`. The paper has no head; here a head gets the
  same weights.
  """
  found, options = facts.foundation(), facts.experiment.hetlora
  lora = ranks.Ranks.of(facts, found)
  pruning = Pruning(lora.adapted, options.gamma, options.penalty)
  return Algorithm(
    model=found,
    rule=lora.rule,
    client=pruned(fedavg_client(facts.task), pruning, lora.ranks),
    aggregator=Aggregator(lora.padded_mean),
    evaluation=lora.evaluation(facts.task),
  )

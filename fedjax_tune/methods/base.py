"""What a method decides, and the defaults that most of them share."""

from collections.abc import Hashable, Mapping, Sequence
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_tune import selection
from fedjax_tune.engine.client import Batch
from fedjax_tune.engine.group import Row, Signature
from fedjax_tune.selection import GroupSum
from fedjax_tune.typing import Allocation, Axes, Tree


class Update(NamedTuple):
  """What the server optimizer gets.

  Attributes:
    delta: Mean change, shaped like theta.
    covered: bool, broadcastable to theta; where False neither theta nor the
      server optimizer's state moves.
  """

  delta: Tree
  covered: Tree


@dataclasses.dataclass(frozen=True)
class Method:
  """A federated method over clients that hold some blocks of a model.

  Subclasses override what they decide; the defaults are FedAvg of clients
  that each hold a prefix of the blocks.

  Attributes:
    depth: Blocks of the full model, L.
    budgets: For each client how many blocks it can hold.
    seed: Seed of the run; the only source of the method's randomness besides
      the round and the client's id.
  """

  depth: int
  budgets: tuple[int, ...]
  seed: int

  # -- before the first round

  def init(self, theta: Tree, axes: Axes) -> tuple[Tree, Axes]:
    """Adds what the method trains besides the model's own theta."""
    return theta, axes

  def init_memory(self, theta: Tree) -> Tree:
    """Returns what the server remembers between rounds besides theta."""
    del theta
    return ()

  def eligible(self) -> np.ndarray:
    """Says which clients may take part, bool [clients]."""
    return np.ones(len(self.budgets), bool)

  # -- planning, on the host; a function of (seed, round, client) only

  def signature(self, client: int) -> Signature:
    """Returns how much a client holds."""
    return Signature((('layer', self.budgets[client]),))

  def allocate(self, rnd: int, cohort: Sequence[int]) -> list[Row]:
    """Returns which indices each client of the cohort holds this round."""
    del rnd
    return [{'layer': np.arange(self.budgets[k])} for k in cohort]

  # -- on the device

  def loss(
    self,
    sig: Signature,
    model: Any,
    alloc: Allocation,
    batch: Batch,
    key: jax.Array,
    rnd: jax.Array,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes a client's loss on a batch.

    Args:
      sig: The client's signature (static).
      model: The model around the client's selection.
      alloc: The client's indices [n] along each selected axis.
      batch: Examples [B].
      key: Key of this step, for dropout.
      rnd: The round, int32.

    Returns:
      The mean loss, and metrics as sums: at least `loss`, `correct`, `count`.
    """
    del sig, rnd
    logits_BxK = model(batch.image, alloc['layer'], key=key)
    return cross_entropy(logits_BxK, batch)

  def bucket(self, sig: Signature) -> Hashable:
    """Names the sum that a group's deltas are added to."""
    del sig
    return 'all'

  def merge(
    self, totals: Mapping[Any, GroupSum], memory: Tree
  ) -> tuple[Update, Tree]:
    """Turns the sums of a round into one update; coverage mean by default."""
    total = jax.tree.map(lambda *xs: sum(xs), *totals.values())
    return covered_mean(total), memory

  # -- evaluation

  def evaluations(self) -> dict[str, dict[str, np.ndarray]]:
    """Names the models to evaluate, as allocations; the first is *the* one."""
    return {'full': {'layer': np.arange(self.depth)}}

  def predict(
    self, name: str, model: Any, alloc: Allocation, images: jax.Array
  ) -> jax.Array:
    """Returns scores [B, K] of the evaluation called `name`."""
    del name
    return model(images, alloc['layer'])


def covered_mean(total: GroupSum) -> Update:
  """Averages each coordinate over its holders; nobody's stay."""
  covered = jax.tree.map(lambda d: d > 0, total.den)
  return Update(selection.coverage_mean(total), covered)


def cross_entropy(
  logits_BxK: jax.Array, batch: Batch
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Mean cross entropy over the valid examples, with metric sums."""
  losses_B = optax.softmax_cross_entropy_with_integer_labels(
    logits_BxK, batch.label
  )
  valid_B = batch.valid.astype(losses_B.dtype)
  count = jnp.sum(valid_B)
  loss_sum = jnp.sum(losses_B * valid_B)
  hits_B = jnp.argmax(logits_BxK, -1) == batch.label
  metrics = {
    'loss': loss_sum,
    'correct': jnp.sum(hits_B * valid_B),
    'count': count,
  }
  return loss_sum / jnp.maximum(count, 1), metrics

"""What a method decides, and the defaults that most of them share."""

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
import dataclasses
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_tune import selection
from fedjax_tune.engine.client import Batch
from fedjax_tune.engine.cost import Traffic, num_bytes
from fedjax_tune.engine.group import Row, Signature
from fedjax_tune.foundation import Foundation
from fedjax_tune.selection import GroupSum
from fedjax_tune.tasks import Task
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
    task: What is learned; set by `meet`.
  """

  depth: int
  budgets: tuple[int, ...]
  seed: int
  task: Task = dataclasses.field(
    default=Task('classification', 1), kw_only=True
  )

  # -- before the first round

  def meet(self, task: Task, present: np.ndarray | None) -> Self:
    """Returns the method for a task and clients' data.

    Args:
      task: What is learned.
      present: Which classes each client has, bool [clients, K]; None where
        there are no classes.
    """
    del present
    return dataclasses.replace(self, task=task)

  def init(self, theta: Tree, axes: Axes) -> tuple[Tree, Axes]:
    """Adds what the method trains besides the model's own theta."""
    return theta, axes

  def init_memory(self, theta: Tree) -> Tree:
    """Returns what the server remembers between rounds besides theta."""
    del theta
    return ()

  def eligible(self, rnd: int) -> np.ndarray:
    """Says which clients may take part in a round, bool [clients]."""
    del rnd
    return np.ones(len(self.budgets), bool)

  def tier(self, client: int) -> str:
    """Names the model that a client has; '' where all have one."""
    del client
    return ''

  def prepare(self, found: Foundation) -> Foundation:
    """Returns the model as the method starts with it."""
    return found

  def study(self, found: Foundation) -> Self:
    """Returns the method for the model that `prepare` returned."""
    del found
    return self

  # -- planning, on the host; a function of (seed, round, client) only

  def allocate(self, rnd: int, cohort: Sequence[int]) -> list[Row]:
    """Returns what each client of the cohort holds this round.

    Each row has 'layer'; how much a row holds is a program to compile.
    """
    del rnd
    return [{'layer': self.budgets[k]} for k in cohort]

  def notes(self) -> Collection[str]:
    """Names what rows tell besides how much of which axis is held."""
    return ()

  def traffic(
    self,
    sig: Signature,
    cohort: Sequence[Signature],
    held: Callable[[Signature], Tree],
  ) -> Traffic:
    """Counts what a client sends and receives in a round; theta by default.

    Args:
      sig: The client's signature.
      cohort: Those of all clients of the round, its own among them.
      held: Gives the shapes of a client's part of theta.
    """
    del cohort
    size = num_bytes(held(sig))
    return Traffic(size, size)

  # -- on the device: a client trains

  def begin(
    self,
    sig: Signature,
    held: Tree,
    alloc: Allocation,
    memory: Tree,
    key: jax.Array,
  ) -> Tree:
    """Returns what a client trains from; what it holds, by default.

    Args:
      sig: The client's signature (static).
      held: Its part of theta.
      alloc: What it holds along each selected axis.
      memory: What the server remembers.
      key: The client's key of this round, for no other purpose.
    """
    del sig, alloc, memory, key
    return held

  def view(self, sig: Signature, local: Tree, alloc: Allocation) -> Tree:
    """Returns a client's parameters as its model shall see them.

    Gradients flow through it: what it stops does not train.
    """
    del sig, alloc
    return local

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
      alloc: What the client holds along each selected axis.
      batch: Examples [B].
      key: Key of this step, for dropout.
      rnd: The round, int32.

    Returns:
      The mean loss, and metrics as sums: at least `loss`, `correct`, `count`.
    """
    del sig, rnd
    return self.task.loss(self.outputs(model, batch.inputs, alloc, key), batch)

  def outputs(
    self,
    model: Any,
    inputs: Any,
    alloc: Allocation,
    key: jax.Array | None = None,
  ) -> jax.Array:
    """Returns what the task reads: [B, K], or [B, T, 2] for spans."""
    return model(inputs, layer_ids(alloc), key=key)

  # -- on the device: what it sends, and what the server makes of that

  def upload(
    self, sig: Signature, start: Tree, delta: Tree, alloc: Allocation
  ) -> Tree:
    """Returns what of a client is summed; the change of what it trained.

    Args:
      sig: The client's signature.
      start: What it trained from.
      delta: How it changed.
      alloc: What it holds along each selected axis.
    """
    del sig, start, alloc
    return delta

  def sums(self, theta: Tree, axes: Axes) -> tuple[Tree, Axes]:
    """Returns what uploads look like on the server: shapes, and their axes."""
    return theta, axes

  def counts(self, alloc: Allocation) -> Allocation:
    """Returns where along each axis what a client sends is summed.

    What it holds, by default. An axis more, or an index outside one, keeps a
    part out of the sums and out of the weights that they are divided by.

    Args:
      alloc: What it holds along each selected axis, or what several clients
        hold, with a leading axis.
    """
    return alloc

  def weigh(self, sig: Signature, start: Tree, delta: Tree) -> jax.Array:
    """Returns a factor of the client's weight in the sums, a scalar."""
    del sig, start, delta
    return jnp.ones(())

  def bucket(self, sig: Signature) -> Hashable:
    """Names the sum that a group's deltas are added to."""
    del sig
    return 'all'

  def merge(
    self, theta: Tree, totals: Mapping[Any, GroupSum], memory: Tree
  ) -> tuple[Update, Tree]:
    """Turns the sums of a round into one update; coverage mean by default."""
    del theta
    return covered_mean(everyone(totals)), memory

  def ground(self, memory: Tree) -> Tree:
    """Returns what the server has added to frozen parameters, in all rounds.

    Nested dicts with the leaves that it changed; {} where it changed none.
    """
    del memory
    return {}

  def reorder(self, theta: Tree, axes: Axes) -> Callable[[Tree], Tree] | None:
    """Returns how to reorder trees shaped like theta before the next round."""
    del theta, axes
    return None

  # -- evaluation

  def evaluations(self) -> dict[str, Row]:
    """Names the models to evaluate, as allocations."""
    return {'full': {'layer': self.depth}}

  def headline(self) -> dict[str, float]:
    """Weighs the evaluations in the one number; the first is it, as a rule."""
    return {next(iter(self.evaluations())): 1.0}

  def predict(
    self, name: str, model: Any, alloc: Allocation, inputs: Any
  ) -> jax.Array:
    """Returns the outputs of the evaluation called `name`."""
    del name
    return self.outputs(model, inputs, alloc)


def everyone(totals: Mapping[Any, GroupSum]) -> GroupSum:
  """Returns the sum over all buckets."""
  return jax.tree.map(lambda *xs: sum(xs), *totals.values())


def refuse_decoder(sizes: Mapping[str, int], field: str, why: str) -> None:
  """Raises a ValueError where the model has rotary positions."""
  if 'rotary' in sizes:
    raise ValueError(f'{field} does not serve a decoder: {why}.')


def covered_mean(total: GroupSum) -> Update:
  """Averages each coordinate over its holders; nobody's stay."""
  covered = jax.tree.map(lambda d: d != 0, total.den)
  return Update(selection.coverage_mean(total), covered)


def layer_ids(alloc: Allocation) -> jax.Array | np.ndarray:
  """Returns the ids of the held blocks, int [n]."""
  held = alloc['layer']
  return np.arange(held) if isinstance(held, int) else held

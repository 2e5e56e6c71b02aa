"""InclusiveFL: prefixes of blocks; each size has its own top and head.

Liu, Wu, Wu, Wang, Lyu, Chen, Xie, "No One Left Behind: Inclusive Federated
Learning over Heterogeneous Devices", KDD 2022, doi 10.1145/3534678.3539086;
the authors' code is github.com/Rachelxuan11/InclusiveFL (server.py
`Aggregator_mom`, `HeteAgg_mom`; run_fl.py).
"""

from collections.abc import Mapping
import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_tune import config, selection
from fedjax_tune.data.tasks import Task
from fedjax_tune.engine.algorithm import (
  Aggregator,
  Algorithm,
  Alone,
  Client,
  Context,
  Evaluation,
  GroupSums,
  LossAndSums,
  Update,
  average_held,
  layer_ids,
)
from fedjax_tune.engine.client import Batch
from fedjax_tune.methods import compose
from fedjax_tune.methods.depth import classifiers, layers, uniform
from fedjax_tune.methods.facts import Facts
from fedjax_tune.models.foundation import Foundation, Model
from fedjax_tune.selection import GroupSum, Selection
from fedjax_tune.typing import Allocation, Inputs, Tree


@dataclasses.dataclass(frozen=True)
class Sizes:
  """The sizes of model that the server keeps: the distinct budgets.

  A size c has the first c blocks. Its top block and its classifier are its own;
  the blocks below are shared with the larger sizes. A size is a selection: the
  adapters' axis 'slot' has a row per block, then a row for the top of each
  smaller size (the largest size's top is the block's own row), and the head's
  axis 'classifier' has a classifier per size.

  Attributes:
    depth: Blocks of the full model, L.
    budgets: How many blocks each client can hold.
  """

  depth: int
  budgets: tuple[int, ...]

  @property
  def all(self) -> tuple[int, ...]:
    """The sizes, ascending."""
    return tuple(sorted(set(self.budgets)))

  def slots(self, size: int) -> np.ndarray:
    """Returns the adapter rows of a size, bottom to top, int [size]."""
    *smaller, _ = self.all
    own = size in smaller
    top = self.depth + smaller.index(size) if own else size - 1
    return np.append(np.arange(size - 1), top)

  def held(self, size: int) -> Selection:
    """Returns the frozen blocks, adapter rows and classifier of a size."""
    own = np.array([self.all.index(size)])
    return Selection.of(
      {'layer': np.arange(size), 'slot': self.slots(size), 'classifier': own}
    )

  @property
  def names(self) -> dict[str, int]:
    """The sizes by the name of their model, the full one first."""
    *smaller, largest = self.all
    return {'full': largest} | {f'depth{size}': size for size in smaller}

  def alone(self, theta: Tree, clients: Mapping[int, Tree]) -> dict[str, Alone]:
    """Returns the model of each size, with its own top block and classifier."""
    del clients

    def take(size: int) -> Alone:
      slots, own = self.slots(size), self.all.index(size)
      parts = {
        'blocks': jax.tree.map(lambda x: x[slots], theta['blocks']),
        'head': jax.tree.map(lambda x: x[own], theta['head']),
      }
      return Alone({**theta, **parts}, {'layer': size})

    return {name: take(size) for name, size in self.names.items()}

  def grow(self, found: Foundation) -> Foundation:
    """Adds a top per smaller size and a head per size, as copies."""
    theta, axes = found.theta, found.axes
    tops = np.array(self.all[:-1], int) - 1
    zeros = np.zeros(len(self.all), int)
    blocks, head = theta['blocks'], theta['head']
    add = lambda x: jnp.concatenate([x, x[tops]])
    copy = lambda x: x[None][zeros]
    slot = lambda _, names: ('slot', *names[1:])
    classifier = lambda _, names: ('classifier', *names)
    grown = {
      'blocks': jax.tree.map(add, blocks),
      'head': jax.tree.map(copy, head),
    }
    renamed = {
      'blocks': jax.tree.map(slot, blocks, axes['blocks']),
      'head': jax.tree.map(classifier, head, axes['head']),
    }
    return dataclasses.replace(
      found, theta={**theta, **grown}, axes={**axes, **renamed}
    )


def client(task: Task) -> Client:
  """Returns the client that trains its size's own classifier."""

  def loss(
    model: Model, batch: Batch, context: Context, key: jax.Array
  ) -> LossAndSums:
    keys = batch.keys(key)
    return task.loss(_logits(model, batch.inputs, context.held, keys), batch)

  return Client(loss, by_example=True)


def momentum_distillation(sizes: Sizes, beta: float) -> Aggregator:
  """Averages each size, and pulls its top towards the next larger size.

  The top of size c moves by

    (1 - beta) * its size's mean delta + beta * m,

  where m is the mean, over the blocks from c - 1 to the top of the next larger
  size, of that size's mean delta in the last round in which it took part. m is
  0 before that, so early steps are shorter by beta, as in the authors' code.
  The largest size has no larger one to learn from, and is the plain mean. If a
  size has no participant, its top and head stay, whatever m is.

  Args:
    sizes: The sizes.
    beta: Share of the larger size in the step of a top.
  """

  def init(theta: Tree) -> Tree:
    """Returns m of each smaller size: like 'blocks', with a row per size."""
    num = len(sizes.all) - 1
    zeros = lambda x: jnp.zeros((num, *x.shape[1:]), x.dtype)
    return jax.tree.map(zeros, theta['blocks'])

  def merge(theta: Tree, sums: GroupSums, memory: Tree) -> tuple[Update, Tree]:
    update, _ = average_held(theta, sums, memory)

    def distill(delta, larger):
      own = delta[sizes.depth :]
      mixed = (1 - beta) * own + beta * larger
      return delta.at[sizes.depth :].set(mixed)

    blocks = jax.tree.map(distill, update.delta['blocks'], memory)
    for row, (size, larger) in enumerate(itertools.pairwise(sizes.all)):
      slots = sizes.slots(larger)[size - 1 :]
      # There are sums of those sizes alone that some round of the run draws.
      if larger in sums:
        memory = _remember(memory, row, sums[larger], slots)
    return update._replace(delta={**update.delta, 'blocks': blocks}), memory

  return compose.by_group(lambda sig: sig['layer'], Aggregator(merge, init))


def _remember(
  memory: Tree, row: int, total: GroupSum, slots: np.ndarray
) -> Tree:
  """Sets m in `row` to a size's mean over `slots`, if it took part."""

  def put(old, mean, weight):
    new = jnp.mean(mean[slots], 0)
    present = weight[slots[-1]] > 0
    return old.at[row].set(jnp.where(present, new, old[row]))

  mean = selection.coverage_mean(total)['blocks']
  return jax.tree.map(put, memory, mean, total.den['blocks'])


def _logits(
  model: Model,
  inputs: Inputs,
  held: Allocation,
  key: jax.Array | None = None,
) -> jax.Array:
  tokens_NxBxD = model.class_tokens(inputs, layer_ids(held), key=key)
  return classifiers.scores(model, tokens_NxBxD[-1:])[0]


def build(facts: Facts) -> Algorithm:
  """Builds InclusiveFL as published (`--local_one --local_cls --mom_grad`).

  Where this departs from the authors' code:
    - They step AdamW on the mean gradient of each size and then average the
      sizes' parameters; here the configured server optimizer steps on the mean
      delta, which is the same for the linear optimizers.
    - They weight by examples, which is `server.weighting='examples'` here.
    - m follows the paper. Their code overwrites m where it should sum over
      blocks, and applies m only while it is still 0.

  Variant 'fedra_port' is what FedRA's authors ran under this name (main.py,
  `inclusivefl`; server.py `agg_baseline`): prefixes of blocks, each layer
  averaged over its holders, one head averaged over all; no distillation.

  Raises:
    ValueError: The task has no classes.
  """
  options = facts.experiment.inclusivefl
  if options.variant == 'fedra_port':
    found = facts.foundation()
    return uniform.fedavg(found, facts.task, facts.budgets, facts.depth)
  classifiers.require_classes('inclusivefl', facts.task)
  sizes = Sizes(facts.depth, facts.budgets)
  return Algorithm(
    model=sizes.grow(facts.foundation()),
    rule=layers.ByBudget(
      facts.budgets, {size: sizes.held(size) for size in sizes.all}
    ),
    client=client(facts.task),
    aggregator=momentum_distillation(sizes, options.beta),
    evaluation=Evaluation(
      facts.task,
      {name: sizes.held(size) for name, size in sizes.names.items()},
      lambda _, model, held, inputs: _logits(model, inputs, held),
    ),
    ending=sizes.alone,
  )


def check(
  experiment: config.Experiment,
  sizes: Mapping[str, int],
  budgets: tuple[int, ...],
) -> None:
  """Checks the options.

  Raises:
    ValueError: Nothing in the blocks trains, so that the published variant
      cannot distill.
  """
  del sizes, budgets
  if experiment.inclusivefl.variant == 'fedra_port':
    return
  if (tune := experiment.model.tune) in ('prompt', 'head'):
    raise ValueError(
      f'model.tune={tune!r} must be another where method=inclusivefl with '
      'variant=published: it distills what trains in the blocks.'
    )
  if experiment.model.tune == 'lora' and not experiment.lora.targets:
    raise ValueError(
      'method=inclusivefl with variant=published needs adapters in the '
      'blocks; lora.targets=() names none.'
    )

"""InclusiveFL: prefixes of blocks, with tops and heads of their own.

Liu, Wu, Wu, Wang, Lyu, Chen, Xie, "No One Left Behind: Inclusive Federated
Learning over Heterogeneous Devices", KDD 2022, doi 10.1145/3534678.3539086;
the authors' code is github.com/Rachelxuan11/InclusiveFL (server.py
`Aggregator_mom`, `HeteAgg_mom`; run_fl.py).
"""

from collections.abc import Mapping, Sequence
import dataclasses
import itertools
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_tune import config, selection
from fedjax_tune.engine.client import Batch
from fedjax_tune.engine.group import Row, Signature
from fedjax_tune.methods import base, heads
from fedjax_tune.selection import GroupSum
from fedjax_tune.tasks import Task
from fedjax_tune.typing import Allocation, Axes, Tree


@dataclasses.dataclass(frozen=True)
class InclusiveFL(base.Method):
  """InclusiveFL as published, with `--local_one --local_cls --mom_grad`.

  The distinct budgets are the sizes of model that the server keeps. A size c
  is the first c blocks; its top block and its classifier are its own, what
  lies below is shared with the larger sizes. All of it is a selection: the
  adapters' axis 'slot' has a row per block, then a row for the top of each
  smaller size (the largest size's top is the block's own row), and the head's
  axis 'tier' a classifier per size.

  Momentum distillation: the top of size c moves by

    (1 - beta) * its size's mean delta + beta * m,

  where m is the mean, over the blocks from c - 1 to the top of the next larger
  size, of that size's mean delta in the last round in which it took part.
  m is 0 before that, so early steps are shorter by beta, as in the authors'
  code. The largest size has nothing to learn from and is the plain mean.
  Where a size has no participant, its top and head stay, whatever m is.

  Where this departs from the authors' code:
    - They step AdamW on the mean gradient of each size and then average the
      sizes' parameters; here the configured server optimizer steps on the
      mean delta, the same thing for the linear optimizers.
    - They weight by examples; here weights are the engine's, so
      `server.weighting='examples'` is theirs.
    - m follows the paper. Their code overwrites where it means to sum over
      blocks, and applies m only while it is still 0.

  Attributes:
    beta: Share of the larger size in the step of a top.
  """

  beta: float

  @property
  def sizes(self) -> tuple[int, ...]:
    """The distinct budgets, ascending."""
    return tuple(sorted(set(self.budgets)))

  def slots(self, size: int) -> np.ndarray:
    """Returns the adapter rows of a size, bottom to top, int [size]."""
    *smaller, _ = self.sizes
    own = size in smaller
    top = self.depth + smaller.index(size) if own else size - 1
    return np.append(np.arange(size - 1), top)

  def allocation(self, size: int) -> dict[str, np.ndarray]:
    """Returns the frozen blocks, adapter rows and classifier of a size."""
    return {
      'layer': np.arange(size),
      'slot': self.slots(size),
      'tier': np.array([self.sizes.index(size)]),
    }

  def meet(self, task: Task, present: np.ndarray | None) -> Self:
    """Returns the method for a task, which must have classes."""
    heads.require_classes('inclusivefl', task)
    return super().meet(task, present)

  def init(self, theta: Tree, axes: Axes) -> tuple[Tree, Axes]:
    """Adds a top per smaller size and a head per size, as copies."""
    tops = np.array(self.sizes[:-1], int) - 1
    tiers = np.zeros(len(self.sizes), int)
    blocks, head = theta['blocks'], theta['head']
    grow = lambda x: jnp.concatenate([x, x[tops]])
    copy = lambda x: x[None][tiers]
    slot = lambda _, names: ('slot', *names[1:])
    tier = lambda _, names: ('tier', *names)
    grown = {
      'blocks': jax.tree.map(grow, blocks),
      'head': jax.tree.map(copy, head),
    }
    renamed = {
      'blocks': jax.tree.map(slot, blocks, axes['blocks']),
      'head': jax.tree.map(tier, head, axes['head']),
    }
    return {**theta, **grown}, {**axes, **renamed}

  def init_memory(self, theta: Tree) -> Tree:
    """Returns m of each smaller size: like 'blocks', with a row per size."""
    num = len(self.sizes) - 1
    zeros = lambda x: jnp.zeros((num, *x.shape[1:]), x.dtype)
    return jax.tree.map(zeros, theta['blocks'])

  def allocate(self, rnd: int, cohort: Sequence[int]) -> list[Row]:
    """Returns which indices each client of the cohort holds."""
    del rnd
    return [self.allocation(self.budgets[k]) for k in cohort]

  def loss(
    self,
    sig: Signature,
    model: Any,
    alloc: Allocation,
    batch: Batch,
    key: jax.Array,
    rnd: jax.Array,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Cross entropy of the size's own classifier."""
    del sig, rnd
    return self.task.loss(_logits(model, batch.inputs, alloc, key), batch)

  def bucket(self, sig: Signature) -> int:
    """Sums each size apart."""
    return sig['layer']

  def merge(
    self, theta: Tree, totals: Mapping[Any, GroupSum], memory: Tree
  ) -> tuple[base.Update, Tree]:
    """Coverage mean, momentum distillation of the tops, and the next m."""
    update, _ = super().merge(theta, totals, memory)

    def distill(delta, larger):
      own = delta[self.depth :]
      mixed = (1 - self.beta) * own + self.beta * larger
      return delta.at[self.depth :].set(mixed)

    blocks = jax.tree.map(distill, update.delta['blocks'], memory)
    for row, (size, larger) in enumerate(itertools.pairwise(self.sizes)):
      slots = self.slots(larger)[size - 1 :]
      memory = _remember(memory, row, totals[larger], slots)
    return update._replace(delta={**update.delta, 'blocks': blocks}), memory

  def evaluations(self) -> dict[str, Row]:
    """Evaluates the model of every size, the largest first."""
    *smaller, largest = self.sizes
    names = {'full': largest} | {f'depth{size}': size for size in smaller}
    return {name: self.allocation(size) for name, size in names.items()}

  def predict(
    self, name: str, model: Any, alloc: Allocation, inputs: Any
  ) -> jax.Array:
    """Returns the logits [B, K] of one size's model."""
    del name
    return _logits(model, inputs, alloc)


def _logits(
  model: Any,
  inputs: Any,
  alloc: Allocation,
  key: jax.Array | None = None,
) -> jax.Array:
  tokens_NxBxD = model.class_tokens(inputs, base.layer_ids(alloc), key=key)
  return heads.scores(model, tokens_NxBxD[-1:])[0]


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


def build(
  experiment: config.Experiment,
  sizes: Mapping[str, int],
  budgets: tuple[int, ...],
) -> base.Method:
  """Builds InclusiveFL from an experiment.

  Variant 'fedra_port' is what FedRA's authors ran under this name (main.py,
  `inclusivefl`; server.py `agg_baseline`): prefixes of blocks, each layer
  averaged over its holders, one head averaged over all; no distillation.

  Raises:
    ValueError: The published variant has nothing in the blocks to distill.
  """
  if experiment.inclusivefl.variant == 'fedra_port':
    return base.Method(sizes['layer'], budgets, experiment.seed)
  if experiment.model.tune == 'prompt':
    raise ValueError(
      "model.tune='prompt' must be another where method='inclusivefl' with "
      'variant=published: it distills what trains in the blocks.'
    )
  if experiment.model.tune == 'lora' and not experiment.lora.targets:
    raise ValueError(
      'method=inclusivefl with variant=published needs adapters in the '
      'blocks; lora.targets=() names none.'
    )
  beta = experiment.inclusivefl.beta
  return InclusiveFL(sizes['layer'], budgets, experiment.seed, beta)

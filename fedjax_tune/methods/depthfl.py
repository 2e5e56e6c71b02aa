"""DepthFL: prefixes of blocks, with a classifier at each level of depth.

Kim, Yu, Kim, Moon, "DepthFL: Depthwise Federated Learning for Heterogeneous
Clients", ICLR 2023, openreview.net/forum?id=pf8RIZTMU58; the first author's
code is the baseline `depthfl` of github.com/adap/flower (client.py, models.py,
strategy.py). What FedRA's authors ran under this name is in
github.com/leondada/FedRA (client.py `train_depthfl`, models/structure.py,
utils.py `evaluation_depthfl`).
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np
import optax

from fedjax_tune import config
from fedjax_tune.engine.client import Batch
from fedjax_tune.engine.group import Row, Signature
from fedjax_tune.methods import base, heads
from fedjax_tune.tasks import Task
from fedjax_tune.typing import Allocation, Axes, Tree


@dataclasses.dataclass(frozen=True)
class DepthFL(base.Method):
  """DepthFL as published, without FedDyn.

  The distinct budgets are the levels; a classifier stands after the last
  block of each. A client holds the blocks of its budget and the classifiers
  of all levels up to it, the head's axis 'exit'. Its loss is the sum of its
  classifiers' cross entropies, and each classifier is pulled towards every
  other by `distillation`. Layers and classifiers are each averaged over the
  clients that hold them.

  Where this departs from the authors' code:
    - Their FedDyn regulariser is not included; this is their
      `feddyn=false kd=true`.
    - Theirs is a ResNet with a bottleneck before each classifier; here
      classifiers are linear, behind the model's frozen final norm, which they
      share as in FedRA's port.
    - They add 1e-7 to the teacher's probabilities against log 0; logarithms
      of a softmax need no such thing.

  Attributes:
    ramp_rounds: Rounds until the distillation has its full weight of 1.
    evaluate: Which evaluation comes first, 'ensemble' or 'last'.
  """

  ramp_rounds: int
  evaluate: str

  @property
  def levels(self) -> tuple[int, ...]:
    """The distinct budgets, ascending."""
    return tuple(sorted(set(self.budgets)))

  @property
  def num_exits(self) -> int:
    """Classifiers of the server's model."""
    return len(self.levels)

  @property
  def eval_depth(self) -> int:
    """Blocks of the model to evaluate: as many as anybody trains."""
    return self.levels[-1]

  def exits(self, depth: int) -> tuple[int, ...]:
    """Returns the blocks of a prefix that bear a classifier."""
    return tuple(level - 1 for level in self.levels if level <= depth)

  def allocation(self, depth: int) -> dict[str, np.ndarray]:
    """Returns the blocks and classifiers of a prefix."""
    exits = np.arange(len(self.exits(depth)))
    return {'layer': np.arange(depth), 'exit': exits}

  def meet(self, task: Task, present: np.ndarray | None) -> Self:
    """Returns the method for a task, which must have classes."""
    heads.require_classes('depthfl', task)
    return super().meet(task, present)

  def init(self, theta: Tree, axes: Axes) -> tuple[Tree, Axes]:
    """Adds classifiers before the model's own, each drawn independently.

    They start like the model's head, uniform within 1/sqrt(D), as their
    counterparts in the authors' code do.
    """
    leaves, tree = jax.tree.flatten(theta['head'])
    bound = 1 / math.sqrt(theta['head']['kernel'].shape[0])
    tag = int.from_bytes(b'exit')
    key = jax.random.fold_in(jax.random.key(self.seed), tag)

    def stack(key, last):
      shape = (self.num_exits - 1, *last.shape)
      earlier = jax.random.uniform(key, shape, last.dtype, -bound, bound)
      return jnp.concatenate([earlier, last[None]])

    stacked = map(stack, jax.random.split(key, len(leaves)), leaves)
    names = jax.tree.map(lambda _, n: ('exit', *n), theta['head'], axes['head'])
    head = jax.tree.unflatten(tree, stacked)
    return {**theta, 'head': head}, {**axes, 'head': names}

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
    """Cross entropies plus mutual distillation; metrics of the last exit."""
    del sig
    exits = self.exits(len(base.layer_ids(alloc)))
    scores_ExBxK = _scores(model, batch.inputs, alloc, exits, key)
    over_exits = jax.vmap(self.task.loss, (0, None))
    losses_E, metrics = over_exits(scores_ExBxK, batch)
    pull = distillation(scores_ExBxK, batch.valid)
    loss = jnp.sum(losses_E) + ramp(rnd, self.ramp_rounds) * pull
    return loss, jax.tree.map(lambda m: m[-1], metrics)

  def evaluations(self) -> dict[str, Row]:
    """Evaluates the mean of all classifiers' logits, and the last alone."""
    names = sorted(('ensemble', 'last'), key=lambda n: n != self.evaluate)
    return {name: self.allocation(self.eval_depth) for name in names}

  def predict(
    self, name: str, model: Any, alloc: Allocation, inputs: Any
  ) -> jax.Array:
    """Returns scores [B, K] of the evaluation called `name`."""
    exits = self.exits(len(base.layer_ids(alloc)))
    scores_ExBxK = _scores(model, inputs, alloc, exits)
    return jnp.mean(scores_ExBxK, 0) if name == 'ensemble' else scores_ExBxK[-1]


@dataclasses.dataclass(frozen=True)
class FedraPort(DepthFL):
  """DepthFL as FedRA's authors ran it.

  Classifiers stand after the blocks 3, 6, 9, ... that a client holds,
  whatever the budgets; besides, every client trains the one `head` after its
  last block, which is thus averaged over clients of different depth. A client
  of depth 4 or 10 has two classifiers after its last block. The whole model
  is evaluated, also where nobody holds all of it.
  """

  @property
  def num_exits(self) -> int:
    """Classifiers of the server's model."""
    return len(self.exits(self.depth))

  @property
  def eval_depth(self) -> int:
    """Blocks of the model to evaluate: all."""
    return self.depth

  def exits(self, depth: int) -> tuple[int, ...]:
    """Returns the blocks of a prefix that bear a classifier."""
    return (*range(3, depth, 3), depth - 1)

  def allocation(self, depth: int) -> dict[str, np.ndarray]:
    """Returns the blocks and classifiers of a prefix; the head comes last."""
    between = np.arange(len(self.exits(depth)) - 1)
    exits = np.append(between, self.num_exits - 1)
    return {'layer': np.arange(depth), 'exit': exits}


def ramp(rnd: jax.Array, rounds: int) -> jax.Array:
  """Weight of the distillation: exp(-5 (1 - t/T)^2), and 1 from round T on."""
  phase = 1 - jnp.clip(rnd, 0, rounds) / rounds
  return jnp.exp(-5 * phase**2)


def distillation(
  scores_ExBxK: Float[Array, 'E B K'], valid_B: Array
) -> jax.Array:
  """Mutual self-distillation of classifiers at temperature 1.

  Returns:
    The mean over valid examples of
    1/(E-1) sum_{i != j} KL(softmax(s_j) || softmax(s_i)), where no gradient
    flows into the teacher s_j; 0 for one classifier.
  """
  log_ExBxK = jax.nn.log_softmax(scores_ExBxK)
  teachers = jax.lax.stop_gradient(log_ExBxK)
  # i == j is in the sum: its value and its gradient are both 0.
  kl_ExExB = optax.losses.kl_divergence_with_log_targets(
    log_ExBxK[:, None], teachers[None]
  )
  kl_B = jnp.sum(kl_ExExB, (0, 1)) / max(len(scores_ExBxK) - 1, 1)
  valid_B = valid_B.astype(kl_B.dtype)
  return jnp.sum(kl_B * valid_B) / jnp.maximum(jnp.sum(valid_B), 1)


def _scores(
  model: Any,
  inputs: Any,
  alloc: Allocation,
  exits: tuple[int, ...],
  key: jax.Array | None = None,
) -> Float[Array, 'E B K']:
  tokens_NxBxD = model.class_tokens(inputs, base.layer_ids(alloc), key=key)
  return heads.scores(model, tokens_NxBxD[np.array(exits)])


# variant -> (class, its ramp_rounds, its evaluate)
_VARIANTS = {
  'published': (DepthFL, 300, 'ensemble'),
  'fedra_port': (FedraPort, 500, 'last'),
}


def build(
  experiment: config.Experiment,
  sizes: Mapping[str, int],
  budgets: tuple[int, ...],
) -> DepthFL:
  """Builds DepthFL from an experiment."""
  options = experiment.depthfl
  variant, rounds, evaluate = _VARIANTS[options.variant]
  return variant(
    depth=sizes['layer'],
    budgets=budgets,
    seed=experiment.seed,
    ramp_rounds=options.ramp_rounds or rounds,
    evaluate=options.evaluate or evaluate,
  )

"""DepthFL: prefixes of blocks, with a classifier at each level of depth.

Kim, Yu, Kim, Moon, "DepthFL: Depthwise Federated Learning for Heterogeneous
Clients", ICLR 2023, openreview.net/forum?id=pf8RIZTMU58; the first author's
code is the baseline `depthfl` of github.com/adap/flower (client.py, models.py,
strategy.py). What FedRA's authors ran under this name is in
github.com/leondada/FedRA (client.py `train_depthfl`, models/structure.py,
utils.py `evaluation_depthfl`).
"""

from collections.abc import Callable, Mapping
import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np
import optax

from fedjax_tune import config
from fedjax_tune.data.tasks import Task
from fedjax_tune.engine.algorithm import (
  Aggregator,
  Algorithm,
  Alone,
  Client,
  Context,
  Ending,
  Evaluation,
  LossAndSums,
  layer_ids,
)
from fedjax_tune.engine.client import Batch
from fedjax_tune.methods.depth import classifiers, layers
from fedjax_tune.methods.drift import feddyn
from fedjax_tune.methods.facts import Facts
from fedjax_tune.models.foundation import Foundation, Model
from fedjax_tune.selection import Selection
from fedjax_tune.typing import Allocation, AnyArray, Inputs, Tree


@dataclasses.dataclass(frozen=True)
class Exits:
  """Where a model has classifiers.

  Attributes:
    of: depth -> the blocks of a prefix that have a classifier, from 0.
    rows: depth -> the rows of the head's axis 'exit' for these classifiers.
    num: Number of classifiers of the server's model.
    depth: Blocks of the model to evaluate.
  """

  of: Callable[[int], tuple[int, ...]]
  rows: Callable[[int], np.ndarray]
  num: int
  depth: int

  def held(self, depth: int) -> Selection:
    """Returns the blocks and classifiers of a prefix."""
    return Selection.of({'layer': np.arange(depth), 'exit': self.rows(depth)})


def at_budgets(budgets: tuple[int, ...]) -> Exits:
  """Puts a classifier after the last block of each distinct budget.

  A client has the classifiers of all levels up to its own. The model to
  evaluate has as many blocks as the largest client trains.
  """
  levels = tuple(sorted(set(budgets)))
  of = lambda depth: tuple(n - 1 for n in levels if n <= depth)
  rows = lambda depth: np.arange(len(of(depth)))
  return Exits(of, rows, len(levels), levels[-1])


def every_third(depth: int) -> Exits:
  """Puts classifiers where FedRA's authors did, whatever the budgets.

  They are after the blocks 3, 6, 9, ... that a client holds. In addition, every
  client trains the shared `head` after its last block, which is thus averaged
  over clients of different depth. A client of depth 4 or 10 has two classifiers
  after its last block. The whole model is evaluated, even if nobody holds all
  of it.
  """
  of = lambda n: (*range(3, n, 3), n - 1)
  num = len(of(depth))
  # The head comes last.
  rows = lambda n: np.append(np.arange(len(of(n)) - 1), num - 1)
  return Exits(of, rows, num, depth)


def with_exits(found: Foundation, num: int, seed: int) -> Foundation:
  """Adds classifiers before the model's own, each drawn independently.

  Like the model's head, and as in the authors' code, they start uniform within
  1/sqrt(D).

  Args:
    found: The model, with one classifier.
    num: Number of classifiers in all.
    seed: Seed of the draw.
  """
  theta, axes = found.theta, found.axes
  leaves, tree = jax.tree.flatten(theta['head'])
  bound = 1 / math.sqrt(theta['head']['kernel'].shape[0])
  key = jax.random.fold_in(jax.random.key(seed), int.from_bytes(b'exit'))

  def stack(key, last):
    shape = (num - 1, *last.shape)
    earlier = jax.random.uniform(key, shape, last.dtype, -bound, bound)
    return jnp.concatenate([earlier, last[None]])

  stacked = map(stack, jax.random.split(key, len(leaves)), leaves)
  names = jax.tree.map(lambda _, n: ('exit', *n), theta['head'], axes['head'])
  return dataclasses.replace(
    found,
    theta={**theta, 'head': jax.tree.unflatten(tree, stacked)},
    axes={**axes, 'head': names},
  )


def distilling_client(task: Task, exits: Exits, ramp_rounds: int) -> Client:
  """Returns the client that trains its classifiers together.

  The loss is the sum of the classifiers' cross entropies, and `distillation`
  pulls each classifier towards every other. Metrics are those of the last one.

  Args:
    task: What is learned.
    exits: Where the model has classifiers.
    ramp_rounds: Rounds until the distillation has its full weight of 1.
  """

  def loss(
    model: Model, batch: Batch, context: Context, key: jax.Array
  ) -> LossAndSums:
    places = exits.of(len(layer_ids(context.held)))
    keys = batch.keys(key)
    scores_ExBxK = _scores(model, batch.inputs, context.held, places, keys)
    over_exits = jax.vmap(task.loss, (0, None))
    losses_E, metrics = over_exits(scores_ExBxK, batch)
    pull = distillation(scores_ExBxK, batch.valid)
    total = jnp.sum(losses_E) + ramp(context.rnd, ramp_rounds) * pull
    return total, jax.tree.map(lambda m: m[-1], metrics)

  return Client(loss, by_example=True)


def evaluation(task: Task, exits: Exits, first: str) -> Evaluation:
  """Evaluates the mean of all classifiers' logits, and the last alone.

  Args:
    task: What is learned.
    exits: Where the model has classifiers.
    first: Which of 'ensemble' and 'last' is the headline.
  """

  def predict(
    name: str, model: Model, held: Selection, inputs: Inputs
  ) -> jax.Array:
    places = exits.of(len(layer_ids(held)))
    scores_ExBxK = _scores(model, inputs, held, places)
    return jnp.mean(scores_ExBxK, 0) if name == 'ensemble' else scores_ExBxK[-1]

  names = sorted(('ensemble', 'last'), key=lambda name: name != first)
  models = {name: exits.held(exits.depth) for name in names}
  return Evaluation(task, models, predict)


def ending(exits: Exits) -> Ending:
  """Ends with a model for each classifier, which has the blocks below it."""

  def take(theta: Tree, clients: Mapping[int, Tree]) -> dict[str, Alone]:
    del clients
    places = zip(exits.of(exits.depth), exits.rows(exits.depth), strict=True)
    return {
      f'exit{number}': Alone(
        {
          **theta,
          'head': jax.tree.map(lambda x, row=row: x[row], theta['head']),
        },
        {'layer': block + 1},
      )
      for number, (block, row) in enumerate(places, 1)
    }

  return take


def ramp(rnd: jax.Array, rounds: int) -> jax.Array:
  """Weight of the distillation: exp(-5 (1 - t/T)^2), and 1 from round T on."""
  phase = 1 - jnp.clip(rnd, 0, rounds) / rounds
  return jnp.exp(-5 * phase**2)


def distillation(
  scores_ExBxK: Float[Array, 'E B K'], valid_B: AnyArray
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
  model: Model,
  inputs: Inputs,
  held: Allocation,
  exits: tuple[int, ...],
  key: jax.Array | None = None,
) -> Float[Array, 'E B K']:
  tokens_NxBxD = model.class_tokens(inputs, layer_ids(held), key=key)
  return classifiers.scores(model, tokens_NxBxD[np.array(exits)])


# variant -> its ramp_rounds, its evaluate
_DEFAULTS = {'published': (300, 'ensemble'), 'fedra_port': (500, 'last')}


def build(facts: Facts) -> Algorithm:
  """Builds DepthFL as published or as FedRA's authors ran it.

  The distinct budgets are the levels; a classifier is after the last block of
  each (`at_budgets`). A client holds the blocks of its budget and the
  classifiers of all levels up to it, the head's axis 'exit'. Layers and
  classifiers are each averaged over the clients that hold them. Variant
  'fedra_port' puts its classifiers elsewhere (`every_third`).

  Where this departs from the authors' code:
    - Without `depthfl.feddyn` this is their `feddyn=false kd=true`. By default
      their code uses FedDyn (arXiv 2111.04263): the server's memory of a block
      or classifier is the sum over the clients that hold it, divided by the
      number of all clients, even those that cannot hold it.
    - Their model is a ResNet with a bottleneck before each classifier. Here
      classifiers are linear, after the model's frozen final norm, which they
      share as in FedRA's port.
    - They add 1e-7 to the teacher's probabilities against log 0; logarithms
      of a softmax do not need this.

  Raises:
    ValueError: The task has no classes.
  """
  classifiers.require_classes('depthfl', facts.task)
  options = facts.experiment.depthfl
  rounds, first = _DEFAULTS[options.variant]
  if options.variant == 'published':
    exits = at_budgets(facts.budgets)
  else:
    exits = every_third(facts.depth)
  held = {n: exits.held(n) for n in set(facts.budgets)}
  model = with_exits(facts.foundation(), exits.num, facts.seed)
  ramp_rounds = options.ramp_rounds or rounds
  client = distilling_client(facts.task, exits, ramp_rounds)
  aggregator = Aggregator()
  if alpha := options.feddyn:
    client = feddyn.regularized(client, model, alpha)
    aggregator = feddyn.aggregator(alpha, len(facts.budgets))
  return Algorithm(
    model=model,
    rule=layers.ByBudget(facts.budgets, held),
    client=client,
    aggregator=aggregator,
    evaluation=evaluation(facts.task, exits, options.evaluate or first),
    ending=ending(exits),
  )


def check(
  experiment: config.Experiment,
  sizes: Mapping[str, int],
  budgets: tuple[int, ...],
) -> None:
  """Checks the options.

  Raises:
    ValueError: FedDyn refuses the options.
  """
  del sizes, budgets
  if alpha := experiment.depthfl.feddyn:
    feddyn.refuse(experiment, f'depthfl.feddyn={alpha}')

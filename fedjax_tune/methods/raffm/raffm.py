"""RaFFM: salient subnetworks of a foundation model.

Yu, Munoz, Jannesari, "Bridging the Gap Between Foundation Models and
Heterogeneous Federated Learning", arXiv 2310.00247; the authors' code is
github.com/yusx-swapp/RaFFM; the code from the time of the paper is
github.com/yusx-swapp/fedlib, demo/RaFFM.
"""

from collections.abc import Callable, Mapping
import dataclasses

import jax
import jax.numpy as jnp

from fedjax_tune import config
from fedjax_tune.engine.algorithm import (
  Aggregator,
  Algorithm,
  Evaluation,
  GroupSums,
  Update,
  covered_mean,
  fedavg_client,
)
from fedjax_tune.methods.depth import layers
from fedjax_tune.methods.facts import Facts
from fedjax_tune.methods.raffm import masks, salience, slices, spaces
from fedjax_tune.models.foundation import Foundation
from fedjax_tune.selection import GroupSum, Selection
from fedjax_tune.typing import Axes, Tree


def participant_mean(
  theta: Tree, sums: GroupSums, memory: Tree
) -> tuple[Update, Tree]:
  """Divides the sum of changes by the number of all participants (rule P).

    W <- W + 1/N sum_k scatter(delta_k),

  which is the same as averaging the full-shape models of the earlier code.
  """
  del theta
  (total,) = sums.values()  # All clients' deltas go to one sum.
  weight = _participants(total)
  update = covered_mean(total)
  delta = jax.tree.map(lambda num: num / weight, total.num)
  return update._replace(delta=delta), memory


def zero_filled_mean(
  theta: Tree, sums: GroupSums, memory: Tree
) -> tuple[Update, Tree]:
  """Averages parameters; what a client does not hold counts as zeros.

  The released `aggregate` does so; it drives parameters that few hold towards
  0.
  """
  (total,) = sums.values()
  weight = _participants(total)

  def shrink(w, num, den):
    return (w * den + num) / weight - w

  delta = jax.tree.map(shrink, theta, total.num, total.den)
  covered = jax.tree.map(lambda d: d >= 0, total.den)
  return Update(delta, covered), memory


def _participants(total: GroupSum) -> jax.Array:
  """Returns the weight of all clients.

  Every client holds the first index of every axis.
  """
  return jnp.max(jnp.stack([jnp.max(d) for d in jax.tree.leaves(total.den)]))


_AGGREGATORS = {
  'mean': Aggregator(participant_mean),
  'coverage': Aggregator(),
  'zero_filled': Aggregator(zero_filled_mean),
}


def prioritize(found: Foundation, scope: str) -> Foundation:
  """Reorders the pretrained weights by salience, frozen ones included."""
  kernels, names = found.base.get('blocks'), found.base_axes.get('blocks')
  if not kernels:
    kernels, names = found.theta['blocks'], found.axes['blocks']
  order = salience.rank(kernels, names, scope)
  theta = salience.reorder(found.theta, found.axes, order)
  held = salience.reorder(found.base, found.base_axes, order)
  return dataclasses.replace(found, theta=theta, base=held)


def reorder(
  options: config.Raffm,
) -> Callable[[Tree, Axes], Callable[[Tree], Tree] | None] | None:
  """Returns the function that reorders before each round, if kernels train.

  Frozen kernels stay as `prioritize` left them, as in the authors' fl_vit_peft.
  None if only the pretrained weights are reordered.
  """
  if options.reorder != 'every_round':
    return None
  scope = options.priority

  def find(theta: Tree, axes: Axes) -> Callable[[Tree], Tree] | None:
    blocks = theta.get('blocks', {})
    if 'kernel' not in blocks.get('mlp', {}).get('fc1', {}):
      return None
    order = salience.rank(blocks, axes['blocks'], scope)
    return lambda tree: salience.reorder(tree, axes, order)

  return find


def build(facts: Facts) -> Algorithm:
  """Builds RaFFM: salient subnetworks, averaged over all participants.

  In each round the server reorders channels by salience (`salience.py`). One
  random client of the cohort gets the full model; with sandwich sampling,
  another gets the smallest subnetwork; all others get a random one, the first
  channels of each axis. The size is not tied to the client (fl_vit.py,
  fl_glue.py), unless subnetworks are cut to fit devices.

  `raffm.aggregation` is 'mean' (rule P), 'coverage' (over the holders), or
  'zero_filled'. The full model and the smallest subnetwork are evaluated.
  """
  options = facts.experiment.raffm
  full = Selection.of({'layer': facts.depth})
  client = fedavg_client(facts.task)
  if options.mode == 'slice':
    rule = slices.build(
      facts.experiment, facts.sizes, facts.fitted.get('width', ())
    )
    smallest = rule.held(rule.space.smallest())
    trained = tuple(rule.held(shares) for shares in rule.space.choices())
  else:
    masked = masks.build(facts)
    rule = layers.whole(facts.depth, len(facts.budgets))
    client = dataclasses.replace(client, params=masked.params, info=masked.info)
    # Nobody's is smaller than the full model.
    smallest, trained = full, ()
  return Algorithm(
    model=prioritize(facts.foundation(), options.priority),
    rule=rule,
    client=client,
    aggregator=_AGGREGATORS[options.aggregation],
    evaluation=Evaluation(
      facts.task,
      {'full': full, 'smallest': smallest},
      subnetworks=trained,
    ),
    reorder=reorder(options),
  )


def check(
  experiment: config.Experiment,
  sizes: Mapping[str, int],
  budgets: tuple[int, ...],
) -> None:
  """Checks the options.

  Raises:
    ValueError: Options contradict each other or the model.
  """
  del budgets
  options = experiment.raffm
  salience.check(sizes, options.priority)
  if options.mode == 'mask':
    masks.check(experiment, sizes)
    return
  if (options.sampling == 'resource') != bool(experiment.clients.fit):
    raise ValueError(
      f"raffm.sampling={options.sampling!r} must be 'resource' where devices"
      f' are fitted, and only there; clients.fit={experiment.clients.fit!r}.'
    )
  made = slices.build(experiment, sizes)
  spaces.row_of(made.space.smallest(), sizes)

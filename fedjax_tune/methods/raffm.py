"""RaFFM: salient subnetworks of a foundation model.

Yu, Munoz, Jannesari, "Bridging the Gap Between Foundation Models and
Heterogeneous Federated Learning", arXiv 2310.00247; the authors' code is
github.com/yusx-swapp/RaFFM, and that of the paper's time
github.com/yusx-swapp/fedlib, demo/RaFFM.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_tune import config
from fedjax_tune.engine.group import Row, Signature
from fedjax_tune.foundation import Foundation
from fedjax_tune.methods import base, masks, salience, slices
from fedjax_tune.selection import GroupSum
from fedjax_tune.typing import Allocation, Axes, Tree


@dataclasses.dataclass(frozen=True)
class Raffm(base.Method):
  """RaFFM; what a client gets is the business of `extraction`.

  In each round the server reorders channels by salience (`salience.py`), one
  random client of the cohort gets the full model, with sandwich sampling
  another one the smallest subnetwork, and everyone else a random one: the
  first channels of each axis. The budget is not tied to the client (fl_vit.py,
  fl_glue.py), unless subnetworks are cut to fit devices.

  The server adds up what clients changed and divides by their number (rule P,
  which is what averaging the paper-era full-shape models means):

    W <- W + 1/N sum_k scatter(delta_k).

  Attributes:
    extraction: Cuts the clients' subnetworks.
    scope: What is reordered, a key of `salience.SCOPES`.
    every_round: Reorder before every round, or only before the first.
    aggregation: 'mean' (rule P), 'coverage' (over the holders), or
      'zero_filled': what a client does not hold counts as zeros, as in the
      released `aggregate`, which drives what few hold towards 0.
  """

  extraction: slices.Slices | masks.Masks
  scope: str
  every_round: bool
  aggregation: str

  # -- reordering

  def prepare(self, found: Foundation) -> Foundation:
    """Reorders the pretrained weights, frozen ones included."""
    kernels, names = found.base.get('blocks'), found.base_axes.get('blocks')
    if not kernels:
      kernels, names = found.theta['blocks'], found.axes['blocks']
    order = salience.rank(kernels, names, self.scope)
    theta = salience.reorder(found.theta, found.axes, order)
    held = salience.reorder(found.base, found.base_axes, order)
    return dataclasses.replace(found, theta=theta, base=held)

  def reorder(self, theta: Tree, axes: Axes) -> Callable[[Tree], Tree] | None:
    """Reorders before the next round, where the kernels train.

    Frozen kernels stay as `prepare` left them, as in the authors' fl_vit_peft.
    """
    blocks = theta.get('blocks', {})
    trains = 'kernel' in blocks.get('mlp', {}).get('fc1', {})
    if not self.every_round or not trains:
      return None
    order = salience.rank(blocks, axes['blocks'], self.scope)
    return lambda tree: salience.reorder(tree, axes, order)

  # -- clients

  def allocate(self, rnd: int, cohort: Sequence[int]) -> list[Row]:
    """Returns the subnetwork of each client of the cohort."""
    return self.extraction.allocate(self.seed, rnd, cohort)

  def notes(self) -> Collection[str]:
    """Names the masks."""
    return self.extraction.notes()

  def view(self, sig: Signature, local: Tree, alloc: Allocation) -> Tree:
    """Stops the gradients that masks leave out."""
    del sig
    return self.extraction.view(local, alloc)

  # -- merging

  def merge(
    self, theta: Tree, totals: Mapping[Any, GroupSum], memory: Tree
  ) -> tuple[base.Update, Tree]:
    """Averages by the rule of `aggregation`."""
    (total,) = totals.values()  # All clients' deltas go to one sum.
    update = base.covered_mean(total)
    if self.aggregation == 'coverage':
      return update, memory
    # What comes first along every axis, everyone holds.
    everyone = jnp.max(
      jnp.stack([jnp.max(d) for d in jax.tree.leaves(total.den)])
    )
    mean = lambda num: num / everyone
    if self.aggregation == 'mean':
      return update._replace(delta=jax.tree.map(mean, total.num)), memory

    def shrink(w, num, den):
      return (w * den + num) / everyone - w

    delta = jax.tree.map(shrink, theta, total.num, total.den)
    covered = jax.tree.map(lambda d: d >= 0, total.den)
    return base.Update(delta, covered), memory

  def evaluations(self) -> dict[str, Row]:
    """Evaluates the full model and the smallest subnetwork."""
    return {
      'full': {'layer': self.depth},
      'smallest': self.extraction.smallest(),
    }


def build(
  experiment: config.Experiment,
  sizes: Mapping[str, int],
  budgets: tuple[int, ...],
) -> Raffm:
  """Builds RaFFM from an experiment.

  Raises:
    ValueError: Options contradict each other or the model, or a device can
      hold no subnetwork of the space.
  """
  options = experiment.raffm
  salience.check(sizes, options.priority)
  kind = slices if options.mode == 'slice' else masks
  return Raffm(
    depth=sizes['layer'],
    budgets=budgets,
    seed=experiment.seed,
    extraction=kind.build(experiment, sizes, len(budgets)),
    scope=options.priority,
    every_round=options.reorder == 'every_round',
    aggregation=options.aggregation,
  )

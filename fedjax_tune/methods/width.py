"""Clients of different width, and Federated Dropout.

Each holds a share of every hidden axis, its rate; what it holds of them is
the beginning (HeteroFL, FjORD), a rolling window (FedRolex), or random. The
server averages each coordinate over those who held it.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import itertools
import math

import numpy as np

from fedjax_tune import config
from fedjax_tune.engine.group import Row, Signature
from fedjax_tune.methods import base
from fedjax_tune.randomness import host_rng


@dataclasses.dataclass(frozen=True)
class Width(base.Method):
  """A prefix of every axis, as large as the client's rate.

  Attributes:
    sizes: For each narrowed axis its full size.
    rates: Shares; clients take them in turn, by their number.
  """

  sizes: Mapping[str, int]
  rates: tuple[float, ...]

  def rate(self, client: int) -> float:
    """Returns the share of every axis that a client holds."""
    return self.rates[client % len(self.rates)]

  def amounts(self, rate: float) -> dict[str, int]:
    """Returns how much of each narrowed axis is held at a rate."""
    return {axis: amount(rate, n) for axis, n in self.sizes.items()}

  def rate_of(self, sig: Signature) -> float:
    """Returns the rate of a signature's clients."""
    held = {axis: sig.axes[axis] for axis in self.sizes}
    return next(r for r in self.rates if self.amounts(r) == held)

  def allocate(self, rnd: int, cohort: Sequence[int]) -> list[Row]:
    """Returns what each client of the cohort holds."""
    rows = []
    for k in cohort:
      amounts = self.amounts(self.rate(k))
      whole = {a: n for a, n in amounts.items() if n == self.sizes[a]}
      held = self.choose(rnd, k, amounts)
      rows.append({'layer': self.depth, **held, **whole})
    return rows

  def choose(self, rnd: int, client: int, amounts: Mapping[str, int]) -> Row:
    """Returns which part of each narrowed axis a client holds.

    Args:
      rnd: The round.
      client: Its number.
      amounts: How much it holds of each; what it holds whole needs no choice.
    """
    del rnd, client
    return amounts


@dataclasses.dataclass(frozen=True)
class FederatedDropout(Width):
  """Federated Dropout: random units, new for each client and round.

  Caldas, Konecny, McMahan, Talwalkar, "Expanding the Reach of Federated
  Learning by Reducing Client Resource Requirements", arXiv 1812.07210. One
  draw an axis serves all layers and heads: units of different layers have
  nothing to do with each other, so the draw is as random as one a layer.
  """

  def choose(self, rnd: int, client: int, amounts: Mapping[str, int]) -> Row:
    """Returns distinct random indices, sorted."""
    rng = host_rng('allocation', self.seed, rnd, client)
    return {
      axis: np.sort(rng.permutation(size)[: amounts[axis]])
      for axis, size in sorted(self.sizes.items())
    }


def build(
  experiment: config.Experiment,
  sizes: Mapping[str, int],
  budgets: tuple[int, ...],
) -> FederatedDropout:
  """Builds Federated Dropout from an experiment."""
  return FederatedDropout(*common(experiment, sizes, budgets))


def common(
  experiment: config.Experiment,
  sizes: Mapping[str, int],
  budgets: tuple[int, ...],
) -> tuple[int, tuple[int, ...], int, dict[str, int], tuple[float, ...]]:
  """Returns what every method of this kind is made of.

  Raises:
    ValueError: The model has no such axis, or two rates are one size of it.
  """
  options = experiment.width
  known = [
    a for a in ('embed', 'heads', 'qk_dim', 'v_dim', 'ffn') if a in sizes
  ]
  if unknown := set(options.axes) - set(known):
    raise ValueError(
      f'width.axes={options.axes}: {sorted(unknown)[0]!r} must be one of'
      f' {", ".join(known)}, the axes along which this model is cut.'
    )
  narrowed = {axis: sizes[axis] for axis in options.axes}
  amounts = {
    rate: tuple(amount(rate, n) for n in narrowed.values())
    for rate in sorted(set(options.rates))
  }
  for lower, upper in itertools.pairwise(amounts):
    # Which of the two a client has would not show in what it holds.
    if amounts[lower] == amounts[upper]:
      raise ValueError(
        f'width.rates={options.rates}: {lower} and {upper} must differ in some'
        f' axis; of {narrowed} both hold {amounts[lower]}.'
      )
  depth = sizes['layer']
  return depth, budgets, experiment.seed, narrowed, options.rates


def amount(rate: float, size: int) -> int:
  """Returns how much of an axis is held at a rate, rounded up.

  In floating point, as HeteroFL's, FedRolex's and FjORD's authors have it
  (`int(np.ceil(size * rate))`): 0.07 of 100 are 8.

  >>> amount(0.07, 100), amount(0.5, 5), amount(1.0, 12)
  (8, 3, 12)
  """
  return math.ceil(size * rate)

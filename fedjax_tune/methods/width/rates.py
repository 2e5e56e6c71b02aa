"""Rules for the share of every width that clients hold.

Each client holds a share of every hidden axis, its rate. It holds the beginning
of an axis (HeteroFL, FjORD), a rolling window (FedRolex), or random units
(Federated Dropout). The server averages each coordinate over the clients that
held it.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import itertools
import math

import numpy as np

from fedjax_tune import config
from fedjax_tune.engine.algorithm import Algorithm
from fedjax_tune.engine.slabs import Signature
from fedjax_tune.methods import compose
from fedjax_tune.methods.depth import uniform
from fedjax_tune.methods.facts import Facts
from fedjax_tune.selection import Selection


@dataclasses.dataclass(frozen=True)
class Prefix:
  """The beginning of every axis, as much as the client's rate.

  Attributes:
    sizes: For each narrowed axis its full size.
    rates: Shares, which clients take in turn by client number.
  """

  sizes: Mapping[str, int]
  rates: tuple[float, ...]

  @property
  def axes(self) -> frozenset[str]:
    """The narrowed axes."""
    return frozenset(self.sizes)

  def rate(self, client: int) -> float:
    """Returns the share of every axis that a client holds."""
    return self.rates[client % len(self.rates)]

  def amounts(self, rate: float) -> dict[str, int]:
    """Returns how much of each narrowed axis is held at a rate."""
    return {axis: amount(rate, n) for axis, n in self.sizes.items()}

  def rate_of(self, sig: Signature) -> float:
    """Returns the rate of a signature's clients."""
    held = {axis: sig[axis] for axis in self.sizes}
    return next(r for r in self.rates if self.amounts(r) == held)

  def draw(self, rnd: int, cohort: Sequence[int]) -> list[Selection]:
    """Returns what each client of the cohort holds."""
    drawn = []
    for k in cohort:
      amounts = self.amounts(self.rate(k))
      whole = {a: n for a, n in amounts.items() if n == self.sizes[a]}
      drawn.append(Selection.of({**self.choose(rnd, k, amounts), **whole}))
    return drawn

  def choose(
    self, rnd: int, client: int, amounts: Mapping[str, int]
  ) -> Mapping[str, np.ndarray | int]:
    """Returns which part of each narrowed axis a client holds.

    Args:
      rnd: The round.
      client: The client's number.
      amounts: How much of each axis it holds; whole axes need no choice.
    """
    del rnd, client
    return amounts


def fedavg(facts: Facts, widths: Prefix) -> Algorithm:
  """Builds FedAvg of clients that hold all blocks, some of their widths."""
  full = uniform.build_all_large(facts)
  return dataclasses.replace(full, rule=compose.product(full.rule, widths))


def of(facts: Facts) -> tuple[dict[str, int], tuple[float, ...]]:
  """Returns the narrowed axes with their sizes, and the rates."""
  options = facts.experiment.width
  widths = {axis: facts.sizes[axis] for axis in options.axes}
  return widths, facts.fitted.get('width', options.rates)


def check(
  experiment: config.Experiment,
  sizes: Mapping[str, int],
  budgets: tuple[int, ...],
) -> None:
  """Checks the axes and the rates.

  Raises:
    ValueError: The model has no such axis, or two rates give the same size.
  """
  del budgets
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


def amount(rate: float, size: int) -> int:
  """Returns how much of an axis is held at a rate, rounded up.

  It is computed in floating point, as HeteroFL's, FedRolex's and FjORD's
  authors do (`int(np.ceil(size * rate))`), so that 0.07 of 100 are 8.

  >>> amount(0.07, 100), amount(0.5, 5), amount(1.0, 12)
  (8, 3, 12)
  """
  return math.ceil(size * rate)

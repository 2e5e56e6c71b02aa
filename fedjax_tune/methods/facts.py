"""What is known about a run when its method is built."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import numpy as np

from fedjax_tune import config
from fedjax_tune.costs.fit import Menu
from fedjax_tune.data.public import Shown
from fedjax_tune.data.tasks import Task
from fedjax_tune.engine.algorithm import Algorithm
from fedjax_tune.models.foundation import Foundation


def nothing_public(tier: str) -> Shown:
  """Stands for public inputs where there are none.

  Raises:
    ValueError: Always.
  """
  raise ValueError(
    f'tier {tier!r} is aligned on public inputs, which are not at hand here.'
  )


@dataclasses.dataclass(frozen=True)
class Facts:
  """Everything that is known about a run when its method is built.

  Attributes:
    experiment: The run's configuration; a method reads its own sections.
    sizes: Size of each axis along which clients may differ. For each tier,
      under `federation.tier_axis`, its number of blocks.
    budgets: How many blocks each client can hold.
    task: What is learned.
    present: client -> which classes it has, bool [K]; None if there are no
      classes.
    tiers: For each tier a function that builds its model, with the given
      bottleneck adapters or the experiment's. Methods with one model have one
      tier.
    fitted: For each menu of amounts (`menus.py`) what each client's device can
      train, if `clients.fit` asks for it; else {}.
    public: Returns the unlabelled inputs that everyone may see, as a tier reads
      them.
    aligned: For each tier, by path, what an earlier process computed from the
      public inputs; {} computes it.
  """

  experiment: config.Experiment
  sizes: Mapping[str, int]
  budgets: tuple[int, ...]
  task: Task
  present: Callable[[int], np.ndarray] | None
  tiers: Mapping[str, Callable[[config.Fedadapter | None], Foundation]]
  fitted: Mapping[str, tuple[Any, ...]] = dataclasses.field(
    default_factory=dict
  )
  public: Callable[[str], Shown] = nothing_public
  aligned: Mapping[str, Mapping[str, np.ndarray]] = dataclasses.field(
    default_factory=dict
  )

  @property
  def depth(self) -> int:
    """Blocks of the full model, L."""
    return self.sizes['layer']

  @property
  def seed(self) -> int:
    """Seed of the run."""
    return self.experiment.seed

  def foundation(self) -> Foundation:
    """Builds the model of a method that has one model."""
    (build,) = self.tiers.values()
    return build(None)


# (experiment, size of each axis, budget of each client) -> None
Check = Callable[[config.Experiment, Mapping[str, int], tuple[int, ...]], None]


def accept(
  experiment: config.Experiment,
  sizes: Mapping[str, int],
  budgets: tuple[int, ...],
) -> None:
  """Accepts every experiment."""
  del experiment, sizes, budgets


# (experiment, size of each axis) -> what clients may hold along each that it cuts
Menus = Callable[[config.Experiment, Mapping[str, int]], tuple[Menu, ...]]


def uncut(
  experiment: config.Experiment, sizes: Mapping[str, int]
) -> tuple[Menu, ...]:
  """Returns no menu: every client holds the whole model."""
  del experiment, sizes
  return ()


@dataclasses.dataclass(frozen=True)
class Method:
  """An entry of the registry.

  Attributes:
    build: Builds the method when everything is known.
    check: (experiment, sizes, budgets) -> None. Raises a ValueError for errors
      that can be found before data are read.
    menus: (experiment, size of each axis) -> the amounts that clients may hold
      along each axis that the method cuts, so that `clients.fit` can choose.
    several_models: Whether clients have the models of `tiers`, not one model.
    source: Where the method was published, or 'baseline'; `--help` shows it.
  """

  build: Callable[[Facts], Algorithm]
  check: Check = accept
  menus: Menus = uncut
  several_models: bool = False
  source: str = ''

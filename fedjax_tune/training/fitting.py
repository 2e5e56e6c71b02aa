"""What each client's device can train of a model, for `clients.fit`."""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any

import numpy as np

from fedjax_tune import config
from fedjax_tune.costs import cost, fit
from fedjax_tune.costs.hardware import Device
from fedjax_tune.data import corpus
from fedjax_tune.engine import batches, local_optimizer
from fedjax_tune.engine.algorithm import Algorithm
from fedjax_tune.engine.slabs import Signature
from fedjax_tune.methods import METHODS
from fedjax_tune.methods.depth import uniform
from fedjax_tune.models.foundation import Foundation

# (device, local steps of a round, limits) -> what it can train
Solver = Callable[[Device, int, fit.Limits], fit.Fit]


def solver(
  experiment: config.Experiment,
  shapes: Callable[[], Foundation],
  train: corpus.Corpus,
  sizes: Mapping[str, int],
) -> Solver | None:
  """Builds the search over what a method's clients may hold, if it cuts at all.

  Costs are those of FedAvg on the traced program of the experiment's own model,
  for the longest examples. A method's extra work (DepthFL's exits, FjORD's
  distillation) is not included.

  Args:
    experiment: The configuration.
    shapes: Returns the shapes of the whole model.
    train: The training examples.
    sizes: Size of each axis of the model.
  """
  menus = METHODS[experiment.method].menus(experiment, sizes)
  if not menus:
    return None
  depth = sizes['layer']
  optimizer = local_optimizer.build(experiment.local)
  length = 0 if train.lengths is None else max(experiment.data.lengths)
  batch = batches.shapes(train, length, (experiment.local.batch_size,))

  @functools.cache
  def whole() -> Algorithm:
    return uniform.fedavg(shapes(), train.task, (depth,), depth)

  def measure(held: fit.Held) -> cost.Cost:
    sig = Signature.of({'layer': depth, **held})
    return cost.client_cost(whole(), sig, batch, optimizer=optimizer)

  known = fit.measured(measure)
  return lambda device, steps, limits: fit.largest(
    device, steps, menus, known, limits
  )


def limits(cfg: config.Clients) -> fit.Limits:
  """Returns what `clients.fit` must not exceed."""
  seconds = cfg.deadline_s if cfg.fit in ('time', 'both') else None
  return fit.Limits(seconds, cfg.fit in ('memory', 'both'), cfg.cut_first)


def fit_all(
  experiment: config.Experiment,
  find: Solver,
  devices: Sequence[Device],
  steps: np.ndarray,
) -> tuple[fit.Fit, ...]:
  """Fits every client to its device.

  Args:
    experiment: The configuration.
    find: The search.
    devices: Each client's device.
    steps: Each client's local steps.

  Raises:
    ValueError: A device cannot train the least that the method lists.
  """
  bounds = limits(experiment.clients)
  find = functools.cache(find)
  pairs = zip(devices, steps.tolist(), strict=True)
  return tuple(find(device, taken, bounds) for device, taken in pairs)


def by_menu(fits: Sequence[fit.Fit]) -> dict[str, tuple[Any, ...]]:
  """Returns each client's choice from each menu."""
  names = fits[0].values if fits else ()
  return {name: tuple(f.values[name] for f in fits) for name in names}

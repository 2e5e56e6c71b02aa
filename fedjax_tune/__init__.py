"""Federated fine-tuning of foundation models across unequal clients.

Clients that train together can hold different parts of a model: some of its
layers, part of a width, a lower rank. An `Experiment` describes a run, and
`train` runs it, on a data set that it names or on arrays in memory:

  import fedjax_tune as ft

  experiment = ft.Experiment(method='fedra', rounds=20)
  experiment.model.weights = 'dinov2_vits14'
  experiment.data.image_size = 42
  experiment.clients.partition, experiment.clients.count = 'iid', 8
  experiment.clients.cohort, experiment.clients.cohort_size = 'uniform', 4
  experiment.clients.budgets = (12, 9, 6, 3)
  data = ft.from_arrays(images, labels, test_images, test_labels)
  summary = ft.train(experiment, 'runs/own', data=data)
  print(summary['accuracy'])

What a client holds is a `Selection`; `select`, `group_sum` and `coverage_mean`
dispatch and aggregate. A method is an `Algorithm`: a rule (who holds what), a
`Client` (how a client trains), an `Aggregator` (what the server makes of the
updates) and an `Evaluation`. `register_method`, `register_partition`,
`register_server_optimizer` and `register_writer` add your own. `client_update`
trains one client on its own arrays, with its own loss.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from fedjax_tune.config import Experiment
  from fedjax_tune.data.arrays import from_arrays
  from fedjax_tune.engine.algorithm import (
    Aggregator,
    Algorithm,
    Client,
    Evaluation,
  )
  from fedjax_tune.engine.client import Batch, client_update
  from fedjax_tune.engine.randomness import host_rng
  from fedjax_tune.methods.facts import Facts
  from fedjax_tune.models.flax_folder import load_model
  from fedjax_tune.plugins import (
    register_method,
    register_partition,
    register_server_optimizer,
    register_writer,
  )
  from fedjax_tune.selection import Selection, coverage_mean, group_sum, select
  from fedjax_tune.training.loop import train

__version__ = '0.1.0'
__all__ = [
  'Aggregator',
  'Algorithm',
  'Batch',
  'Client',
  'Evaluation',
  'Experiment',
  'Facts',
  'Selection',
  'client_update',
  'coverage_mean',
  'from_arrays',
  'group_sum',
  'host_rng',
  'load_model',
  'register_method',
  'register_partition',
  'register_server_optimizer',
  'register_writer',
  'select',
  'train',
]

# Imported when they are used: a command that only refuses needs no JAX.
_HOMES = {
  'config': ['Experiment'],
  'data.arrays': ['from_arrays'],
  'engine.algorithm': ['Aggregator', 'Algorithm', 'Client', 'Evaluation'],
  'engine.client': ['Batch', 'client_update'],
  'methods.facts': ['Facts'],
  'models.flax_folder': ['load_model'],
  'plugins': [
    'register_method',
    'register_partition',
    'register_server_optimizer',
    'register_writer',
  ],
  'engine.randomness': ['host_rng'],
  'selection': ['Selection', 'coverage_mean', 'group_sum', 'select'],
  'training.loop': ['train'],
}


def __getattr__(name: str) -> Any:
  for module, names in _HOMES.items():
    if name in names:
      return getattr(importlib.import_module(f'{__name__}.{module}'), name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})

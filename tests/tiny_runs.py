"""A run on three clients of a tiny picture model, as a user would set it up."""

from typing import Any

import fedjax_tune as ft


def experiment(**fields: Any) -> ft.Experiment:
  """Returns an experiment of two rounds, with some fields of its own."""
  e = ft.Experiment(rounds=2, eval_every=1, **fields)
  e.model.weights, e.data.image_size = 'random:vit_test', 16
  e.clients.partition, e.clients.count = 'iid', 3
  e.clients.cohort, e.clients.cohort_size = 'uniform', 2
  e.clients.budgets, e.clients.min_examples = (4, 2, 2), 1
  e.lora.rank, e.local.batch_size, e.local.steps = 2, 4, 2
  e.engine.compilation_cache = False
  return e

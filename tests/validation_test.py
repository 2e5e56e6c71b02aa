"""A validation split judges the server's model on examples of all clients."""

import types
from typing import Any

import numpy as np
import tiny

from fedjax_tune.data import shares
from fedjax_tune.training import evaluation


def test_it_is_the_accuracy_on_its_examples():
  run, data = tiny.run(tiny.experiment('all_large')), tiny.examples(60, 4)
  rows = [np.array([0, 5, 11]), np.array([20, 30, 47, 40])]
  setup: Any = types.SimpleNamespace(
    algorithm=run.algorithm,
    experiment=run.experiment,
    readers={},
    inputs=(data, tiny.examples(31, 4, seed=8)),
    own_data=None,
    validation=shares.Shares.of(rows),
  )
  model, start = run.foundation, run.engine.init()
  found = evaluation.build(setup, run.engine.base)(start)
  at = np.concatenate(rows)
  whole = model.merge(model.base, model.theta)
  outputs = whole(np.asarray(data.inputs)[at], np.arange(tiny.DEPTH))
  hits = np.argmax(outputs, -1) == data.labels[at]
  by_domain = [hits[data.domains[at] == d].mean() for d in (0, 1)]
  np.testing.assert_allclose(found['validation/accuracy'], np.mean(by_domain))
  setup.validation = None
  test = evaluation.build(setup, run.engine.base)(start)
  assert 'validation/accuracy' not in test
  assert test.items() <= found.items()

"""Clients of a slab over two devices: one result, whatever the devices."""

import jax
import numpy as np
import pytest
import tiny


def _state(devices):
  # Of one size: one program.
  clients = {'budgets': (3,) * 4}
  e = tiny.experiment('fedra', clients=clients, engine={'slab': 2})
  run = tiny.run(e, tiny.stack(dropout=0.1))
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype),
    run.planner.plan(0).works[0].batches,
  )
  run.engine.compile(run.planner.widths, lambda _: shapes, 'map', 1, devices)
  state, key = run.engine.init(), jax.random.key(e.seed)
  for rnd in range(2):
    state, _ = run.engine.round(state, run.planner.plan(rnd), key, 0.1)
    jax.block_until_ready(state)
  return state, run


@pytest.fixture(scope='module')
def single():
  return _state(devices=1)[0]


def test_two_devices_equal_one(single):
  assert jax.local_device_count() == 2
  state, run = _state(devices=2)
  for old, new in zip(
    jax.tree.leaves(single), jax.tree.leaves(state), strict=True
  ):
    np.testing.assert_allclose(new, old, rtol=1e-5, atol=1e-6)
  # The programs really span both.
  for program in run.engine.programs.compiled.values():
    shardings = jax.tree.leaves(program.input_shardings)
    assert max(len(s.device_set) for s in shardings) == 2

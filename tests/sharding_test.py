"""Clients of a slab over two devices: one result, whatever the devices."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny


def _state(devices):
  # Of one size: one program.
  clients = {'budgets': (3,) * 4}
  e = tiny.experiment('fedra', clients=clients, engine={'slab': 2})
  data = tiny.examples(48, tiny.STACK_SIZE)
  data = dataclasses.replace(data, inputs=np.asarray(data.inputs, np.float32))
  run = tiny.run(e, tiny.stack(dropout=0.1), data)
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype),
    run.planner.plan(0).works[0].own.batches,
  )
  run.engine.compile(
    run.planner.widths,
    lambda _: shapes,
    run.planner.info_shapes,
    'map',
    1,
    devices,
  )
  state, key = run.engine.init(), jax.random.key(e.seed)
  for rnd in range(2):
    state, _ = run.engine.round(state, run.planner.plan(rnd), key, 0.1)
    jax.block_until_ready(state)
  return state, run


@pytest.fixture(scope='module')
def single():
  return _state(devices=1)[0]


@pytest.fixture(scope='module')
def double():
  return _state(devices=2)


def test_two_devices_equal_one(single, double):
  assert jax.local_device_count() == 2
  state, run = double
  for old, new in zip(
    jax.tree.leaves(single), jax.tree.leaves(state), strict=True
  ):
    np.testing.assert_allclose(new, old, rtol=1e-5, atol=1e-6)
  # The programs really span both.
  for program in run.engine.programs.compiled.values():
    shardings = jax.tree.leaves(program.input_shardings)
    assert max(len(s.device_set) for s in shardings) == 2


def test_a_client_that_is_not_finite_is_left_out_of_two_devices(double):
  state, run = double
  planned, key = run.planner.plan(2), jax.random.key(run.experiment.seed)
  # The second client of the first slab, on the second device.
  work = planned.works[0]
  own = work.own
  inputs = own.batches.inputs.at[1].set(np.nan)
  batches = own.batches._replace(inputs=inputs)
  broken = work._replace(own=own._replace(batches=batches))
  rest = work._replace(own=own._replace(weight=own.weight.at[1].set(0)))
  (got, sums), (want, others) = (
    run.engine.round(
      state, planned._replace(works=[w, *planned.works[1:]]), key, 0.1
    )
    for w in (broken, rest)
  )
  tiny.assert_close(got, want, rtol=1e-6)
  np.testing.assert_array_equal(sums['rejected'][0], [False, True])
  np.testing.assert_allclose(sums['loss'], others['loss'], rtol=1e-6)

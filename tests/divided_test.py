"""Frozen weights divided among devices (FSDP): one result, less on each."""

import dataclasses
import functools
import os
import pathlib
import subprocess
import sys

import jax
from jax.sharding import PartitionSpec
import numpy as np
import pytest
import tiny

from fedjax_tune import config
from fedjax_tune.engine import (
  divided,
  evaluate,
  round,
  server_optimizer,
)
from fedjax_tune.engine.schedule import clients_mesh
from fedjax_tune.models import foundation
from fedjax_tune.training import agreement

# Clients of one signature, more than there are devices.
_CLIENTS = 8


def _found(devices):
  found = tiny.vit_foundation(dropout=0.1)
  return divided.divide(found, clients_mesh(devices))


@functools.cache
def _rounds(case, devices, fsdp, mode):
  """Returns the state after two rounds, with the engine and what it judges."""
  e = tiny.experiment(
    case,
    clients={'budgets': (3,) * _CLIENTS, 'count': _CLIENTS // 2},
    engine={'slab': _CLIENTS},
  )
  found = _found(devices) if fsdp else tiny.vit_foundation(dropout=0.1)
  run = tiny.run(e, found)
  engine = round.Engine(
    run.algorithm, run.local_opt, server_optimizer.build(e.server)
  )
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype),
    run.planner.plan(0).works[0].own.batches,
  )
  info, widths = run.planner.info_shapes, run.planner.widths
  engine.compile(widths, lambda _: shapes, info, mode, 2, devices, fsdp)
  state, key = engine.init(), jax.random.key(e.seed)
  for rnd in range(2):
    state, _ = engine.round(state, run.planner.plan(rnd), key, 0.1)
  evaluation = run.algorithm.evaluation
  test = tiny.examples(31, tiny.VIT_SIZE, seed=9)
  judge = evaluate.build_evaluate(
    run.algorithm.model, evaluation, dict.fromkeys(evaluation.models, test)
  )
  return engine, state, judge(engine.base(state), state.theta)


def check(case, devices, mode='map'):
  """Compares a case on several devices, divided, with one."""
  _, *want = _rounds(case, 1, False, mode)
  engine, *got = _rounds(case, devices, True, mode)
  tiny.assert_close(got, want, rtol=1e-4, atol=1e-6)
  for program in engine.programs.compiled.values():
    shardings = jax.tree.leaves(program.input_shardings)
    assert max(len(s.device_set) for s in shardings) == devices


@pytest.mark.parametrize(
  ('case', 'mode'),
  [
    ('fedra', 'map'),
    pytest.param('fedra', 'chunk', marks=pytest.mark.slow),
    pytest.param('heterofl', 'map', marks=pytest.mark.slow),
  ],
)
def test_two_devices_equal_one(case, mode):
  # Clients of FedRA are at different blocks at the same time; those of HeteroFL
  # hold parts of blocks.
  check(case, 2, mode)


def test_each_device_has_its_part():
  whole, base = tiny.vit_foundation(dropout=0.1).base, _found(2).base
  axes = tiny.vit_foundation(dropout=0.1).base_axes
  tiny.assert_equal(jax.device_get(base), jax.device_get(whole))
  held = dict.fromkeys(jax.local_devices(), 0)
  for leaf in jax.tree.leaves(base):
    for shard in leaf.addressable_shards:
      held[shard.device] += shard.data.nbytes
  specs = divided.specs(whole, axes, 2)
  entire = sum(
    leaf.nbytes
    for leaf, spec in zip(
      jax.tree.leaves(whole), jax.tree.leaves(specs), strict=True
    )
    if not spec
  )
  total = foundation.num_bytes(whole)
  assert list(held.values()) == [(total - entire) // 2 + entire] * 2
  assert entire < 0.01 * total


def test_the_longest_axis_is_divided_but_never_that_of_blocks():
  shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, np.float32)
  base = {
    'fc1': shape(12, 8, 32),
    'odd': shape(12, 8, 33),
    'none': shape(12, 3),
    'equal': shape(4, 4),
  }
  axes = {
    'fc1': ('layer', 'embed', 'ffn'),
    'odd': ('layer', 'embed', 'ffn'),
    'none': ('layer', 'class'),
    'equal': ('embed', 'embed2'),
  }
  assert divided.specs(base, axes, 4) == {
    'fc1': PartitionSpec(None, None, 'clients'),
    'odd': PartitionSpec(None, 'clients'),
    'none': PartitionSpec(),
    'equal': PartitionSpec('clients'),
  }
  assert set(divided.specs(base, axes, 1).values()) == {PartitionSpec()}


def test_slabs_must_occupy_all_devices():
  e = tiny.experiment('fedra', engine={'slab': 0})
  planner = tiny.run(e).planner
  wide = dataclasses.replace(planner, devices=2)
  assert any(width % 2 for width in planner.widths.values())
  assert not any(width % 2 for width in wide.widths.values())
  cfg = config.Engine(slab=3, devices=2, fsdp=True)
  with pytest.raises(ValueError, match=r'slab=3 must be a multiple of 2'):
    agreement.check_devices(cfg)


@pytest.mark.slow
@pytest.mark.parametrize('devices', [4, 8])
def test_more_devices_equal_one(devices):
  line = (
    'import conftest, jax;'
    f'jax.config.update("jax_num_cpu_devices", {devices});'
    f'import divided_test; divided_test.check("fedra", {devices})'
  )
  here = str(pathlib.Path(__file__).parent)
  env = os.environ | {'PYTHONPATH': os.pathsep.join([here, *sys.path])}
  subprocess.run([sys.executable, '-c', line], env=env, check=True)

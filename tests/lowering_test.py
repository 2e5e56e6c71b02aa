"""Every program of a run lowers for GPUs and TPUs, which needs none.

Lowering refuses an operation that a platform lacks. A program that calls back
to the host would lower, and wait for Python in every step: there is none.
"""

import dataclasses

from flax import nnx
import jax
import numpy as np
import pytest
import tiny

from fedjax_tune.engine import (
  local_optimizer,
  personal,
  server,
  server_optimizer,
  step,
)
from fedjax_tune.engine import round as round_lib
from fedjax_tune.engine.client import Batch
from fedjax_tune.engine.evaluate import build_predict
from fedjax_tune.engine.schedule import Schedule
from fedjax_tune.models import backbone, foundation, sizes
from fedjax_tune.models.lora import Lora
from fedjax_tune.selection import Selection
from fedjax_tune.typing import Tokens

# As jax.default_backend() and as lowering names them.
_PLATFORMS = {'gpu': 'cuda', 'tpu': 'tpu'}
# Of a slab.
_CLIENTS = 2
# What has mixed products is lowered in float32 in the long test run alone.
_DTYPES = [pytest.param('float32', marks=pytest.mark.slow), 'bfloat16']


def _lower(fn, *args, static=(), has=''):
  """Lowers a program for all platforms at once; returns what it would give."""
  traced = jax.jit(fn, static_argnums=static).trace(*args)
  lowered = traced.lower(lowering_platforms=tuple(_PLATFORMS.values()))
  text = lowered.as_text()
  assert 'callback' not in text
  assert has in text
  return traced.out_info


def _arguments(algorithm, inputs, dtype):
  """Returns a signature and what its slab's program takes after it."""
  model, start = algorithm.model, algorithm.client.state
  client = int(np.argmax(algorithm.able(0, len(tiny.BUDGETS))))
  lead = lambda x: np.stack([np.asarray(x)] * _CLIENTS)
  (held,), (info,) = (
    of(0, [client]) for of in (algorithm.rule.draw, algorithm.client.tell)
  )
  shared = step.Shared(
    _stored(model.base, dtype),
    model.theta,
    jax.eval_shape(algorithm.aggregator.init, model.theta),
    jax.random.key(0),
    np.float32(0.1),
    np.int32(0),
  )
  own = step.Own(
    Selection.stack([held] * _CLIENTS),
    jax.tree.map(lead, info),
    jax.tree.map(lead, start(client) if start else ()),
    np.ones(_CLIENTS, np.float32),
    np.arange(_CLIENTS, dtype=np.int32),
    jax.tree.map(lead, _batch(inputs, 2, 3)),
  )
  return tiny.signature(algorithm, client), shared, own


def _stored(base, dtype):
  """Stores frozen parameters as `model.dtype` says."""
  return jax.eval_shape(lambda base: foundation.store(base, dtype), base)


def _batch(inputs, *lead):
  """Repeats one example."""
  fill = lambda x: np.broadcast_to(x, (*lead, *x.shape))
  return Batch(
    jax.tree.map(fill, inputs), np.zeros(lead, np.int32), np.ones(lead, bool)
  )


def _check_slab(algorithm, e, inputs, dtype, schedule, has=''):
  sig, shared, own = _arguments(algorithm, inputs, dtype)
  program = step.build_slab_step(algorithm, local_optimizer.build(e.local))
  return _lower(program, sig, schedule, shared, own, static=(0, 1), has=has)


def _check_server(run, total, dtype):
  """Lowers what follows the slabs of a round."""
  algorithm, theta = run.algorithm, run.theta
  opt = server_optimizer.build(run.experiment.server)
  state = server.ServerState(
    theta, opt.init(theta), algorithm.aggregator.init(theta)
  )
  group = algorithm.aggregator.group
  totals = {group(sig): total for sig in run.planner.widths}
  moved = _lower(
    server.build_server_step(algorithm.aggregator, opt), state, totals
  )
  finish = round_lib.build_finish(server.build_reorder(algorithm))
  _lower(finish, moved, _lower(server.anybody, totals))
  frozen = jax.eval_shape(algorithm.aggregator.frozen_delta, state.memory)
  if frozen:
    base = _stored(algorithm.model.base, dtype)
    _lower(foundation.add_frozen, base, frozen)


def _check_evaluation(algorithm, inputs, dtype):
  model, evaluation = algorithm.model, algorithm.evaluation
  seen = _stored(model.base, dtype), model.theta
  batch = _batch(inputs, 3)
  if evaluation.personal:
    predict = personal.build_own_predict(algorithm)
    # Clients have the tiers in turn.
    for client, first in enumerate(evaluation.models):
      (held,) = algorithm.rule.draw(0, [client])
      name = algorithm.tier(client) or first
      _lower(
        predict, name, *seen, algorithm.client.state(0), held, batch, static=0
      )
    return
  predict = build_predict(model, evaluation)
  for name in evaluation.models:
    _lower(predict, (name,), *seen, batch, static=0)


_IMAGE = np.zeros((tiny.STACK_SIZE, tiny.STACK_SIZE, 3), np.uint8)


def _accelerators(mode, devices=1):
  """Returns the one schedule of all platforms."""
  choose = lambda platform: Schedule.choose(
    mode, 1, _CLIENTS, devices, platform=platform
  )
  (schedule,) = {choose(name) for name in _PLATFORMS}
  return schedule


@pytest.fixture(scope='module', params=tiny.LONG_CASES)
def run(request):
  return tiny.run(tiny.experiment(request.param, lora={'dropout': 0.1}))


@pytest.mark.parametrize('dtype', _DTYPES)
def test_all_clients_at_once(run, dtype):
  schedule = _accelerators('auto')
  assert schedule.chunk == _CLIENTS
  args = run.algorithm, run.experiment, _IMAGE, dtype, schedule
  result = _check_slab(*args)
  _check_server(run, result.total, dtype)
  _check_evaluation(run.algorithm, _IMAGE, dtype)


# One variant of each.
_METHODS = {name.partition(':')[0]: name for name in tiny.CASES}


@pytest.mark.parametrize('run', _METHODS.values(), indirect=True)
@pytest.mark.parametrize(
  'dtype', ['float32', pytest.param('bfloat16', marks=pytest.mark.slow)]
)
def test_clients_one_after_another(run, dtype):
  schedule = _accelerators('map')
  assert schedule.chunk == 1
  _check_slab(run.algorithm, run.experiment, _IMAGE, dtype, schedule)


_PICTURE = np.zeros((tiny.VIT_SIZE, tiny.VIT_SIZE, 3), np.uint8)
_TEXT = Tokens(*np.ones((2, 8), np.int32))
_LLAMA = sizes.DecoderConfig(
  tiny.DEPTH,
  16,
  2,
  32,
  vocab=20,
  positions=12,
  group=2,
  head_dim=8,
  num_classes=3,
)


@pytest.mark.parametrize('dtype', _DTYPES)
@pytest.mark.parametrize(
  ('shape', 'inputs'),
  [
    (tiny.vit_config(dropout=0.1), _PICTURE),
    (tiny.text_config(dropout=0.1), _TEXT),
    (_LLAMA, _TEXT),
  ],
  ids=lambda x: getattr(x, 'family', ''),
)
def test_models(shape, inputs, dtype):
  """Each with LoRA everywhere, its dropout, and blocks computed twice."""
  adapters = dict.fromkeys(backbone.linear_maps(shape), Lora(2, 2.0, 0.1))
  model = nnx.eval_shape(
    lambda: backbone.build_model(shape, adapters, remat=True, rngs=nnx.Rngs(0))
  )
  found, e = foundation.split(model, tiny.DEPTH), tiny.experiment()
  algorithm = tiny.build(e, found, widths=sizes.axis_sizes(shape))
  _check_slab(algorithm, e, inputs, dtype, _accelerators('auto'))
  _check_evaluation(algorithm, inputs, dtype)


@pytest.mark.parametrize(
  ('shape', 'inputs'),
  [
    pytest.param(tiny.vit_config(full=True), _PICTURE, marks=pytest.mark.slow),
    (dataclasses.replace(_LLAMA, full=True), _TEXT),
  ],
  ids=lambda x: getattr(x, 'family', ''),
)
def test_models_that_train_whole_in_bfloat16(shape, inputs):
  def make():
    model = backbone.build_model(shape, {}, remat=True, rngs=nnx.Rngs(0))
    foundation.mix(model)
    return model

  found = foundation.split(nnx.eval_shape(make), tiny.DEPTH)
  e = tiny.experiment()
  algorithm = tiny.build(e, found, widths=sizes.axis_sizes(shape))
  args = algorithm, e, inputs, 'bfloat16', _accelerators('auto')
  _check_slab(*args, has='bf16')
  _check_evaluation(algorithm, inputs, 'bfloat16')


def test_clients_on_two_devices():
  schedule = _accelerators('auto', devices=2)
  assert schedule.devices == 2
  e = tiny.experiment()
  args = tiny.run(e).algorithm, e, _IMAGE, 'float32', schedule
  _check_slab(*args)


@pytest.mark.parametrize(
  'program',
  [
    # LAPACK's alone.
    jax.lax.linalg.schur,
    lambda x: jax.pure_callback(np.sin, x, x, vmap_method='sequential'),
  ],
)
def test_what_only_the_host_can_do_is_seen(program):
  with pytest.raises((NotImplementedError, AssertionError)):
    _lower(program, np.zeros((3, 3), np.float32))

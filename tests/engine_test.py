"""The parts of the engine, each by hand."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from fedjax_tune.engine import evaluate, plan, slabs
from fedjax_tune.engine.client import Batch, client_update
from fedjax_tune.engine.schedule import Schedule
from fedjax_tune.methods import proximal
from fedjax_tune.selection import Selection

# -- a client


def _targets(valid):
  """Batches whose 'image' is the target of a quadratic loss."""
  steps = len(valid)
  image = np.random.default_rng(0).normal(size=(steps, 2, 3))
  valid = np.repeat(np.array(valid)[:, None], 2, 1)
  return Batch(
    jnp.asarray(image, jnp.float32),
    jnp.zeros((steps, 2), jnp.int32),
    jnp.asarray(valid),
  )


def _quadratic(local, batch, key):
  del key
  error = local['w'] - jnp.mean(batch.inputs, 0)
  return jnp.sum(error**2) / 2, {'count': jnp.sum(batch.valid)}


def _update(batches, optimizer=None, prox=0.0):
  optimizer = optimizer or optax.sgd(1.0, momentum=0.9)
  return client_update(
    _quadratic,
    optax.chain(proximal.pull(prox), optimizer) if prox else optimizer,
    {'w': jnp.ones(3)},
    batches,
    jax.random.key(0),
    jnp.float32(0.1),
  )


@pytest.mark.parametrize('prox', [0.0, 0.5])
def test_prox_pulls_towards_the_start(prox):
  batches = _targets([True] * 4)
  start = np.ones(3)
  w, velocity = start, np.zeros(3)
  for target in np.asarray(batches.inputs).mean(1):
    gradient = w - target + prox * (w - start)
    velocity = 0.9 * velocity + gradient
    w = w - 0.1 * velocity
  delta, _ = _update(batches, prox=prox)
  np.testing.assert_allclose(delta['w'], w - start, rtol=1e-5)


def test_a_step_without_examples_changes_nothing():
  """Neither the parameters nor the optimizer's momentum and count."""
  holes = _targets([True, False, True, False])
  dense = jax.tree.map(lambda x: x[jnp.asarray([0, 2])], holes)
  for optimizer in (None, optax.adam(1.0)):
    got, metrics = _update(holes, optimizer)
    want, _ = _update(dense, optimizer)
    np.testing.assert_allclose(got['w'], want['w'], rtol=1e-6)
    assert metrics['count'] == 4


# -- groups


def test_slabs_by_hand():
  small, large = (slabs.Signature((('layer', n),)) for n in (1, 2))
  rows = [
    Selection.of({'layer': np.arange(n) + k})
    for k, n in enumerate((1, 2, 1, 1))
  ]
  cut = slabs.cut_slabs(
    [10, 11, 12, 13],
    [small, large, small, small],
    rows,
    [{'told': np.full(3, k)} for k in range(4)],
    [1, 2, 3, 4],
    {small: 2, large: 1},
  )
  assert [s.sig for s in cut] == [small, small, large]
  assert [list(s.ids) for s in cut] == [[10, 12], [13, -1], [11]]
  assert [list(s.weight) for s in cut] == [[1, 3], [4, 0], [2]]
  np.testing.assert_array_equal(cut[0].held['layer'], [[0], [2]])
  np.testing.assert_array_equal(cut[1].held['layer'], [[3], [3]])
  np.testing.assert_array_equal(cut[2].held['layer'], [[1, 2]])
  np.testing.assert_array_equal(cut[0].info['told'], [[0] * 3, [2] * 3])


@pytest.mark.parametrize(
  ('mode', 'chunk', 'width', 'want'),
  [
    ('map', 3, 6, 1),
    ('vmap', 3, 6, 6),
    ('chunk', 3, 6, 3),
    # The largest divisor of the width that is not above what was asked for.
    ('chunk', 4, 6, 3),
    ('chunk', 4, 5, 1),
    ('chunk', 9, 6, 6),
  ],
)
@pytest.mark.parametrize('platform', ['cpu', 'gpu', 'tpu'])
def test_schedule(mode, chunk, width, want, platform):
  choose = Schedule.choose
  assert choose(mode, chunk, width, platform=platform).chunk == want


@pytest.mark.parametrize(
  ('platform', 'devices', 'want'),
  # One after another on a CPU; all of a device's at once on an accelerator.
  [('cpu', 1, 1), ('cpu', 2, 1), ('gpu', 1, 6), ('tpu', 1, 6), ('tpu', 4, 3)],
)
def test_schedule_by_itself(platform, devices, want):
  got = Schedule.choose('auto', 3, 6, devices, platform=platform)
  assert got == Schedule(want, devices=min(devices, 2))


# -- planning


def test_widths_are_what_a_round_brings():
  e = tiny.experiment(engine={'slab': 0})
  planner = tiny.run(e).planner
  named = {sig['layer']: n for sig, n in planner.widths.items()}
  assert named == {4: 1, 3: 1, 2: 2}


@pytest.mark.parametrize('weighting', ['uniform', 'examples'])
def test_weights(weighting):
  run = tiny.run(tiny.experiment(server={'weighting': weighting}))
  work = run.planner.plan(0).works[-1]
  # A slab of two with one client of 12 examples.
  assert list(work.own.weight) == [1 if weighting == 'uniform' else 12, 0]
  assert not np.any(work.own.batches.valid[1])


def test_a_plan_counts_owners_and_steps():
  run = tiny.run(tiny.experiment())
  planned = run.planner.plan(0)
  rows = run.algorithm.rule.draw(0, [m.client for m in planned.members])
  held = [np.asarray(row['layer']) for row in rows]
  owners = [sum(n in layers for layers in held) for n in range(tiny.DEPTH)]
  assert list(planned.owners) == owners
  assert planned.client_steps == 4 * 2


def test_clients_train_on_their_own_examples():
  run = tiny.run(tiny.experiment())
  data: Any = run.planner.examples
  for work in run.planner.plan(0).works:
    for i, client in enumerate(work.slab.ids):
      if client < 0:
        continue
      own = data.inputs[run.planner.indices[client]]
      images = np.asarray(work.own.batches.inputs[i]).reshape(
        -1, *own.shape[1:]
      )
      same = (images[:, None] == own[None]).all((2, 3, 4))
      assert same.any(1).all()


# Plans may be anything.
_prefetch: Any = plan.prefetch


def test_prefetch_yields_in_order_and_looks_one_ahead():
  made = []
  stream = _prefetch(lambda rnd: made.append(rnd) or rnd, range(3, 7))
  for rnd in (3, 4):
    planned, begin_next = next(stream)
    assert planned == rnd
    assert max(made) == rnd
    begin_next()
  # What was not begun is made when it is asked for.
  assert [planned for planned, _ in stream] == [5, 6]
  assert made == [3, 4, 5, 6]
  assert list(_prefetch(str, range(2, 2))) == []


def test_prefetch_passes_errors_on():
  def fail(rnd):
    if rnd == 1:
      raise OSError('unreadable')
    return rnd

  stream = _prefetch(fail, range(3))
  next(stream)[1]()
  with pytest.raises(OSError, match='unreadable'):
    next(stream)


# -- evaluation


def test_accuracy_by_domain_by_hand():
  """Also where the last batch is padded."""
  run = tiny.run(tiny.experiment())
  data: Any = run.planner.examples
  layers = np.arange(tiny.DEPTH)
  model = run.foundation.merge(run.foundation.base, run.theta)
  scores = model(data.inputs, layers)
  hits = np.argmax(scores, -1) == data.labels
  want = [hits[data.domains == d].mean() for d in (0, 1)]
  assert len(data) % 20 != 0
  check = evaluate.build_evaluate(
    run.foundation, run.algorithm.evaluation, {'full': data}, batch_size=20
  )
  got = check(run.foundation.base, run.theta)
  np.testing.assert_allclose(got['full']['accuracy'], want)
  assert 0 < np.mean(want) < 1

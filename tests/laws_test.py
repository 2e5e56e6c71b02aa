"""Laws that every method of the registry keeps, with dropout on."""

import dataclasses
import functools
import itertools
import logging

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from fedjax_tune import config, health, selection
from fedjax_tune.engine import server, step
from fedjax_tune.methods import BUILDERS, adapters

_ROUNDING = {'rtol': 1e-3, 'atol': 5e-6}


class Case:
  """A method's run; the tests of one method share its programs.

  Attributes:
    run: The run, whose method notes each trace of its loss.
    traces: Signatures of those traces.
  """

  def __init__(self, name):
    # Numbers, not bytes, so that one program serves sound and broken data.
    data = tiny.examples(48, tiny.STACK_SIZE)
    data = dataclasses.replace(data, inputs=_numbers(data.inputs))
    run = tiny.run(tiny.experiment(name), data=data)
    method, self.traces = _traced(run.method)
    planner = dataclasses.replace(run.planner, method=method)
    self.name = name
    self.run = dataclasses.replace(run, method=method, planner=planner)
    self.key = jax.random.key(run.experiment.seed)

  @functools.cached_property
  def gradient(self):
    """The gradient of a local step, for the slow twin."""
    run = self.run

    frozen = run.engine.base(run.engine.init())

    def gradient(sig, local, own, batch, key, rnd):
      alloc = {**own, **dict(sig.prefix)}

      def objective(local):
        view = run.method.view(sig, local, alloc)
        model = run.foundation.assemble(frozen, view, alloc)
        return run.method.loss(sig, model, alloc, batch, key, rnd)

      return jax.grad(objective, has_aux=True)(local)

    return jax.jit(gradient, static_argnums=0)


def _numbers(inputs):
  return inputs.astype(np.float32)


def _traced(method):
  traces = []

  class Traced(type(method)):
    def loss(self, sig, *args):
      traces.append(sig)
      return super().loss(sig, *args)

  return Traced(**vars(method)), traces


@pytest.fixture(scope='module', params=tiny.CASES)
def case(request):
  return Case(request.param)


def test_every_method_is_here():
  assert {name.partition(':')[0] for name in tiny.CASES} == set(BUILDERS)


# -- the slow twin: plain Python over clients, steps and coordinates


def _slow_client(case, sig, row, batches, client, rnd):
  """Trains one client; returns what it sends, its factor, its metrics."""
  run, cfg = case.run, case.run.experiment.local
  index = tiny.held(run.theta, run.axes, row)
  start = jax.tree.map(lambda x, at: np.asarray(x)[at], run.theta, index)
  key = jax.random.fold_in(jax.random.fold_in(case.key, rnd), client)
  memory = run.method.init_memory(run.theta)
  draw = jax.random.fold_in(key, np.uint32(2**32 - 1))
  start = jax.device_get(run.method.begin(sig, start, row, memory, draw))
  local, velocity = start, jax.tree.map(np.zeros_like, start)
  own, _ = selection.split_allocation(row)
  total = {}
  for s in range(len(batches.valid)):
    batch = jax.tree.map(lambda x, s=s: x[s], batches)
    step_key = jax.random.fold_in(key, s)
    grads, metrics = jax.device_get(
      case.gradient(sig, local, own, batch, step_key, np.int32(rnd))
    )
    norm = np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(grads)))
    shrink = min(1, cfg.clip_norm / norm)

    def push(v, g, w, shrink=shrink):
      return cfg.momentum * v + shrink * g + cfg.weight_decay * w

    velocity = jax.tree.map(push, velocity, grads, local)
    local = jax.tree.map(lambda w, v: w - cfg.lr * v, local, velocity)
    total = {name: total.get(name, 0) + m for name, m in metrics.items()}
  delta = jax.tree.map(np.subtract, local, start)
  sent = run.method.upload(sig, start, delta, row)
  return sent, float(run.method.weigh(sig, start, delta)), total


def _slow_sum(run, rows, deltas, weights, selected):
  """Adds coordinate by coordinate, as `selection.group_sum` defines."""
  like, axes = run.method.sums(run.theta, run.axes)
  zero = selection.zero_sum(like, axes, selected)
  num, den = jax.tree.map(np.array, zero)
  for row, delta, weight in zip(rows, deltas, weights, strict=True):
    for sums, parts in ((num, delta), (den, None)):
      index = tiny.held(sums, axes, row)
      for at, total, part in zip(
        jax.tree.leaves(index, is_leaf=lambda x: isinstance(x, tuple)),
        jax.tree.leaves(sums),
        jax.tree.leaves(parts) if parts else [1] * len(jax.tree.leaves(sums)),
        strict=True,
      ):
        total[at] += weight * np.asarray(part)
  return selection.GroupSum(num, den)


def test_a_round_is_its_slow_twin(case):
  run, rnd = case.run, 2
  planned = run.planner.plan(rnd)
  selected = {axis for w in planned.works for axis in w.slab.sig.axes}
  totals, reports = {}, []
  for work in planned.works:
    rows = [
      {axis: at[i] for axis, at in work.slab.alloc.items()}
      | dict(work.slab.sig.prefix)
      for i in np.flatnonzero(work.slab.weight)
    ]
    clients = [
      _slow_client(
        case,
        work.slab.sig,
        row,
        jax.tree.map(lambda x, i=i: x[i], work.batches),
        work.slab.ids[i],
        rnd,
      )
      for i, row in enumerate(rows)
    ]
    sent, factors, metrics = zip(*clients, strict=True)
    weights = work.slab.weight[: len(rows)] * np.array(factors)
    part = _slow_sum(run, rows, sent, weights, selected)
    bucket = run.method.bucket(work.slab.sig)
    old = totals.get(bucket)
    totals[bucket] = jax.tree.map(np.add, old, part) if old else part
    reports += metrics
  start = run.engine.init()
  update, memory = jax.jit(run.method.merge)(start.theta, totals, start.memory)
  want = jax.tree.map(jnp.add, run.theta, update.delta)
  got, sums = run.engine.round(start, planned, case.key, 0.1)
  tiny.assert_close(got.theta, want, **_ROUNDING)
  tiny.assert_close(got.memory, memory, **_ROUNDING)
  for name in reports[0]:
    total = sum(float(m[name]) for m in reports)
    np.testing.assert_allclose(sums[name], total, rtol=1e-4)
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), got.theta, run.theta)
  if case.name == 'flora':  # Its kernels move instead.
    moved = adapters.change(lambda x: x + np.inf, {**moved, 'base': got.memory})
    moved['base'] = jax.tree.map(lambda x: np.abs(x).max(), moved['base'])
  assert min(jax.tree.leaves(moved)) > 1e-4


# Three clients and one of weight 0, however they lie and share the device;
# one after another they are in the test above.
@pytest.mark.parametrize(
  ('chunk', 'order'),
  [
    (2, (3, 1, 2, 0)),
    # Maps the same function over other numbers of clients.
    pytest.param(4, (0, 2, 1, 3), marks=pytest.mark.slow),
  ],
)
def test_order_padding_and_schedule_change_nothing(case, chunk, order):
  run, client = case.run, int(np.argmax(case.run.method.eligible(0)))
  sig = tiny.signature(run.method, client)
  rows = [run.method.allocate(rnd, [client])[0] for rnd in range(4)]
  batches = tiny.batch(tiny.STACK_SIZE, 4, 2, 4)
  batches = batches._replace(inputs=_numbers(batches.inputs))
  ids, weights = (
    np.array([5, 9, 2, -1], np.int32),
    np.array([1, 2, 3, 0], np.float32),
  )
  at = np.array(order)
  alloc = {
    axis: np.stack([rows[i][axis] for i in order]).astype(np.int32)
    for axis, _ in sig.amounts
  }
  program = jax.jit(
    step.build_slab_step(
      run.foundation.assemble, run.method, run.local_opt, run.axes
    ),
    static_argnums=(0, 1),
  )

  def slab_step(weights, batches):
    return program(
      sig,
      step.Schedule(chunk),
      run.foundation.base,
      run.theta,
      run.method.init_memory(run.theta),
      alloc,
      weights[at],
      ids[at],
      jax.tree.map(lambda x: x[at], batches),
      jax.random.fold_in(case.key, 0),
      np.float32(0.1),
      np.int32(0),
    )

  got, metrics = slab_step(weights, batches)
  sent, factors, reports = zip(
    *[
      _slow_client(
        case, sig, rows[i], jax.tree.map(lambda x, i=i: x[i], batches), k, 0
      )
      for i, k in enumerate(ids[:3])
    ],
    strict=True,
  )
  want = _slow_sum(run, rows[:3], sent, weights[:3] * factors, sig.axes)
  tiny.assert_close(got, want, **_ROUNDING)
  losses = [m['loss'] for m in reports] + [0]
  np.testing.assert_allclose(metrics['loss'], np.array(losses)[at], rtol=1e-4)
  assert not metrics['rejected'].any()
  # Client 9's numbers overflow; the one that pads may have any.
  broken = batches.inputs.at[1, 1].set(3e38).at[3].set(np.nan)
  got, metrics = slab_step(weights, batches._replace(inputs=broken))
  np.testing.assert_array_equal(metrics['rejected'], ids[at] == 9)
  want, rest = slab_step(np.where(ids == 9, 0, weights), batches)
  tiny.assert_close((got, metrics['loss']), (want, rest['loss']), rtol=1e-6)


# -- numbers that are not numbers


def _broken(planned, clients):
  """Puts NaN into the data of some clients, in their last step."""
  works = []
  for work in planned.works:
    hit = np.isin(work.slab.ids, clients)[:, None, None, None, None, None]
    late = np.arange(2)[:, None, None, None, None] == 1
    inputs = jnp.where(hit & late, jnp.nan, work.batches.inputs)
    batches = work.batches._replace(inputs=inputs)
    works.append(work._replace(batches=batches))
  return planned._replace(works=works)


def _without(planned, clients):
  """Gives some clients no weight."""
  works = [
    w._replace(weight=jnp.where(np.isin(w.slab.ids, clients), 0, w.weight))
    for w in planned.works
  ]
  return planned._replace(works=works)


def test_a_client_that_is_not_finite_is_left_out(case):
  run = case.run
  planned, state = run.planner.plan(1), run.engine.init()
  for client, _ in planned.members:
    broken, rest = (f(planned, [client]) for f in (_broken, _without))
    got, sums = run.engine.round(state, broken, case.key, 0.1)
    want, others = run.engine.round(state, rest, case.key, 0.1)
    tiny.assert_close(got, want, rtol=1e-6)
    assert sums['finite']
    for name in set(sums) - {'finite', 'rejected'}:
      np.testing.assert_allclose(sums[name], others[name], rtol=1e-6)
    rejected, _ = health.rejected(broken, jax.device_get(sums['rejected']))
    assert rejected == [client]
    assert not any(x.any() for x in others['rejected'])


def test_a_round_of_broken_clients_leaves_all_as_it_is(case):
  run = case.run
  state = run.rounds(1)
  planned = run.planner.plan(1)
  everyone = [client for client, _ in planned.members]
  got, sums = run.engine.round(state, _broken(planned, everyone), case.key, 0.1)
  tiny.assert_equal(got, state)
  rejected, owners = health.rejected(planned, jax.device_get(sums['rejected']))
  assert rejected == everyone
  assert not owners.any()
  assert sums['finite']
  assert sums['count'] == 0


def test_one_compile_per_signature(case, caplog):
  run = case.run
  widths = run.planner.widths
  first = run.rounds(1)
  assert set(run.engine.programs.compiled) == set(widths)
  before, state = list(case.traces), first
  caplog.set_level(logging.WARNING)
  with jax.log_compiles():
    for rnd in (1, 2):
      state, _ = run.engine.round(state, run.planner.plan(rnd), case.key, 0.1)
  assert case.traces == before
  assert [r.message for r in caplog.records if 'XLA comp' in r.message] == []
  assert set(run.engine.programs.compiled) == set(widths)


# -- selection


@hypothesis.given(st.data())
@hypothesis.settings(
  max_examples=25,
  deadline=None,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
def test_adjoint(case, data):
  theta, axes = case.run.theta, case.run.axes
  sig = tiny.signature(case.run.method, 1)
  sizes = {
    name: size
    for leaf, names in zip(
      jax.tree.leaves(theta),
      jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple)),
      strict=True,
    )
    for name, size in zip(names, leaf.shape, strict=True)
  }
  alloc = {
    axis: np.array(
      data.draw(
        st.lists(
          st.permutations(range(sizes[axis])).map(lambda p, n=n: p[:n]),
          min_size=3,
          max_size=3,
        )
      ),
      np.int32,
    )
    for axis, n in sig.amounts
    if axis in sizes
  }
  x = tiny.noise(theta, data.draw(st.integers(0, 99)))
  dispatch, collect = _adjoint_pair(case, sig)
  there = dispatch(x, alloc)
  y = tiny.noise(there, data.draw(st.integers(0, 99)))
  np.testing.assert_allclose(
    _vdot(there, y), _vdot(x, collect(alloc, y)), rtol=1e-5
  )


@functools.cache
def _adjoint_pair(case, sig):
  theta, axes, prefix = case.run.theta, case.run.axes, dict(sig.prefix)
  held = lambda own: selection.within({**own, **prefix}, axes)
  one = lambda x, own: selection.select(x, axes, held(own))
  back = lambda own, y: selection.scatter_sum(theta, axes, held(own), y)
  return jax.jit(jax.vmap(one, (None, 0), axis_size=3)), jax.jit(back)


def _vdot(x, y):
  dot = lambda a, b: np.vdot(np.asarray(a, np.float64), b)
  return sum(jax.tree.leaves(jax.tree.map(dot, x, y)))


# -- merging

# Whether an update is about all of LoRA, whoever holds which rank of it; where
# smaller adapters are filled up with zeros, it is about all of B.
_WHOLE_LORA = {'flexlora': True, 'flora': False}
_PADDED = ('fedit', 'ffa_lora', 'hetlora', 'fedex_lora')


@pytest.mark.parametrize('name', ['fedavgm', 'fedadam'])
def test_what_nobody_holds_stays_bit_for_bit(case, name):
  run, cohort = case.run, [3]
  if not run.method.eligible(0)[3]:
    cohort = [0]
  theta = run.theta
  opt = server.optimizer(config.Server(optimizer=name))
  memory = tiny.noise(run.method.init_memory(theta), 7)
  opt_state = optax.tree.map_params(
    opt, lambda x: 1 + jnp.abs(tiny.noise(x, 8)), opt.init(theta)
  )
  start = server.ServerState(theta, opt_state, memory)
  rows = run.method.allocate(0, cohort)
  covered = jax.tree.map(lambda x: np.zeros(x.shape, bool), theta)
  for row in rows:
    index = tiny.held(theta, run.axes, row)
    jax.tree.map(lambda c, at: c.__setitem__(at, True), covered, index)
  if case.name in _WHOLE_LORA:
    whole = lambda c: np.full_like(c, _WHOLE_LORA[case.name])
    covered = adapters.change(whole, covered)
  if case.name in _PADDED:
    covered = jax.tree.map_with_path(
      lambda path, c: c | (path[-1].key == 'lora_b'), covered
    )
  end = server.build_server_step(run.method, opt)(
    start, _totals(run, cohort, rows)
  )
  covered = jax.tree.leaves(covered)
  before, after = (
    jax.tree.leaves(s.theta) + tiny.remembered(opt, s.opt_state)
    for s in (start, end)
  )
  assert len(after) == len(covered) * (3 if name == 'fedadam' else 2)
  for old, new, moves in zip(
    before, after, itertools.cycle(covered), strict=False
  ):
    np.testing.assert_array_equal(np.asarray(old != new), moves)


def _totals(run, cohort, rows):
  """Sums of random deltas, with a bucket for every signature there is."""
  sigs = [tiny.signature(run.method, k) for k in range(len(tiny.BUDGETS))]
  selected = {axis for sig in sigs for axis in sig.axes}
  like, axes = run.method.sums(run.theta, run.axes)
  zero = selection.zero_sum(like, axes, selected)
  totals = {run.method.bucket(sig): zero for sig in sigs}
  for client, row in zip(cohort, rows, strict=True):
    hold = lambda tree, row=row: selection.select_within(tree, axes, row)
    local = jax.eval_shape(hold, like)
    delta = tiny.noise(jax.tree.map(jnp.zeros_like, local), client)
    lead = lambda x: jnp.asarray(x)[None]
    row = selection.within(row, axes)
    part = selection.group_sum(
      like,
      axes,
      {a: n if isinstance(n, int) else lead(n) for a, n in row.items()},
      jax.tree.map(lead, delta),
      jnp.ones(1),
    )
    bucket = run.method.bucket(tiny.signature(run.method, client))
    totals[bucket] = jax.tree.map(jnp.add, totals[bucket], part)
  return totals

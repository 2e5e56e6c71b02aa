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

from fedjax_tune import config, selection
from fedjax_tune.engine import server, server_optimizer, step, store
from fedjax_tune.engine.algorithm import Context
from fedjax_tune.engine.schedule import Schedule
from fedjax_tune.methods import METHODS
from fedjax_tune.methods.rank import adapters
from fedjax_tune.selection import Selection
from fedjax_tune.training import health

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
    algorithm, self.traces = _traced(run.algorithm)
    planner = dataclasses.replace(run.planner, algorithm=algorithm)
    self.name = name
    self.run = dataclasses.replace(run, algorithm=algorithm, planner=planner)
    self.key = jax.random.key(run.experiment.seed)

  @functools.cached_property
  def gradient(self):
    """The gradient of a local step, for the slow twin."""
    run = self.run
    client = run.algorithm.client
    frozen = run.engine.base(run.engine.init())

    def gradient(sig, local, context, batch, key):
      context = context._replace(sig=sig)

      def objective(local):
        seen = client.params(local, context)
        model = run.foundation.assemble(frozen, seen, context.held)
        return client.loss(model, batch, context, key)

      return jax.grad(objective, has_aux=True)(local)

    return jax.jit(gradient, static_argnums=0)

  @functools.cached_property
  def begin(self):
    """Where a client begins. Compiled, as op by op takes far longer."""
    init = self.run.algorithm.client.init
    return jax.jit(
      lambda sig, start, context, key: init(
        start, context._replace(sig=sig), key
      ),
      static_argnums=0,
    )

  @functools.cached_property
  def finish(self):
    """What a client sends."""
    finish = self.run.algorithm.client.finish

    def send(sig, start, delta, steps, context):
      return finish(start, delta, steps, context._replace(sig=sig))

    return jax.jit(send, static_argnums=0)

  @functools.cached_property
  def memory(self):
    """What the aggregator remembers at first."""
    run = self.run
    return jax.jit(run.algorithm.aggregator.init)(run.theta)


def _numbers(inputs):
  return np.asarray(inputs, np.float32)


def _traced(algorithm):
  traces = []

  def loss(model, batch, context, key):
    traces.append(context.sig)
    return algorithm.client.loss(model, batch, context, key)

  client = dataclasses.replace(algorithm.client, loss=loss)
  return dataclasses.replace(algorithm, client=client), traces


@pytest.fixture(scope='module', params=tiny.LONG_CASES)
def case(request):
  return Case(request.param)


def test_every_method_is_here():
  assert {name.partition(':')[0] for name in tiny.CASES} == set(METHODS)


# -- the slow twin: plain Python over clients, steps and coordinates


def _slow_client(case, theta, sig, held, info, batches, client, rnd):
  """Trains one client; returns what it sends, and its metrics."""
  run, cfg = case.run, case.run.experiment.local
  index = tiny.held(theta, run.axes, held)
  start = jax.tree.map(lambda x, at: np.asarray(x)[at], theta, index)
  key = jax.random.fold_in(jax.random.fold_in(case.key, rnd), client)
  parts = run.algorithm.client
  context = Context(
    sig,
    held,
    info,
    case.memory,
    parts.state(0) if parts.state else (),
    jnp.float32(cfg.lr),
    jnp.int32(rnd),
  )
  if parts.state and client < len(tiny.BUDGETS):
    context = context._replace(state=parts.state(int(client)))
  draw = jax.random.fold_in(key, np.uint32(2**32 - 1))
  unsigned = context._replace(sig=None)
  start = jax.device_get(case.begin(sig, start, unsigned, draw))
  local, velocity = start, jax.tree.map(np.zeros_like, start)
  transform = parts.transform and parts.transform(context)
  inner = transform and transform.init(start)
  total = {}
  for s in range(len(batches.valid)):
    batch = jax.tree.map(lambda x, s=s: x[s], batches)
    step_key = jax.random.fold_in(key, s)
    grads, metrics = jax.device_get(
      case.gradient(sig, local, unsigned, batch, step_key)
    )
    if transform:
      grads, inner = transform.update(grads, inner, local)
    norm = np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(grads)))
    shrink = min(1, cfg.clip_norm / norm)

    def push(v, g, w, shrink=shrink):
      return cfg.momentum * v + shrink * g + cfg.weight_decay * w

    velocity = jax.tree.map(push, velocity, grads, local)
    local = jax.tree.map(lambda w, v: w - cfg.lr * v, local, velocity)
    total = {name: total.get(name, 0) + m for name, m in metrics.items()}
  delta = jax.tree.map(np.subtract, local, start)
  steps = np.float32(len(batches.valid))
  return case.finish(sig, start, delta, steps, unsigned), total


def _slow_sum(run, held, trees, weights, selected):
  """Adds coordinate by coordinate, as `selection.group_sum` defines."""
  like, axes = run.algorithm.aggregator.spec(run.theta, run.axes)
  num, den = _no_sum(like, axes, selected)
  for row, tree, weight in zip(held, trees, weights, strict=True):
    for sums, parts in ((num, tree), (den, None)):
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
  totals, reports, states = {}, [], {}
  aggregator, start = run.algorithm.aggregator, run.engine.init()
  for work in planned.works:
    slab, own = work.slab, work.own
    held = [_row(slab.held, i) for i in np.flatnonzero(slab.weight)]
    clients = [
      _slow_client(
        case,
        start.theta,
        slab.sig,
        row,
        _row(slab.info, i),
        _row(own.batches, i),
        slab.ids[i],
        rnd,
      )
      for i, row in enumerate(held)
    ]
    sent, metrics = zip(*clients, strict=True)
    factors = np.array([float(s.factor) for s in sent])
    weights = slab.weight[: len(held)] * factors
    part = _slow_sum(run, held, [s.tree for s in sent], weights, selected)
    states |= {int(k): s.state for k, s in zip(slab.ids, sent, strict=False)}
    group = aggregator.group(slab.sig)
    old = totals.get(group)
    totals[group] = jax.tree.map(np.add, old, part) if old else part
    reports += metrics
  update, memory = jax.jit(aggregator.merge)(start.theta, totals, start.memory)
  want = jax.tree.map(jnp.add, start.theta, update.delta)
  if run.algorithm.reorder:
    move = run.algorithm.reorder(want, run.axes)
    want = move(want) if move else want
  got, sums = run.engine.round(start, planned, case.key, 0.1)
  tiny.assert_close(got.theta, want, **_ROUNDING)
  tiny.assert_close(got.memory, memory, **_ROUNDING)
  if run.algorithm.client.state:
    tiny.assert_close(dict(got.clients), states, **_ROUNDING)
  for name in reports[0]:
    total = sum(float(m[name]) for m in reports)
    np.testing.assert_allclose(sums[name], total, rtol=1e-4)
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), got.theta, run.theta)
  if case.name == 'fedper':  # Heads are the clients'.
    del moved['head']
  if case.name == 'local_only':  # All is.
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), states[0], run.theta)
  if case.name == 'flora':  # Its kernels move instead.
    moved = adapters.change(lambda x: x + np.inf, {**moved, 'base': got.memory})
    moved['base'] = jax.tree.map(lambda x: np.abs(x).max(), moved['base'])
  assert min(jax.tree.leaves(moved)) > 1e-4


def _zeros(tree):
  return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), tree)


def _no_sum(like, axes, selected):
  make = lambda: selection.zero_sum(like, axes, selected)
  return _zeros(jax.eval_shape(make))


def _row(tree, i):
  """Returns what one of several clients has."""
  return jax.tree.map(lambda x: x[i], tree)


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
  run = case.run
  client = int(np.argmax(run.algorithm.able(0, len(tiny.BUDGETS))))
  sig = tiny.signature(run.algorithm, client)
  held = [run.algorithm.rule.draw(rnd, [client])[0] for rnd in range(4)]
  infos = [run.algorithm.client.tell(rnd, [client])[0] for rnd in range(4)]
  batches = tiny.batch(tiny.STACK_SIZE, 4, 2, 4)
  batches = batches._replace(inputs=_numbers(batches.inputs))
  ids, weights = (
    np.array([5, 9, 2, -1], np.int32),
    np.array([1, 2, 3, 0], np.float32),
  )
  at = np.array(order)
  join = lambda *leaves: np.stack(leaves)
  start = run.algorithm.client.state
  known = {k: start(0) for k in (5, 9)} if start else {}
  state = store.gather(known, ids[at], start)
  program = jax.jit(
    step.build_slab_step(run.algorithm, run.local_opt), static_argnums=(0, 1)
  )

  def slab_step(weights, batches):
    shared = step.Shared(
      run.foundation.base,
      run.theta,
      case.memory,
      jax.random.fold_in(case.key, 0),
      np.float32(0.1),
      np.int32(0),
    )
    own = step.Own(
      Selection.stack([held[i] for i in order]),
      jax.tree.map(join, *(infos[i] for i in order)),
      state,
      weights[at],
      ids[at],
      jax.tree.map(lambda x: x[at], batches),
    )
    return program(sig, Schedule(chunk), shared, own)

  got, metrics, states = slab_step(weights, batches)
  sent, reports = zip(
    *[
      _slow_client(
        case, run.theta, sig, held[i], infos[i], _row(batches, i), k, 0
      )
      for i, k in enumerate(ids[:3])
    ],
    strict=True,
  )
  factors = np.array([float(s.factor) for s in sent])
  trees = [s.tree for s in sent]
  want = _slow_sum(run, held[:3], trees, weights[:3] * factors, sig.axes)
  tiny.assert_close(got, want, **_ROUNDING)
  for i, s in enumerate(sent):
    tiny.assert_close(_row(states, order.index(i)), s.state, **_ROUNDING)
  losses = [m['loss'] for m in reports] + [0]
  np.testing.assert_allclose(metrics['loss'], np.array(losses)[at], rtol=1e-4)
  assert not metrics['rejected'].any()
  # Client 9's numbers overflow; the one that pads may have any.
  inputs = batches.inputs.copy()
  inputs[1, 1], inputs[3] = 3e38, np.nan
  got, metrics, _ = slab_step(weights, batches._replace(inputs=inputs))
  np.testing.assert_array_equal(metrics['rejected'], ids[at] == 9)
  want, rest, same = slab_step(np.where(ids == 9, 0, weights), batches)
  tiny.assert_close((got, metrics['loss']), (want, rest['loss']), rtol=1e-6)
  # Who does not count remembers what it did before.
  tiny.assert_equal(_row(same, order.index(1)), _row(state, order.index(1)))


# -- numbers that are not numbers


def _broken(planned, clients):
  """Puts NaN into the data of some clients, in their last step."""
  works = []
  for work in planned.works:
    hit = np.isin(work.slab.ids, clients)[:, None, None, None, None, None]
    late = np.arange(2)[:, None, None, None, None] == 1
    inputs = jnp.where(hit & late, jnp.nan, work.own.batches.inputs)
    batches = work.own.batches._replace(inputs=inputs)
    works.append(work._replace(own=work.own._replace(batches=batches)))
  return planned._replace(works=works)


def _without(planned, clients):
  """Gives some clients no weight."""
  works = []
  for work in planned.works:
    weight = jnp.where(np.isin(work.slab.ids, clients), 0, work.own.weight)
    works.append(work._replace(own=work.own._replace(weight=weight)))
  return planned._replace(works=works)


def test_a_client_that_is_not_finite_is_left_out(case):
  run = case.run
  planned, state = run.planner.plan(1), run.engine.init()
  for client in [member.client for member in planned.members]:
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
  everyone = [member.client for member in planned.members]
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
  sig = tiny.signature(case.run.algorithm, 1)
  sizes = {
    name: size
    for leaf, names in zip(
      jax.tree.leaves(theta),
      jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple)),
      strict=True,
    )
    for name, size in zip(names, leaf.shape, strict=True)
  }
  indices = {
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
  held = Selection(indices, {a: n for a, n in sig.prefix if a in sizes})
  x = tiny.noise(theta, data.draw(st.integers(0, 99)))
  dispatch, collect = _adjoint_pair(case)
  there = dispatch(x, held)
  y = tiny.noise(there, data.draw(st.integers(0, 99)))
  np.testing.assert_allclose(
    _vdot(there, y), _vdot(x, collect(held, y)), rtol=1e-5
  )


@functools.cache
def _adjoint_pair(case):
  theta, axes = case.run.theta, case.run.axes
  one = lambda x, held: selection.select(x, axes, held)
  back = lambda held, y: selection.scatter_sum(theta, axes, held, y)
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
  if not run.algorithm.able(0, len(tiny.BUDGETS))[3]:
    cohort = [0]
  theta = run.theta
  opt = server_optimizer.build(config.Server(optimizer=name))
  memory = tiny.noise(case.memory, 7)
  opt_state = optax.tree.map_params(
    opt,
    lambda x: 1 + np.abs(np.asarray(tiny.noise(x, 8))),
    jax.jit(opt.init)(theta),
  )
  start = server.ServerState(theta, opt_state, memory)
  rows = run.algorithm.rule.draw(0, cohort)
  covered = jax.tree.map(lambda x: np.zeros(x.shape, bool), theta)
  for row in rows:
    index = tiny.held(theta, run.axes, row)
    jax.tree.map(lambda c, at: c.__setitem__(at, True), covered, index)
  if case.name == 'fedper':
    covered['head'] = jax.tree.map(np.zeros_like, covered['head'])
  if case.name == 'local_only':
    covered = jax.tree.map(np.zeros_like, covered)
  if case.name in _WHOLE_LORA:
    whole = lambda c: np.full_like(c, _WHOLE_LORA[case.name])
    covered = adapters.change(whole, covered)
  if set(case.name.replace(':', '+').split('+')) & set(_PADDED):
    every_rank = {a: n for a, n in rows[0].items() if a != 'rank'}
    index = tiny.held(theta, run.axes, every_rank)

    def fill(path, c, at):
      if path[-1].key == 'lora_b':
        c[at] = True

    jax.tree.map_with_path(fill, covered, index)
  end = jax.jit(server.build_server_step(run.algorithm.aggregator, opt))(
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
  aggregator = run.algorithm.aggregator
  sigs = [tiny.signature(run.algorithm, k) for k in range(len(tiny.BUDGETS))]
  selected = {axis for sig in sigs for axis in sig.axes}
  like, axes = aggregator.spec(run.theta, run.axes)
  zero = _no_sum(like, axes, selected)
  totals = {aggregator.group(sig): zero for sig in sigs}
  add = jax.jit(
    lambda held, deltas: selection.group_sum(
      like, axes, held, deltas, jnp.ones(1)
    )
  )
  for client, row in zip(cohort, rows, strict=True):
    hold = lambda tree, row=row: selection.select_within(tree, axes, row)
    local = jax.eval_shape(hold, like)
    delta = tiny.noise(_zeros(local), client)
    lead = lambda x: np.asarray(x)[None]
    part = add(
      jax.tree.map(lead, selection.within(row, axes)),
      jax.tree.map(lead, delta),
    )
    group = aggregator.group(tiny.signature(run.algorithm, client))
    totals[group] = jax.tree.map(np.add, totals[group], part)
  return totals

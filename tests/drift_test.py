"""SCAFFOLD, FedDyn, and DepthFL with it, step by step in NumPy."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from fedjax_tune.engine.algorithm import Context
from fedjax_tune.methods import METHODS

_LR, _ALPHA, _ROUNDS = 0.1, 0.05, 3


def _run(name):
  e = tiny.experiment(
    name,
    rounds=_ROUNDS,
    # Two of four clients in each round.
    clients={'cohort_size': 2},
    local={
      'lr': _LR,
      'momentum': 0.0,
      'weight_decay': 0.0,
      'clip_norm': 0.0,
      'steps': 3,
    },
    feddyn={'alpha': _ALPHA},
    depthfl={'feddyn': _ALPHA, 'ramp_rounds': 2},
    lora={'dropout': 0.0},
  )
  return tiny.run(e)


def _gradient(run):
  model, task = run.foundation, run.algorithm.task
  layers = np.arange(tiny.DEPTH)

  def loss(theta, batch):
    outputs = model.merge(model.base, theta)(batch.inputs, layers)
    return task.loss(outputs, batch)[0]

  return jax.jit(jax.grad(loss))


def _tree(fn, *trees):
  return jax.tree.map(lambda *xs: fn(*map(np.asarray, xs)), *trees)


def _cohort(run, rnd):
  """Yields each client of a round with its batches, step by step."""
  for work in run.planner.plan(rnd).works:
    for i, client in enumerate(work.slab.ids):
      if client >= 0:
        steps = range(len(work.own.batches.valid[i]))
        yield (
          int(client),
          [
            jax.tree.map(lambda x, i=i, s=s: x[i, s], work.own.batches)
            for s in steps
          ],
        )


def _scaffold(run):
  """Algorithm 1 of arXiv 1910.06378, option II, in the paper's letters."""
  gradient, n = _gradient(run), len(tiny.BUDGETS)
  x = jax.device_get(run.theta)
  c = _tree(np.zeros_like, x)
  c_i = dict.fromkeys(range(n), c)
  for rnd in range(_ROUNDS):
    moves, changes = [], []
    for k, batches in _cohort(run, rnd):
      y = x
      for batch in batches:
        step = lambda y, g, ci, c: y - _LR * (g - ci + c)
        y = _tree(step, y, gradient(y, batch), c_i[k], c)
      way = _LR * len(batches)
      renew = lambda ci, c, x, y, way=way: ci - c + (x - y) / way
      new = _tree(renew, c_i[k], c, x, y)
      moves.append(_tree(np.subtract, y, x))
      changes.append(_tree(np.subtract, new, c_i[k]))
      c_i[k] = new
    x = _tree(lambda x, *dy: x + np.mean(dy, 0), x, *moves)
    c = _tree(lambda c, *dc: c + np.sum(dc, 0) / n, c, *changes)
  return x, c, c_i


def _feddyn(run):
  """Algorithm 1 of arXiv 2111.04263, minimised by a few steps."""
  gradient, m = _gradient(run), len(tiny.BUDGETS)
  theta = jax.device_get(run.theta)
  h = _tree(np.zeros_like, theta)
  g_k = dict.fromkeys(range(m), h)
  for rnd in range(_ROUNDS):
    ends = []
    for k, batches in _cohort(run, rnd):
      w = theta
      for batch in batches:

        def step(w, g, own, start):
          return w - _LR * (g - own + _ALPHA * (w - start))

        w = _tree(step, w, gradient(w, batch), g_k[k], theta)
      g_k[k] = _tree(lambda g, w, t: g - _ALPHA * (w - t), g_k[k], w, theta)
      ends.append(w)
    h = _tree(
      lambda h, t, *ws: h - _ALPHA / m * np.sum([w - t for w in ws], 0),
      h,
      theta,
      *ends,
    )
    theta = _tree(lambda h, *ws: np.mean(ws, 0) - h / _ALPHA, h, *ends)
  return theta, h, g_k


def _local_gradient(run):
  """Of a client's own loss, by what it holds, in a round."""
  model, client = run.algorithm.model, run.algorithm.client
  sig: Any = None

  def loss(local, batch, held, rnd):
    lr = jnp.float32(_LR)
    context = Context(sig, held, {}, (), (), lr, rnd)
    whole = model.assemble(model.base, local, held)
    return client.loss(whole, batch, context, jax.random.key(0))[0]

  return jax.jit(jax.grad(loss))


def _depthfl(run):
  """DepthFL's authors' FedDyn, each block and classifier by its holders."""
  gradient, m = _local_gradient(run), len(tiny.BUDGETS)
  theta, axes = jax.device_get(run.theta), run.algorithm.model.axes
  h = _tree(np.zeros_like, theta)
  g_k = dict.fromkeys(range(m), h)
  for rnd in range(_ROUNDS):
    total, count = _tree(np.zeros_like, theta), _tree(np.zeros_like, theta)
    for k, batches in _cohort(run, rnd):
      (held,) = run.algorithm.rule.draw(rnd, [k])
      # Where a client holds something, by hand: no transpose.
      place = jax.tree.map(
        lambda x, names, held=held: np.ix_(
          *(held.get(n, range(s)) for n, s in zip(names, x.shape, strict=True))
        ),
        theta,
        axes,
      )
      own = lambda tree, place=place: jax.tree.map(
        lambda x, i: np.asarray(x)[i], tree, place
      )
      start, g = own(theta), own(g_k[k])
      w = start
      for batch in batches:

        def step(w, grad, g, start):
          return w - _LR * (grad - g + _ALPHA * (w - start))

        w = _tree(step, w, gradient(w, batch, held, jnp.int32(rnd)), g, start)
      new = _tree(np.copy, g_k[k])

      def put(new, total, count, w, start, i):
        new[i] -= _ALPHA * (w - start)
        total[i] += w - start
        count[i] += 1

      jax.tree.map(put, new, total, count, w, start, place)
      g_k[k] = new
    h = _tree(lambda h, t: h - _ALPHA / m * t, h, total)

    def move(theta, t, n, h):
      mean = theta + t / np.maximum(n, 1)
      return np.where(n > 0, mean - h / _ALPHA, theta)

    theta = _tree(move, theta, total, count, h)
  return theta, h, g_k


@pytest.mark.parametrize(
  ('name', 'twin'),
  [('scaffold', _scaffold), ('feddyn', _feddyn), ('depthfl', _depthfl)],
)
def test_rounds_are_the_papers(name, twin):
  run = _run(name)
  got, (theta, memory, states) = run.rounds(_ROUNDS), twin(run)
  close = {'rtol': 1e-3, 'atol': 1e-5}
  tiny.assert_close(got.theta, theta, **close)
  tiny.assert_close(got.memory, memory, **close)
  assert 2 <= len(got.clients) < len(tiny.BUDGETS) + 1
  for k, state in got.clients.items():
    tiny.assert_close(state, states[k], **close)
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), theta, run.theta)
  assert min(jax.tree.leaves(moved)) > 1e-3


def test_scaffold_begins_as_fedavg():
  got, want = (_run(name).rounds(1).theta for name in ('scaffold', 'all_large'))
  tiny.assert_close(got, want, rtol=1e-6)


@pytest.mark.parametrize(
  ('name', 'section', 'field', 'value'),
  [
    ('scaffold', 'local', 'momentum', 0.9),
    ('scaffold', 'local', 'optimizer', 'adam'),
    ('scaffold', 'local', 'schedule', 'linear'),
    ('scaffold', 'server', 'weighting', 'examples'),
    ('feddyn', 'local', 'momentum', 0.9),
    ('feddyn', 'server', 'weighting', 'examples'),
    ('feddyn', 'server', 'lr', 0.5),
    ('depthfl', 'local', 'momentum', 0.9),
    ('depthfl', 'server', 'weighting', 'examples'),
  ],
)
def test_refuses_what_it_would_misread(name, section, field, value):
  changes = {'depthfl': {'feddyn': _ALPHA}, 'local': {'momentum': 0.0}}
  changes[section] = changes.get(section, {}) | {field: value}
  e = tiny.experiment(name, **changes)
  with pytest.raises(ValueError, match=rf'{section}\.{field}={value!r}'):
    METHODS[name].check(e, {'layer': tiny.DEPTH}, tiny.BUDGETS)


@pytest.mark.parametrize(
  ('name', 'asked'),
  [('feddyn', "method='feddyn'"), ('depthfl', f'depthfl.feddyn={_ALPHA}')],
)
def test_refuses_because_of_what_asks_for_feddyn(name, asked):
  changes = {'depthfl': {'feddyn': _ALPHA}, 'local': {'momentum': 0.9}}
  e = tiny.experiment(name, **changes)
  begin = re.escape(f'local.momentum=0.9 must be 0.0 with {asked}: ')
  with pytest.raises(ValueError, match=f'^{begin}'):
    METHODS[name].check(e, {'layer': tiny.DEPTH}, tiny.BUDGETS)


def test_scaffold_moves_a_variate_each_way():
  run, fedavg = _run('scaffold'), _run('all_large')
  held = lambda _: run.theta
  sig = tiny.signature(run.algorithm, 0)
  both = run.algorithm.traffic(sig, [sig], held)
  plain = fedavg.algorithm.traffic(sig, [sig], held)
  assert both == (2 * plain.uplink, 2 * plain.downlink)

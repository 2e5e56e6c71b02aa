"""Batches of texts that run in parts, each padded to its own length."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from fedjax_tune import selection
from fedjax_tune.costs import cost
from fedjax_tune.data.tasks import Task
from fedjax_tune.engine import batches, gradient
from fedjax_tune.engine.client import Batch
from fedjax_tune.training import build
from fedjax_tune.training.run import Run
from fedjax_tune.typing import Tokens
from launch import drawn_data, workloads

_LENGTHS = (4, 8, 12)
# Tokens of each text of a batch; the last pads.
_TOKENS = np.array([12, 3, 5, 4, 9, 2])
_VALID = np.arange(6) < 5


@pytest.fixture(name='short')
def _short(monkeypatch):
  """Two texts of 4 tokens run together, and one of more."""
  monkeypatch.setattr(gradient, '_TOKENS', 8)


@pytest.mark.usefixtures('short')
def test_parts_by_hand():
  tokens, valid = _TOKENS[None], _VALID[None]
  assert [gradient.together(n, 6) for n in _LENGTHS] == [2, 1, 1]
  assert gradient.together(1, 6) == 6
  parts = batches.parts(_LENGTHS, tokens, valid)
  assert parts.bucket.tolist() == [[3, 3, 2, 1, 0, 0]]
  rows = [[0, -1], [4, -1], [2, -1], [1, 3], [-1, -1], [-1, -1]]
  assert parts.rows.tolist() == [rows]
  shapes = batches.part_shapes(_LENGTHS, (1, 6))
  assert jax.tree.map(np.shape, parts) == jax.tree.map(np.shape, shapes)


@pytest.mark.usefixtures('short')
def test_every_text_is_in_one_part_that_holds_it():
  rng = np.random.default_rng(0)
  lengths = (2, *_LENGTHS)
  tokens = rng.integers(1, 13, (40, 9))
  valid = rng.uniform(size=(40, 9)) < 0.8
  parts = batches.parts(lengths, tokens, valid)
  for step in range(40):
    rows, bucket = parts.rows[step], parts.bucket[step]
    assert sorted(rows[rows >= 0]) == list(np.flatnonzero(valid[step]))
    ran = 0
    for own, number in zip(rows, bucket, strict=True):
      assert number or not np.any(own >= 0)
      if number:
        length = lengths[number - 1]
        assert length == batches.bucket(lengths, tokens[step][own[own >= 0]])
        size = gradient.together(length, 9)
        assert np.all(own[size:] == -1)
        ran += size * length
    whole = batches.bucket(lengths, tokens[step][valid[step]])
    assert ran <= max(whole * valid[step].sum(), 12) + 8


def _batch(kind):
  rng = np.random.default_rng(0)
  ids = rng.integers(1, 20, (6, 12)).astype(np.int32)
  ids[np.arange(12) >= _TOKENS[:, None]] = 0
  label = rng.integers(0, 3, 6).astype(np.int32)
  if kind == 'span':
    label = np.stack([_TOKENS * 0 + 1, _TOKENS - 2] * 2, 1).astype(np.int32)
  inputs = Tokens(ids, np.zeros_like(ids))
  return Batch(inputs, label, _VALID, np.arange(6, dtype=np.int32))


@pytest.mark.usefixtures('short')
@pytest.mark.parametrize(
  'kind', ['classification', pytest.param('span', marks=pytest.mark.slow)]
)
def test_a_batch_has_the_gradient_of_its_texts(kind):
  span = kind == 'span'
  task = Task(kind, 2 if span else 3)
  found = tiny.text_foundation(
    targets=('attn.q', 'mlp.fc2'),
    span=span,
    num_classes=task.num_outputs,
    dropout=0.3,
  )

  def objective(theta, batch, key):
    model = found.merge(found.base, theta)
    keys = batch.keys(key)
    return task.loss(model(batch.inputs, np.arange(4), key=keys), batch)

  parts = batches.parts(_LENGTHS, _TOKENS[None], _VALID[None])
  parts = jax.tree.map(lambda x: jnp.asarray(x[0]), parts)
  given = (found.theta, _batch(kind), jax.random.key(0))
  metrics, want = jax.jit(gradient.of(objective))(*given)
  run = functools.partial(gradient.in_parts, gradient.of(objective), _LENGTHS)
  sums, got = jax.jit(run)(parts, *given)
  tiny.assert_close(sums, metrics, rtol=1e-5)
  tiny.assert_close(got, want, rtol=1e-4, atol=1e-6)
  assert metrics['count'] == 5
  # A text that is cut has another gradient.
  short = parts._replace(bucket=jnp.maximum(parts.bucket - 1, 1))
  _, cut = jax.jit(run)(short, *given)
  with pytest.raises(AssertionError):
    tiny.assert_close(cut, want, rtol=1e-2)


def test_what_a_text_drops_is_its_own_at_every_exit():
  """Exits are read side by side; what runs beside a text changes nothing."""
  found = tiny.text_foundation(dropout=0.3, family='roberta', types=0)
  model: Any = found.merge(found.base, found.theta)
  exits = np.random.default_rng(0).normal(size=(4, 6, 16)).astype(np.float32)
  keys = _batch('classification').keys(jax.random.key(0))
  read = lambda x, keys: model._pool(x, model._keys(keys))
  whole, other = read(exits, keys), np.array([4, 1, 5, 0, 3, 2])
  got = read(exits[:, other], keys[other])
  tiny.assert_close(got, whole[:, other], rtol=1e-5, atol=1e-6)
  # A text drops something else at each exit.
  dropped = np.asarray(whole[:, 0] == 0)
  assert len(np.unique(dropped, axis=0)) == 4


def test_a_batch_that_pads_has_no_gradient():
  def objective(local, batch, key):
    del key
    loss = jnp.sum(local * batch.inputs)
    return loss, {'count': jnp.sum(batch.valid.astype(jnp.float32))}

  batch = Batch(np.ones((3, 4)), np.zeros(3), np.zeros(3, bool))
  parts = batches.parts((4,), np.ones((1, 3)), np.zeros((1, 3), bool))
  parts = jax.tree.map(lambda x: jnp.asarray(x[0]), parts)
  batch = jax.tree.map(jnp.asarray, batch)
  metrics, grads = gradient.in_parts(
    gradient.of(objective),
    (4,),
    parts,
    jnp.float32(2),
    batch,
    jax.random.key(0),
  )
  assert metrics['count'] == 0
  assert grads == 0


@pytest.fixture(scope='module', name='work')
def _work():
  """Eight clients with texts of up to 8, 16 and 32 tokens."""
  work = workloads.texts('random:text_test', 64, (8, 16, 32))
  assert isinstance(work.data, drawn_data.Drawn)
  longest = np.repeat(np.resize([8, 16, 32], 8), 64)
  tokens = np.random.default_rng(0).integers(3, longest + 1)
  inputs = work.data.train.inputs
  ids = np.where(np.arange(32) < tokens[:, None], inputs.ids, 0)
  split = dataclasses.replace(
    work.data.train, inputs=inputs._replace(ids=ids.astype(np.int32))
  )
  data = dataclasses.replace(work.data, train=split, test=split, lengths=tokens)
  e = dataclasses.replace(work.experiment, rounds=2)
  e.model.dropout, e.lora.dropout = 0.2, 0.2
  return dataclasses.replace(work, experiment=e, data=data)


def _run(work, **engine):
  e = work.experiment
  e = dataclasses.replace(e, engine=dataclasses.replace(e.engine, **engine))
  return Run(build.build(e, data=work.data, parts=work.parts))


@pytest.fixture(scope='module', name='run')
def _in_parts(work):
  return _run(work)


def _train(run):
  state, sums = run.engine.init(), {}
  for rnd in range(2):
    plan = run.setup.planner.plan(rnd)
    state, sums = run.engine.round(state, plan, jax.random.key(0), 0.1)
  return state.theta, sums


def test_a_run_learns_what_whole_batches_learn(work, run):
  """One program serves clients of all lengths; whole batches have one each."""
  whole = _run(work, mode='chunk', chunk=1)
  assert run.setup.planner.feed.lengths == (8, 16, 32)
  assert whole.setup.planner.feed.lengths == ()
  assert len(run.engine.programs.compiled) == 1
  assert len(whole.engine.programs.compiled) == 3
  (got, sums), (want, metrics) = _train(run), _train(whole)
  tiny.assert_close(got, want, rtol=1e-3, atol=1e-6)
  for name in ('loss', 'correct', 'count'):
    np.testing.assert_allclose(sums[name], metrics[name], rtol=1e-5)


def test_costs_are_of_what_runs(run):
  planner, train = run.setup.planner, run.setup.train
  plan, (sig,) = planner.plan(0), run.costs
  shapes = lambda n: batches.shapes(train, n, (gradient.together(n, 8),))
  flops = [
    cost.client_cost(run.setup.algorithm, sig, shapes(n)).flops
    for n in planner.feed.lengths
  ]
  ran = {}
  for work in plan.works:
    parts = work.own.parts
    assert parts is not None
    for client, bucket in zip(work.slab.ids, parts.bucket, strict=True):
      ran[client] = [np.sum(bucket == i) for i in (1, 2, 3)]
  for member in plan.members:
    assert list(member.parts) == ran[member.client]
    # Of texts of up to 8 tokens.
    assert member.client % 3 or list(member.parts) == [4, 0, 0]
    assert run.work(member) == np.dot(ran[member.client], flops)
  (row,) = run.class_costs()
  total = sum(run.work(m) for members in planner.rounds for m in members)
  assert row.flops_per_step == total // (2 * 8 * 4)
  meter: dict[str, Any] = dict.fromkeys(
    ('uplink', 'downlink', 'flops', 'simulated_us'), 0
  )
  charged = run.charge(meter, planner.rounds[1])
  assert charged['flops'] == sum(map(run.work, planner.rounds[1]))


def _parts(work, change):
  e = dataclasses.replace(
    work.experiment,
    model=dataclasses.replace(work.experiment.model),
    lora=dataclasses.replace(work.experiment.lora),
    data=dataclasses.replace(work.experiment.data),
    engine=dataclasses.replace(work.experiment.engine),
  )
  change(e)
  return build.build(e, data=work.data, parts=work.parts).planner.feed.lengths


@pytest.mark.parametrize(
  ('section', 'field', 'value'),
  [
    # A vmap would run each text in every length.
    ('engine', 'mode', 'vmap'),
    # There is no choice.
    ('data', 'lengths', (32,)),
  ],
)
def test_batches_run_whole(work, section, field, value):
  change = lambda e: setattr(getattr(e, section), field, value)
  assert _parts(work, change) == ()


def test_a_loss_may_be_more_than_a_mean(work):
  """PriSM and HetLoRA add penalties, which each part would compute."""

  def change(e):
    e.method, e.rank.ranks = 'hetlora', (8, 4)

  assert _parts(work, change) == ()


@pytest.mark.parametrize(
  'case', ['depthfl:published', 'inclusivefl:published', 'fjord', 'heterofl']
)
def test_losses_are_means_over_examples(case):
  """Those of methods that say so, besides the task's own."""
  algorithm = tiny.run(tiny.experiment(case, lora={'dropout': 0.0})).algorithm
  model, client = algorithm.model, algorithm.client
  context = tiny.context(algorithm, 1)
  theta = selection.select_within(model.theta, model.axes, context.held)
  assembled = model.assemble(model.base, theta, context.held)

  @jax.jit
  def loss(batch):
    return client.loss(assembled, batch, context, jax.random.key(0))[0]

  assert client.by_example
  batch = tiny.batch(tiny.STACK_SIZE, 4)
  single = lambda i: jax.tree.map(lambda x: x[i : i + 1], batch)
  each = [loss(single(i)) for i in range(4)]
  np.testing.assert_allclose(loss(batch), np.mean(each[:3]), rtol=1e-5)
  assert each[3] == 0

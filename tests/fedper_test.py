"""FedPer: heads stay with their clients, who are judged on data like theirs."""

import dataclasses
import functools
import json

import jax
import numpy as np
import tiny

import fedjax_tune as ft
from fedjax_tune.costs import flops
from fedjax_tune.engine import features, personal

_LR, _ROUNDS = 0.1, 2


def _run():
  local = {
    'lr': _LR,
    'momentum': 0.0,
    'weight_decay': 0.0,
    'clip_norm': 0.0,
    'steps': 2,
  }
  e = tiny.experiment(
    'fedper',
    local=local,
    lora={'dropout': 0.0},
    clients={'cohort_size': 2},
    engine={'slab': 1},
  )
  return tiny.run(e)


def _tree(fn, *trees):
  return jax.tree.map(lambda *xs: fn(*map(np.asarray, xs)), *trees)


def test_rounds_are_the_papers():
  """Algorithms 1 and 2, in NumPy but for the gradient."""
  run = _run()
  model, task = run.foundation, run.algorithm.task
  layers = np.arange(tiny.DEPTH)

  def loss(theta, batch):
    outputs = model.merge(model.base, theta)(batch.inputs, layers)
    return task.loss(outputs, batch)[0]

  gradient = jax.jit(jax.grad(loss))
  body = jax.device_get(run.theta)
  first = body['head']
  heads = {}
  for rnd in range(_ROUNDS):
    bodies = []
    for work in run.planner.plan(rnd).works:
      (client,) = map(int, work.slab.ids)
      w = {**body, 'head': heads.get(client, first)}
      for s in range(2):
        batch = jax.tree.map(lambda x, s=s: x[0, s], work.own.batches)
        w = _tree(lambda w, g: w - _LR * g, w, gradient(w, batch))
      heads[client] = w['head']
      bodies.append(w)
    body = {**_tree(lambda *ws: np.mean(ws, 0), *bodies), 'head': first}
  got = run.rounds(_ROUNDS)
  tiny.assert_close(got.theta, body, rtol=1e-4, atol=1e-6)
  tiny.assert_equal(got.theta['head'], first)
  assert set(got.clients) == set(heads)
  tiny.assert_close(dict(got.clients), heads, rtol=1e-4, atol=1e-6)


def test_own_data_are_of_the_domain_and_classes():
  test = tiny.examples(40, tiny.STACK_SIZE)
  labels = np.array([0, 0, 1, 2])
  indices = (np.array([0, 1]), np.array([2, 3]))
  rows = personal.own_examples(labels, indices, np.array([-1, 1]), test)
  assert set(test.labels[rows[0]]) == {0}
  assert len(rows[0]) == np.sum(test.labels == 0)
  want = np.isin(test.labels, [1, 2]) & (test.domains == 1)
  np.testing.assert_array_equal(rows[1], np.flatnonzero(want))


def test_every_client_is_judged_with_its_own_head():
  run = _run()
  test = tiny.examples(31, tiny.STACK_SIZE, seed=5)
  test = dataclasses.replace(test, inputs=np.asarray(test.inputs))
  rows = [np.arange(7), np.arange(5, 31), np.array([], int)]
  evaluate = personal.build(run.algorithm, {'full': test}, rows)
  state = run.rounds(1)
  found = evaluate(run.foundation.base, state)
  start = run.algorithm.client.state
  assert start is not None
  accuracies = []
  for client in (0, 1):
    head = state.clients.get(client, start(client))
    model = run.foundation.merge(
      run.foundation.base, {**state.theta, 'head': head}
    )
    outputs = model(test.inputs, np.arange(tiny.DEPTH))
    hits = np.argmax(outputs, -1) == test.labels
    accuracies.append(hits[rows[client]].mean())
  np.testing.assert_allclose(found['eval/accuracy'], np.mean(accuracies))
  worst = found['eval/worst_client/accuracy']
  np.testing.assert_allclose(worst, np.min(accuracies))


def test_the_shared_part_runs_once_for_each_example(monkeypatch):
  run, read = _run(), []
  build = features.build

  def counting(*given):
    extract = build(*given)

    def count(base, theta, corpus, rows, lengths):
      read.extend(rows)
      return extract(base, theta, corpus, rows, lengths)

    return count

  monkeypatch.setattr(features, 'build', counting)
  test = tiny.examples(31, tiny.STACK_SIZE, seed=5)
  rows = [np.arange(3, 20), np.arange(5, 31), np.array([4, 3])]
  evaluate = personal.build(run.algorithm, {'full': test}, rows)
  evaluate(run.foundation.base, run.engine.init())
  assert read == list(range(3, 31))
  # No client's own program has the body's products, but its head's alone.
  predict = personal.build_own_predict(run.algorithm, of_head=True)
  program = functools.partial(predict, 'full')
  state = run.engine.init()
  batch = tiny.batch(tiny.STACK_SIZE, 5)._replace(inputs=np.zeros((5, 6)))
  start = run.algorithm.client.state
  assert start is not None
  (held,) = run.algorithm.rule.draw(0, [0])
  given = (run.foundation.base, state.theta, start(0), held, batch)
  assert flops.count_flops(program, *given) == 2 * 5 * 6 * tiny.CLASSES


def test_a_run_with_few_classes_a_client(tmp_path):
  """Each client has two of four classes: its own head needs tell but two."""
  rng = np.random.default_rng(0)
  labels = np.arange(160) % 4
  images = (
    rng.integers(0, 60, (160, 16, 16, 3)) + 60 * labels[:, None, None, None]
  )
  data = ft.from_arrays(
    images.astype(np.uint8), labels, images[:40].astype(np.uint8), labels[:40]
  )
  accuracies = {}
  for method in ('fedper', 'all_large'):
    e = ft.Experiment(method=method, rounds=6, eval_every=6)
    e.model.weights, e.data.image_size = 'random:vit_test', 16
    e.clients.partition, e.clients.classes_per_client = 'pathological', 2
    e.clients.count, e.clients.cohort_size, e.clients.budgets = 4, 4, ()
    e.clients.cohort, e.clients.min_examples = 'uniform', 1
    e.local.steps, e.local.batch_size, e.local.lr = 5, 8, 0.1
    e.engine.compilation_cache = False
    summary = ft.train(e, str(tmp_path / method), data=data)
    accuracies[method] = summary['accuracy']
  assert accuracies['fedper'] > accuracies['all_large']
  row = json.loads(
    (tmp_path / 'fedper/metrics.jsonl').read_text().splitlines()[-1]
  )
  assert row['eval/worst_client/accuracy'] <= row['eval/accuracy']

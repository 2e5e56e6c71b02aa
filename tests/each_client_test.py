"""Models judged for each client are those that it has, one by one or together."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from fedjax_tune.data import metrics
from fedjax_tune.engine import each_client, local_optimizer, step
from fedjax_tune.engine.algorithm import Context
from fedjax_tune.typing import Tokens

_TEST = tiny.examples(41, tiny.STACK_SIZE, seed=5)
_ROWS = [
  np.arange(7),
  np.arange(3, 41),
  np.array([], int),
  np.array([9, 30, 2]),
]
_SLOW = (
  'all_small', 'depthfl:published', 'heterofl', 'flora', 'fedper', 'raffm',
  'heterotune', 'hetlora',
)  # fmt: skip
_CASES = [
  *('fedra', 'local_only'),
  *tiny.slow(*_SLOW),
]


def _run(case, **changes):
  changes = {'engine': {'slab': 4}, 'lora': {'dropout': 0.0}} | changes
  return tiny.run(tiny.experiment(case, **changes))


def _shared(run, state, rnd):
  return step.Shared(
    run.engine.base(state),
    state.theta,
    state.memory,
    jax.random.fold_in(jax.random.key(run.experiment.seed), rnd),
    np.float32(run.experiment.local.lr),
    np.int32(rnd),
  )


def _judge(run, state, rnd, rows=_ROWS, width=1):
  local = run.experiment.local
  judge = each_client.EachClient(
    run.algorithm,
    run.planner,
    local_optimizer.build(local),
    local_optimizer.schedule(local),
    lambda _: _TEST,
    (),
    width,
  )
  cohort = run.planner.gather(rnd, range(4))
  subjects = each_client.Subjects(rnd, cohort, rows)
  return judge.judge(_shared(run, state, rnd), state, subjects)


def _accuracy(run, name, seen, base, held, rows):
  """Asks the model itself, of one client."""
  if not len(rows):
    return np.nan
  model = run.foundation.assemble(base, seen, held)
  outputs = run.algorithm.evaluation.predict(
    name, model, held, jnp.asarray(_TEST.inputs[rows])
  )
  return metrics.accuracy(np.argmax(outputs, -1), _TEST.labels[rows])


def _own(run, state, rnd, client):
  """Returns what a client would begin a round with, and what it holds."""
  parts, shared = run.algorithm.client, _shared(run, state, rnd)
  cohort = run.planner.gather(rnd, range(4))
  held, start = cohort.held[client], parts.state
  remembered = ()
  if start:
    remembered = state.clients.get(client, start(client))
  context = Context(
    cohort.sigs[client],
    held,
    cohort.infos[client],
    state.memory,
    remembered,
    jnp.float32(shared.lr),
    jnp.int32(rnd),
  )
  part = jax.tree.map(
    lambda x, at: jnp.asarray(np.asarray(x)[at]),
    state.theta,
    tiny.held(state.theta, run.axes, held),
  )
  key = jax.random.fold_in(jax.random.fold_in(shared.key, client), 2**32 - 1)
  return parts.params(parts.init(part, context, key), context), held


@pytest.mark.parametrize('case', _CASES)
def test_models_are_the_clients(case):
  run, rnd = _run(case), 2
  state = run.rounds(rnd)
  base, evaluation = run.engine.base(state), run.algorithm.evaluation
  scores = _judge(run, state, rnd)
  for client, rows in enumerate(_ROWS):
    tier = run.algorithm.tier(client)
    name = tier if tier in evaluation.models else next(iter(evaluation.models))
    seen, held = _own(run, state, rnd, client)
    want = _accuracy(run, name, seen, base, held, rows)
    np.testing.assert_allclose(scores.own[client], want)
    want, whole = np.nan, evaluation.models[name]
    if not evaluation.personal:
      part = jax.tree.map(
        lambda x, at: jnp.asarray(np.asarray(x)[at]),
        state.theta,
        tiny.held(state.theta, run.axes, whole),
      )
      want = _accuracy(run, name, part, base, whole, rows)
    np.testing.assert_allclose(scores.server[client], want)
  assert np.isfinite(scores.tuned[[0, 1, 3]]).all()
  assert np.isnan(scores.tuned[2])
  if case == 'fedra':  # Side by side they are the same models.
    together = _judge(run, state, rnd, width=3)
    np.testing.assert_allclose(scores, together, atol=0.03)


def test_tuned_is_what_a_round_would_make_of_the_client():
  """Alone, a client keeps what it trained: the next round begins with that."""
  run = _run('local_only')
  state = run.rounds(2)
  rows = [np.arange(41)] * 4
  before = _judge(run, state, 2, rows)
  after = _judge(run, run.rounds(3), 3, rows)
  np.testing.assert_array_equal(before.tuned, after.own)
  assert np.any(before.tuned != before.own)


def test_a_client_that_diverges_has_no_tuned_model():
  run = _run('fedra', local={'lr': 1e38, 'clip_norm': 0.0})
  scores = _judge(run, run.engine.init(), 0)
  assert np.isnan(scores.tuned).all()
  assert np.isfinite(scores.own[[0, 1, 3]]).all()


def test_a_model_that_several_have_is_run_once(monkeypatch):
  run = _run('heterofl', clients={'budgets': (4, 4, 4, 4)})
  asked = []
  predict = each_client.EachClient._predict

  def count(self, program, shared, state, subjects):
    asked.append(len(subjects.rows))
    return predict(self, program, shared, state, subjects)

  monkeypatch.setattr(each_client.EachClient, '_predict', count)
  rows = [np.arange(5)] * 4
  _judge(run, run.engine.init(), 0, rows)
  # Clients 0 and 2 have the whole model, 1 and 3 the same half.
  assert asked == [1, 4]


def test_work_can_be_ended():
  run = _run('all_small')

  def stop():
    raise KeyboardInterrupt

  judge = each_client.EachClient(
    run.algorithm, run.planner, run.local_opt, None, lambda _: _TEST, (), 1,
    stop,
  )  # fmt: skip
  state = run.engine.init()
  subjects = each_client.Subjects(0, run.planner.gather(0, range(4)), _ROWS)
  with pytest.raises(KeyboardInterrupt):
    judge.judge(_shared(run, state, 0), state, subjects)
  assert dataclasses.is_dataclass(judge)


@pytest.mark.slow
def test_texts_are_padded_to_few_lengths():
  """What a model says of a text does not depend on how far it is padded."""
  rng = np.random.default_rng(0)
  tokens = rng.integers(3, 13, 48).astype(np.int32)
  ids = rng.integers(1, 20, (48, 12)).astype(np.int32)
  ids[np.arange(12) >= tokens[:, None]] = 0
  texts = dataclasses.replace(
    tiny.examples(48, tiny.STACK_SIZE),
    inputs=Tokens(ids, np.zeros_like(ids)),
    lengths=tokens,
  )
  e = tiny.experiment('fedra', data={'lengths': (8, 12)}, engine={'slab': 4})
  run = tiny.run(e, tiny.text_foundation(targets=('mlp.fc2',)), texts)
  judge = each_client.EachClient(
    run.algorithm, run.planner, run.local_opt, None, lambda _: texts, (8, 12), 1
  )  # fmt: skip
  state = run.engine.init()
  rows = [np.arange(40), np.array([3]), np.arange(20, 48), np.arange(5)]
  subjects = each_client.Subjects(0, run.planner.gather(0, range(4)), rows)
  scores = judge.judge(_shared(run, state, 0), state, subjects)
  for client, at in enumerate(rows):
    seen, held = _own(run, state, 0, client)
    model = run.foundation.assemble(run.foundation.base, seen, held)
    outputs = run.algorithm.evaluation.predict(
      'full', model, held, texts.read(at)
    )
    hits = np.argmax(outputs, -1) == texts.labels[at]
    np.testing.assert_allclose(scores.own[client], hits.mean())
  assert np.isfinite(scores.tuned).all()

"""What is not finite in a run: who is left out, and when a run ends."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from fedjax_tune import endings
from fedjax_tune.engine import evaluate, server
from fedjax_tune.training import health


def _state(**parts):
  parts = {'theta': {'head': {'bias': jnp.zeros(2)}, 'w': jnp.ones(3)}} | parts
  return server.ServerState(
    parts['theta'], parts.get('opt_state', ()), parts.get('memory', ())
  )


def test_a_finite_state_is_let_through():
  health.check_state(_state(memory={'count': jnp.arange(3)}), 'round 1')


@pytest.mark.parametrize(
  ('state', 'message'),
  [
    (
      _state(theta={'head': {'bias': jnp.array([0, jnp.nan])}}),
      r'^round 7: theta.head.bias of the server must be finite',
    ),
    (
      _state(opt_state=({'mu': jnp.array([jnp.inf])},)),
      r'^round 7: opt_state\.0\.mu of the server',
    ),
    (
      _state(memory={'rank': jnp.array([-jnp.inf]), 'm': jnp.array(jnp.nan)}),
      r'^round 7: memory.m and 1 more of the server',
    ),
  ],
)
def test_a_state_that_is_not_ends_the_run(state, message):
  with pytest.raises(endings.Diverged, match=message):
    health.check_state(state, 'round 7')


def _lines(*rounds):
  """Writes rounds as `metrics.jsonl` has them: (who counts, who is not)."""
  return ''.join(
    json.dumps(
      {
        'round': i,
        'train/clients': counts,
        'train/rejected': len(rejected),
        'train/rejected_clients': rejected,
      }
    )
    + '\n'
    for i, (counts, rejected) in enumerate(rounds)
  )


@pytest.mark.parametrize(
  ('rounds', 'over'),
  [
    ([(3, [])], True),
    ([(3, [1])], True),
    ([(0, [0, 1])], False),  # The others may do better.
    ([(0, [0, 1]), (1, [2])], True),
    ([(0, [0, 1, 2]), (1, [3]), (0, [3, 0])], True),
    ([(2, []), (0, [0, 1])], True),
  ],
)
def test_a_run_goes_on_while_somebody_may_do_better(rounds, over):
  health.check_progress(_lines(*rounds), range(4), over=over)


@pytest.mark.parametrize(
  ('rounds', 'over', 'message'),
  [
    ([(0, [0, 1, 2, 3])], False, r'^round 1: no client .* 0, 1, 2, 3\. Train'),
    ([(2, []), (0, [0, 1]), (0, [2, 3])], False, r'^rounds 2 to 3: no client'),
    # Not everybody was asked, but nothing was ever learned.
    ([(0, [0, 1]), (0, [1, 2])], True, r'^rounds 1 to 2: .* clients 0, 1, 2\.'),
  ],
)
def test_a_run_ends_once_nobody_is_left(rounds, over, message):
  with pytest.raises(endings.Diverged, match=message):
    health.check_progress(_lines(*rounds), range(4), over=over)


def test_who_was_rejected_no_longer_owns_layers():
  run = tiny.run(tiny.experiment('fedra'))
  plan = run.planner.plan(0)
  flags = [np.array(w.slab.ids) == 1 for w in plan.works]
  clients, owners = health.rejected(plan, flags)
  assert clients == [1]
  row = run.algorithm.rule.draw(0, range(4))[1]['layer']
  want = np.array(plan.owners)
  want[row] -= 1
  np.testing.assert_array_equal(owners, want)
  # Prefixes are numbers.
  plan = tiny.run(tiny.experiment('all_small')).planner.plan(0)
  flags = [np.array(w.slab.ids) >= 2 for w in plan.works]
  assert health.rejected(plan, flags)[1].tolist() == [2, 2, 0, 0]


@pytest.mark.parametrize('bad', [jnp.nan, jnp.inf])
def test_a_model_that_is_not_finite_has_no_accuracy(bad):
  run = tiny.run(tiny.experiment('all_large'))
  test = tiny.examples(10, tiny.STACK_SIZE)
  judge = evaluate.build_evaluate(
    run.foundation, run.algorithm.evaluation, {'full': test}, batch_size=8
  )
  assert np.isfinite(
    judge(run.foundation.base, run.theta)['full']['accuracy']
  ).all()
  head = {**run.theta['head'], 'bias': run.theta['head']['bias'].at[1].set(bad)}
  with pytest.raises(
    endings.Diverged, match=r"evaluation 'full': the outputs of 10 of 10 test"
  ):
    judge(run.foundation.base, {**run.theta, 'head': head})

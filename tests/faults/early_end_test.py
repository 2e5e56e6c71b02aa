"""Runs that end early, and the best state; also killed and resumed."""

import json

import lab
import numpy as np
import pytest

from fedjax_tune import config
from fedjax_tune.training import checkpoint, loop
from launch import sweep_outcome, sweep_plan

_SCORES = [0.5, 0.6, 0.55, 0.6, 0.4, 0.3, 0.9, 0.9]


def _experiment(**changes):
  options = {'eval_every': 1, 'rounds': 8, 'patience': 2, 'keep_best': True}
  return lab.experiment(**(options | changes))


@pytest.fixture
def scored():
  """Every evaluation has the score of its round."""

  def evaluate(self, state, rnd):
    del self, state
    return {'eval/accuracy': _SCORES[rnd]}

  with lab.patched(loop.Run, 'evaluate', evaluate):
    yield


def _leaves(workdir, part):
  kept = checkpoint.find(workdir).newest
  assert kept is not None
  own = f"['{part}']"
  return {
    key.removeprefix(own): leaf
    for key, leaf in kept.leaves.items()
    if key.startswith(own)
  }


@pytest.mark.usefixtures('scored')
def test_a_run_ends_after_its_patience_and_keeps_the_best(tmp_path):
  shown = lab.go(tmp_path / 'a', _experiment())
  assert (
    'Ended after round 6 of 8: 2 evaluations in a row were below that of round'
    ' 2.' in shown
  )
  summary = json.loads((tmp_path / 'a/summary.json').read_text())
  assert (summary['rounds'], summary['ended_early']) == (6, True)
  assert (summary['best_round'], summary['best_accuracy']) == (2, 0.6)
  assert summary['accuracy'] == 0.3
  # The state after two rounds.
  lab.go(tmp_path / 'b', _experiment(rounds=2))
  want = _leaves(tmp_path / 'b', 'state')
  got = _leaves(tmp_path / 'a', 'best')
  assert want
  assert got.keys() == want.keys()
  for key, leaf in want.items():
    np.testing.assert_array_equal(got[key], leaf)
  last = _leaves(tmp_path / 'a', 'state')
  assert any(np.any(last[key] != leaf) for key, leaf in want.items())


@pytest.mark.usefixtures('scored')
@pytest.mark.parametrize('rnd', [1, 3, 5])
def test_a_killed_run_ends_where_another_does(tmp_path, rnd):
  lab.go(tmp_path / 'a', _experiment())
  with pytest.raises(lab.Stopped):
    lab.go(tmp_path / 'b', _experiment(), patch=lab.stopped_in(rnd))
  lab.go(tmp_path / 'b', _experiment(), resume=True)
  assert lab.result(tmp_path / 'b') == lab.result(tmp_path / 'a')
  # Nothing is left to do, also of more rounds.
  lab.go(tmp_path / 'b', _experiment(rounds=20), resume=True)
  assert lab.result(tmp_path / 'b') == lab.result(tmp_path / 'a')


@pytest.mark.usefixtures('scored')
def test_without_patience_all_rounds_are_run(tmp_path):
  shown = lab.go(tmp_path, _experiment(patience=0, keep_best=False))
  summary = json.loads((tmp_path / 'summary.json').read_text())
  assert (summary['rounds'], summary['ended_early']) == (8, False)
  assert 'Ended' not in shown
  assert not _leaves(tmp_path, 'best')


def test_a_sweep_takes_an_early_end_for_an_end(tmp_path, monkeypatch):
  summary = {'rounds': 6, 'ended_early': True}
  outcome = sweep_outcome.Outcome(summary, [], [])
  monkeypatch.setattr(sweep_outcome, 'read', lambda _: outcome)

  def finished(**fields):
    e = config.Experiment(**fields)
    return sweep_plan.PlannedRun('a', 0, (), tmp_path, e).finished

  assert finished(rounds=8, patience=2)
  assert not finished(rounds=8)
  assert finished(rounds=6)

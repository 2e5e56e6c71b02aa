"""A round is settled while the device has the next; results do not show it."""

import json

import lab
import pytest

from fedjax_tune.engine import plan
from fedjax_tune.engine import round as round_lib
from fedjax_tune.training import loop


def _log(monkeypatch, owner, name, what):
  """Notes every call, with the number of the round among its kind."""
  inner, calls = getattr(owner, name), []

  def noted(self, *args, **options):
    what.append(f'{name} {len(calls)}')
    calls.append(name)
    return inner(self, *args, **options)

  monkeypatch.setattr(owner, name, noted)


def test_the_next_round_begins_before_one_is_settled(tmp_path, monkeypatch):
  what = []
  _log(monkeypatch, round_lib.Engine, 'round', what)
  _log(monkeypatch, loop.Run, 'charge', what)
  lab.go(tmp_path, lab.experiment(eval_every=3))
  assert what == [
    'round 0',
    'round 1',
    'charge 0',
    'round 2',
    'charge 1',
    # It is evaluated, which may end the run.
    'charge 2',
    'round 3',
    'round 4',
    'charge 3',
    'round 5',
    'charge 4',
    'charge 5',
  ]


def _rare(**changes):
  """Two of four clients a round; one of four holds all blocks."""
  return lab.experiment('fedra', clients={'cohort_size': 1}, **changes)


@pytest.fixture
def nothing_compiled(monkeypatch):
  monkeypatch.setattr(lab, '_compiled', {})


def test_a_signature_that_was_not_foreseen(
  tmp_path, monkeypatch, nothing_compiled
):
  """The run and a resumed one are as if it had been."""
  del nothing_compiled
  lab.go(tmp_path / 'whole', _rare())
  want = lab.result(tmp_path / 'whole')
  compiles = lambda name: json.loads(
    (tmp_path / name / 'summary.json').read_text()
  )['compiles']
  monkeypatch.setattr(plan, '_FORESEEN', 1)
  monkeypatch.setattr(lab, '_compiled', {})
  lab.go(tmp_path / 'late', _rare())
  assert lab.result(tmp_path / 'late') == want
  assert compiles('late') == compiles('whole') > 1
  (cost,) = json.loads((tmp_path / 'late/costs.json').read_text())
  assert cost['clients'] == 1  # One of four holds all blocks.
  with pytest.raises(lab.Stopped):
    lab.go(tmp_path / 'stopped', _rare(), patch=lab.stopped_in(4))
  monkeypatch.setattr(lab, '_compiled', {})
  lab.go(tmp_path / 'stopped', _rare(), resume=True)
  assert lab.result(tmp_path / 'stopped') == want

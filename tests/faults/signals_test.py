"""A signal ends a run after the round that it is in, and nothing is lost."""

import os
import pathlib
import signal
import threading

import lab
import pytest

from fedjax_tune import endings
from fedjax_tune.training import build, interim, interrupts, loop

_NAMES = {
  signal.SIGINT: 'Ctrl-C',
  signal.SIGTERM: 'SIGTERM',
  signal.SIGHUP: 'SIGHUP',
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('signals')


@pytest.fixture(scope='module')
def whole(folder):
  lab.go(folder / 'whole')
  return lab.result(folder / 'whole')


def _send(number, times=1):
  for _ in range(times):
    os.kill(os.getpid(), number)


def _checkpoints(workdir: pathlib.Path) -> list[str]:
  return sorted(path.name for path in (workdir / 'checkpoints').iterdir())


@pytest.mark.parametrize('number', _NAMES)
def test_the_round_is_finished_and_saved(tmp_path, whole, number):
  handler = signal.getsignal(number)
  with pytest.raises(endings.Interrupted) as caught:
    lab.go(tmp_path, patch=lab.during(2, lambda: _send(number)))
  assert str(caught.value) == (
    f'{_NAMES[number]} after round 3 of 6, which is saved in {tmp_path};'
    ' --resume goes on from there.'
  )
  assert _checkpoints(tmp_path) == ['2', '3']
  assert not (tmp_path / 'summary.json').exists()
  assert signal.getsignal(number) is handler
  lab.go(tmp_path, resume=True)
  assert lab.result(tmp_path) == whole


def test_during_an_evaluation(tmp_path, whole, monkeypatch):
  evaluate, drawn = loop.Run.evaluate, []
  monkeypatch.setattr(interim.Interim, 'draw', lambda self: drawn.append(self))

  def interrupted(self, state, rnd):
    if rnd == 3:
      _send(signal.SIGTERM)
    return evaluate(self, state, rnd)

  patch = lab.patched(loop.Run, 'evaluate', interrupted)
  with pytest.raises(endings.Interrupted, match='SIGTERM after round 4 of 6'):
    lab.go(tmp_path, patch=patch)
  assert len(drawn) == 1
  assert '4 of 6 rounds' in (tmp_path / 'accuracy.md').read_text()
  lab.go(tmp_path, resume=True)
  assert lab.result(tmp_path) == whole


def test_during_the_last_round(tmp_path, whole):
  """It is finished then, with plots and summary."""
  lab.go(tmp_path, patch=lab.during(5, lambda: _send(signal.SIGTERM)))
  assert (tmp_path / 'summary.json').exists()
  assert lab.result(tmp_path) == whole


def _interrupted_run(made):
  _send(signal.SIGTERM)
  return loop.Run(made)


def test_before_the_first_round_it_ends_at_once(tmp_path, whole, monkeypatch):
  monkeypatch.setattr(lab, 'shared_run', _interrupted_run)
  with pytest.raises(endings.Interrupted, match='ended at once by SIGTERM'):
    lab.go(tmp_path)
  assert not (tmp_path / 'checkpoints').exists()
  monkeypatch.undo()
  lab.go(tmp_path, resume=True)
  assert lab.result(tmp_path) == whole


def _lose_a_signal():
  with interrupts.Interrupts() as signals:
    with pytest.raises(KeyboardInterrupt):
      _send(signal.SIGINT)
    with signals.patient():
      pytest.fail('It went on.')


def test_one_that_a_callback_lost_is_not_forgotten():
  """Python drops what is raised in callbacks of the garbage collector."""
  with pytest.raises(endings.Interrupted, match='ended at once by Ctrl-C'):
    _lose_a_signal()


def test_data_that_catch_errors_do_not_catch_it(tmp_path, monkeypatch):
  """While data are read, a RuntimeError would pass for corrupt files."""

  def corrupt(*_, **options):
    del options
    try:
      _send(signal.SIGINT)
    except Exception as error:
      raise ValueError('Delete that folder.') from error

  monkeypatch.setattr(lab, 'setup', corrupt)
  with pytest.raises(endings.Interrupted, match='ended at once by Ctrl-C'):
    lab.go(tmp_path / 'new')
  assert not (tmp_path / 'new').exists()


def test_a_second_one_ends_at_once(tmp_path, whole):
  with pytest.raises(endings.Interrupted, match='ended at once by Ctrl-C'):
    lab.go(tmp_path, patch=lab.during(2, lambda: _send(signal.SIGINT, 2)))
  assert _checkpoints(tmp_path) == ['2']
  lab.go(tmp_path, resume=True)
  assert lab.result(tmp_path) == whole


def test_one_while_the_last_is_being_saved(tmp_path, whole):
  """Two different signals count as two."""

  def both():
    _send(signal.SIGTERM)
    _send(signal.SIGINT)

  with pytest.raises(endings.Interrupted, match='ended at once by Ctrl-C'):
    lab.go(tmp_path, patch=lab.during(4, both))
  lab.go(tmp_path, resume=True)
  assert lab.result(tmp_path) == whole


def test_another_thread_leaves_signals_alone(tmp_path, whole):
  """Python gives them to the main thread only."""
  before, ended = [signal.getsignal(n) for n in _NAMES], []

  def run():
    lab.go(tmp_path)
    ended.append(True)

  thread = threading.Thread(target=run)
  thread.start()
  thread.join()
  assert ended
  assert [signal.getsignal(n) for n in _NAMES] == before
  assert lab.result(tmp_path) == whole


def test_ignored_signals_stay_ignored(tmp_path, whole):
  """As nohup has it."""
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    lab.go(tmp_path, patch=lab.during(2, lambda: _send(signal.SIGHUP)))
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
  finally:
    signal.signal(signal.SIGHUP, before)
  assert lab.result(tmp_path) == whole


def test_handlers_are_put_back_after_an_error(tmp_path):
  def fail(*_, **options):
    del options
    raise ValueError('wrong')

  before = [signal.getsignal(number) for number in _NAMES]
  with (
    lab.patched(build, 'build', fail),
    pytest.raises(ValueError, match='wrong'),
  ):
    loop.train(lab.experiment(), str(tmp_path))
  assert [signal.getsignal(number) for number in _NAMES] == before


def test_without_a_signal_nothing_is_asked():
  with interrupts.Interrupts() as signals, signals.patient():
    assert not signals.asked

"""A killed run, resumed, is the uninterrupted one bit for bit."""

import contextlib
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import lab
import pytest
import tiny
import tiny_events

from fedjax_tune.engine import server_optimizer
from fedjax_tune.methods import METHODS
from fedjax_tune.report import writer
from fedjax_tune.training import loop, snapshot, summary

_OPTIMIZERS = tuple(server_optimizer.OPTIMIZERS)


def _copy(folder, copy):
  """Copies a run's folder, in which a thread may be writing a checkpoint."""
  while True:
    try:
      shutil.copytree(folder, copy)
    except shutil.Error:
      # The checkpoint got its name meanwhile: that is no moment of the folder.
      shutil.rmtree(copy)
    else:
      return


def _copying(owner, name, calls, folder, copy):
  """Copies a run's folder before the nth call of a function.

  That is what a process leaves that is killed there: its buffers are lost, and
  what it has handed to the system is on the disk.
  """
  function, count = getattr(owner, name), []

  def copying(*args, **options):
    count.append(args)
    if len(count) == calls:
      _copy(folder, copy)
    return function(*args, **options)

  return lab.patched(owner, name, copying)


# Where the process is killed: before the nth call of this.
_MOMENTS = {
  'in the first round': (loop.Run, 'charge', 1),
  'between a row and its checkpoint': (
    loop.checkpoint.Checkpoints,
    'save',
    4,
  ),
  'within a checkpoint': (snapshot, '_write_through', 6),
  'before a checkpoint is there': (snapshot, '_set_aside', 2),
  'before the old ones go': (snapshot, 'remove', 1),
  'in an evaluation': (loop.Run, 'evaluate', 6),
  'before the summary': (summary, 'summarize', 1),
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """An uninterrupted run, with copies of its folder at these moments."""
  path = tmp_path_factory.mktemp('kills')
  whole = path / 'whole'
  with contextlib.ExitStack() as stack:
    for moment, (owner, name, calls) in _MOMENTS.items():
      patch = _copying(owner, name, calls, whole, path / moment)
      stack.enter_context(patch)
    e = lab.experiment(server={'optimizer': 'fedadam', 'lr': 0.1})
    lab.go(whole, e)
  return path


@pytest.mark.parametrize('moment', _MOMENTS)
def test_killed(folder, moment):
  e = lab.experiment(server={'optimizer': 'fedadam', 'lr': 0.1})
  lab.go(folder / moment, e, resume=True)
  _check_same(folder / moment, folder / 'whole')


def _check_same(killed, whole):
  assert lab.result(killed) == lab.result(whole)
  assert not [*(killed / 'checkpoints').glob('.*')]
  board, expected = (
    [event[:2] for event in tiny_events.read(path)] for path in (killed, whole)
  )
  assert board == expected


def _start(folder, case, optimizers):
  here = pathlib.Path(__file__).parent
  paths = [here, here.parent, here.parents[1]]
  return subprocess.Popen(
    [sys.executable, here / 'victim.py', folder, case, *optimizers],
    env=os.environ | {'PYTHONPATH': os.pathsep.join(map(str, paths))},
    stderr=subprocess.PIPE,
  )


def _finish(process):
  _, said = process.communicate(timeout=300)
  assert process.returncode == 0, said.decode()


def _kill_in(process, workdir, rnd, wait):
  """Kills a process `wait` seconds after it has written a round."""
  while process.poll() is None:
    with contextlib.suppress(FileNotFoundError):
      if len(writer.read_text(workdir).splitlines()) >= rnd:
        time.sleep(wait)
        break
    time.sleep(0.002)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  return process.returncode == -signal.SIGKILL


def _optimizers(case):
  """Returns the server optimizers of a method; fedavg again if it has no other.

  PriSM and the exact means of LoRA refuse all others.
  """
  e = tiny.experiment(case, server={'optimizer': 'fedadam'})
  try:
    METHODS[e.method].check(e, {'layer': tiny.DEPTH}, tiny.BUDGETS)
  except ValueError as error:
    if 'server.optimizer' in str(error):
      return ('fedavg', *(f'fedavg-{seed}' for seed in range(2, 6)))
  except KeyError:
    pass  # Of axes, which these methods do not ask for.
  return _OPTIMIZERS


@pytest.mark.slow
@pytest.mark.parametrize('case', tiny.CASES)
def test_killed_at_random(tmp_path, case):
  """Every method with every server optimizer, killed once in each."""
  optimizers = _optimizers(case)
  _finish(_start(tmp_path / 'whole', case, optimizers))
  rng = random.Random(case)
  for i, name in enumerate(optimizers):
    # The process finishes what was killed before, and begins this one.
    started = optimizers[max(i - 1, 0) : i + 1]
    process = _start(tmp_path / 'killed', case, started)
    workdir = tmp_path / 'killed' / name
    rnd, wait = rng.randrange(lab.ROUNDS), rng.uniform(0, 0.03)
    assert _kill_in(process, workdir, rnd, wait)
    assert not (workdir / 'summary.json').exists() or rnd == lab.ROUNDS - 1
  _finish(_start(tmp_path / 'killed', case, optimizers))
  for name in optimizers:
    _check_same(tmp_path / 'killed' / name, tmp_path / 'whole' / name)

"""A sweep passes signals on, once, and can go on after."""

import dataclasses
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest
from rich import console as rich_console
import tiny_sweep

from fedjax_tune import endings
from fedjax_tune.files import mirror
from launch import sweep_plan, sweep_runner, sweep_share

# Stands in for launch.train: waits to be told, or finishes when resumed.
_FAKE = f"""{tiny_sweep.RESULTS}
import pathlib, signal, sys, time
out, resumed = pathlib.Path(sys.argv[1]), sys.argv[2] == 'True'
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
signal.signal(signal.SIGINT, lambda *_: (out / 'ctrl_c').touch())
(out / 'config.json').write_text(sys.argv[3])
end = time.time() + 60 * (not resumed)
while time.time() < end:
  time.sleep(0.02)
  if told:
    time.sleep(0.3)
    (out / 'told').write_text(str(len(told)))
    sys.exit(4)
leave(
  out, [{{'round': 0, 'eval/accuracy': 0.5}}],
  method='a', seed=0, rounds=1, accuracy=0.5)
"""


def _command(run):
  fields = json.dumps(dataclasses.asdict(run.experiment))
  command = [sys.executable, '-c', _FAKE, str(run.workdir), str(run.begun)]
  return [*command, fields]


def _plan(methods, workdir):
  common = ['rounds=1']
  return sweep_plan.plan(
    'x.py', methods, ['0'], common, workdir, tiny_sweep.resolve
  )


def _sweep(workdir):
  runs = _plan('a=fedra,b=all_small', workdir)
  shown = io.StringIO()
  console = rich_console.Console(file=shown, width=200)
  try:
    failed = sweep_runner.run_sweep(
      runs, _command, mirror.Place(workdir), 1, console
    )
  finally:
    said.append(shown.getvalue())
  return failed


said: list[str] = []


def _when_begun(path, act):
  """Acts as soon as a run has begun."""

  def wait():
    while not (path / 'config.json').exists():
      time.sleep(0.02)
    act()

  thread = threading.Thread(target=wait)
  thread.start()
  return thread


def test_runs_end_after_their_rounds(tmp_path):
  first = tmp_path / 'a/seed0'
  thread = _when_begun(first, lambda: os.kill(os.getpid(), signal.SIGINT))
  with pytest.raises(endings.Interrupted, match=r': 0 of 2 runs are finished'):
    _sweep(tmp_path)
  thread.join()
  assert (first / 'told').read_text() == '1'
  assert not (first / 'ctrl_c').exists()
  assert not (tmp_path / 'b').exists()
  assert 'a seed 0 stopped; what it has done is saved' in said[-1]
  _, second = _plan('a=fedra,b=all_small', tmp_path)
  fields = dataclasses.asdict(second.experiment)
  second.workdir.mkdir(parents=True)
  (second.workdir / 'config.json').write_text(json.dumps(fields))
  assert not _sweep(tmp_path)
  lines = (tmp_path / 'results.jsonl').read_text().splitlines()
  assert len(lines) == 2


def test_a_terminal_reaches_the_sweep_alone(tmp_path):
  """Its Ctrl-C goes to a group of processes, of which a run is none."""
  run = _plan('a=fedra', tmp_path)[0]
  run.workdir.mkdir(parents=True)
  process: subprocess.Popen[bytes] = sweep_runner._start(
    run, _command(run), sweep_share.Share(None, {})
  )
  try:
    assert os.getpgid(process.pid) == process.pid != os.getpgid(0)
  finally:
    process.kill()
    process.wait()
  assert pathlib.Path(run.workdir / 'log.txt').exists()

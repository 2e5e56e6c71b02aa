"""Runs on two hosts: one result, however often they begin."""

import functools
import os
import pathlib
import signal
import socket
import subprocess
import sys

import host
import lab
import numpy as np
import pytest

_HERE = pathlib.Path(__file__).parent


def _begin(folder, *cases, hosts=2):
  """Starts the processes of some runs, and returns them."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  folder.mkdir(exist_ok=True)
  script = [sys.executable, _HERE / 'host.py', folder, port, hosts]
  env = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
  processes = []
  for index in range(hosts):
    with (folder / f'log{index}').open('a') as log:
      command = list(map(str, [*script, index, *cases]))
      processes.append(
        subprocess.Popen(command, stdout=log, stderr=log, env=env)
      )
  return processes


def _end(folder, processes):
  """Waits for them; returns their statuses, and all that they wrote."""
  try:
    statuses = [process.wait(900) for process in processes]
  finally:
    for process in processes:
      process.kill()
  logs = [(folder / f'log{i}').read_text() for i in range(len(processes))]
  return statuses, '\n'.join(logs)


@pytest.fixture(scope='module')
def single(tmp_path_factory):
  """Returns the result of a case on one host."""
  folder = tmp_path_factory.mktemp('single')

  @functools.cache
  def of(case):
    host.train(folder, case)
    return lab.result(folder / case)

  return of


def _assert_close(got, want):
  (state, rows), (old_state, old_rows) = got, want
  assert state.keys() == old_state.keys()
  for name, (kind, shape, content) in state.items():
    assert (kind, shape) == old_state[name][:2], name
    arrays = [np.frombuffer(c, kind) for c in (content, old_state[name][2])]
    np.testing.assert_allclose(*arrays, rtol=1e-4, atol=1e-5, err_msg=name)
  for row, old in zip(rows, old_rows, strict=True):
    assert row.keys() == old.keys()
    for name, value in row.items():
      np.testing.assert_allclose(value, old[name], rtol=1e-4, err_msg=name)


def test_a_signal_to_one_host_stops_both_and_they_go_on(tmp_path, single):
  processes = _begin(tmp_path, 'asked')
  want = single('scaffold')
  statuses, logs = _end(tmp_path, processes)
  assert statuses == [0, 0], logs
  assert 'a signal to another host after round 2 of 3' in logs
  _assert_close(lab.result(tmp_path / 'runs' / 'asked'), want)
  # The first one alone writes.
  assert not (tmp_path / 'none').exists()


@pytest.mark.slow
def test_two_hosts_equal_one_however_often_they_begin(tmp_path, single):
  cases = ('scaffold', 'fedra', 'alone')
  statuses, logs = _end(tmp_path, _begin(tmp_path, *cases))
  assert statuses == [0, 0], logs
  for case in cases:
    _assert_close(lab.result(tmp_path / 'runs' / case), single(case))
  statuses, logs = _end(tmp_path, _begin(tmp_path, 'killed'))
  assert statuses == [4, -signal.SIGKILL], logs
  assert 'another host is gone' in logs
  statuses, logs = _end(tmp_path, _begin(tmp_path, '--resume', 'killed'))
  assert statuses == [0, 0], logs
  results = [lab.result(tmp_path / 'runs' / c) for c in ('killed', 'scaffold')]
  assert results[0] == results[1]

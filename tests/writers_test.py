"""What W&B, MLflow and a user's own writers are told, by stand-ins."""

import dataclasses
import importlib.util
import types
from typing import Any

import numpy as np
import pytest

import fedjax_tune as ft
from fedjax_tune import config, plugins
from fedjax_tune.report import writers

_FIELDS = {'method': 'fedra', 'seed': 3, 'lora': {'rank': 8, 'targets': ('a',)}}
_METRICS = {'train/loss': np.float32(0.5), 'coverage/layers': [1, 2], 'x': None}


@pytest.fixture
def modules(monkeypatch):
  """Stands for packages; notes each call."""
  calls = []

  def note(name, result=None):
    def call(*args, **options):
      calls.append((name, args, options))
      return result

    return call

  run = types.SimpleNamespace(log=note('log'), finish=note('finish'))
  started = types.SimpleNamespace(info=types.SimpleNamespace(run_id='r7'))
  found = {
    'wandb': types.SimpleNamespace(init=note('init', run)),
    'mlflow': types.SimpleNamespace(
      start_run=note('start_run', started),
      log_params=note('log_params'),
      log_metrics=note('log_metrics'),
      end_run=note('end_run'),
    ),
  }
  monkeypatch.setattr(importlib, 'import_module', found.__getitem__)
  return calls


def _tell(tmp_path, names, own=()):
  with writers.opened(names, own, tmp_path, _FIELDS) as found:
    for rnd in (0, 1):
      for each in found:
        each.write(rnd, _METRICS)


def test_wandb_is_told_numbers_by_round(tmp_path, modules):
  _tell(tmp_path, ['wandb'])
  first, *logs, last = modules
  assert first[0] == 'init'
  assert first[2]['name'] == 'fedra seed 3'
  assert first[2]['config'] == _FIELDS
  assert [log[1:] for log in logs] == [
    (({'train/loss': 0.5},), {'step': rnd}) for rnd in (0, 1)
  ]
  assert last[0] == 'finish'
  # A process that goes on with the run goes on with that of W&B.
  _tell(tmp_path, ['wandb'])
  assert modules[4][2]['id'] == first[2]['id']
  assert first[2]['resume'] == 'allow'
  # One that begins anew in a folder of that name does not.
  (tmp_path / 'wandb_run').unlink()
  _tell(tmp_path, ['wandb'])
  assert modules[8][2]['id'] != first[2]['id']


def test_mlflow_goes_on_with_its_run(tmp_path, modules):
  _tell(tmp_path, ['mlflow'])
  assert [call[0] for call in modules] == [
    'start_run', 'log_params', 'log_metrics', 'log_metrics', 'end_run'
  ]  # fmt: skip
  assert modules[0][2] == {'run_id': None, 'run_name': 'fedra seed 3'}
  assert modules[1][1][0]['lora.rank'] == 8
  assert modules[3][1:] == (({'train/loss': 0.5},), {'step': 1})
  del modules[:]
  _tell(tmp_path, ['mlflow'])
  assert [call[0] for call in modules][:2] == ['start_run', 'log_metrics']
  assert modules[0][2] == {'run_id': 'r7', 'run_name': None}


class _ServerError(Exception):
  """What a package raises, of no kind of Python's own."""


@pytest.mark.parametrize('name', ['wandb', 'mlflow'])
def test_a_run_outlasts_a_server_that_is_gone(tmp_path, modules, name):
  del modules

  def fail(*_, **__):
    raise _ServerError('no answer')

  package: Any = importlib.import_module(name)
  for at in (package, package.init() if name == 'wandb' else package):
    for each in ('log', 'finish', 'log_metrics', 'end_run'):
      setattr(at, each, fail)
  with pytest.warns(
    RuntimeWarning, match='ServerError: no answer; the run'
  ) as told:
    _tell(tmp_path, [name])
  assert len(told) == 1
  package.init = package.start_run = fail
  with pytest.raises(
    RuntimeError, match=f"'{name}' cannot begin: _ServerError"
  ):
    _tell(tmp_path, [name])


def test_mlflow_takes_a_hundred_parameters_at_a_time(tmp_path, modules):
  e = config.Experiment()
  e.clients.sizes = tuple(range(10, 500))
  fields = dataclasses.asdict(e)
  with writers.opened(['mlflow'], (), tmp_path, fields):
    pass
  parts = [call[1][0] for call in modules if call[0] == 'log_params']
  assert [len(part) for part in parts[:-1]] == [100] * (len(parts) - 1)
  found = {name: value for part in parts for name, value in part.items()}
  assert len(found) > 100
  assert found['local.lr'] == 0.01
  assert len(found['clients.sizes']) == 500
  assert found['clients.sizes'].startswith('(10, 11, ')


class _Kept:
  def __init__(self):
    self.rounds, self.closed = [], False

  def write(self, rnd, metrics):
    self.rounds.append((rnd, dict(metrics)))

  def close(self):
    self.closed = True


def test_own_writers_are_closed_even_if_another_fails(tmp_path, monkeypatch):
  kept = _Kept()

  def fail(*_):
    raise RuntimeError('no such server')

  monkeypatch.setitem(writers.WRITERS, 'mine', fail)
  with pytest.raises(RuntimeError, match='no such server'):
    _tell(tmp_path, ['mine'], [kept])
  assert kept.closed
  assert isinstance(kept, writers.Writer)


def test_a_package_that_is_not_there_is_named():
  e = config.Experiment(writers=('wandb',))
  if importlib.util.find_spec('wandb') is None:
    with pytest.raises(ValueError, match=r'writers\[0\].*pip install wandb'):
      plugins.check(e)
  e.writers = ('wandbb',)
  with pytest.raises(ValueError, match=r"writers\[0\]='wandbb' .*'wandb'"):
    plugins.check(e)


def test_a_users_own_is_registered(monkeypatch):
  monkeypatch.setattr(writers, 'WRITERS', dict(writers.WRITERS))
  build = lambda *_: _Kept()
  ft.register_writer('mine', build)
  plugins.check(config.Experiment(writers=('mine',)))
  with pytest.raises(ValueError, match='another name'):
    ft.register_writer('wandb', build)

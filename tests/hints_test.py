"""Hints name a command as the user has started this one."""

import os
import sys

import pytest

from fedjax_tune import commands
from fedjax_tune.data import fetch
from launch import __main__ as together


@pytest.fixture(autouse=True)
def _forget(monkeypatch):
  # What a test remembers goes with it.
  monkeypatch.setattr(os, 'environ', {**os.environ})


@pytest.mark.parametrize(
  ('argv0', 'start'),
  [
    ('/usr/bin/fedjax-tune', 'fedjax-tune prepare'),
    ('/here/launch/__main__.py', 'python -m launch prepare'),
  ],
)
def test_hints_say_what_was_typed(argv0, start, monkeypatch):
  monkeypatch.setattr(sys, 'argv', [argv0, 'train', '--workdir=x'])
  monkeypatch.setattr(together.runpy, 'run_module', lambda *_, **__: None)
  together.main()
  assert fetch.command(dataset='nico') == f'{start} --dataset=nico'
  said = 'python -m launch.prepare --x\n  as launch.prepare does; launch.py'
  assert commands.as_typed(said).splitlines() == [
    f'{start} --x', f'  as {start} does; launch.py'
  ]  # fmt: skip


def test_a_command_of_its_own_says_so():
  assert commands.start_of('train') == 'python -m launch.train'
  assert commands.as_typed('as launch.prepare does') == 'as launch.prepare does'


def test_a_command_that_is_none(monkeypatch, capsys):
  monkeypatch.setattr(sys, 'argv', ['fedjax-tune', 'trian'])
  with pytest.raises(SystemExit):
    together.main()
  assert "did you mean 'train'?" in capsys.readouterr().err

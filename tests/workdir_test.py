"""A run's folder belongs to one experiment, and to one process at a time."""

import dataclasses
import errno
import fcntl
import importlib
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from fedjax_tune import config, endings
from fedjax_tune.training import apart, checkpoint, identity, loop, workdir


def _guard(folder, resume=False, **changes):
  experiment = dataclasses.replace(config.Experiment(), **changes)
  fields = dataclasses.asdict(experiment)
  workdir.check(folder, fields, resume)
  with workdir.claim(folder):
    workdir.check_begun(folder, fields, resume)
    workdir.write_config(folder, fields)


def test_takes_a_new_folder_with_or_without_resume(tmp_path):
  _guard(tmp_path / 'a' / 'b')
  assert '"rank": 8' in (tmp_path / 'a' / 'b' / 'config.json').read_text()
  _guard(tmp_path / 'c', resume=True)


def test_resumes_the_same_experiment(tmp_path):
  _guard(tmp_path)
  with pytest.raises(ValueError, match='pass --resume'):
    _guard(tmp_path)
  _guard(tmp_path, resume=True)


def test_lets_only_rounds_grow(tmp_path):
  _guard(tmp_path, rounds=10)
  _guard(tmp_path, resume=True, rounds=20)
  with pytest.raises(ValueError, match='rounds: 20 there, 10 here'):
    _guard(tmp_path, resume=True, rounds=10)
  with pytest.raises(ValueError, match='rounds: 20 there, 30 here'):
    _guard(tmp_path, rounds=30)
  with pytest.raises(ValueError, match='seed: 0 there, 1 here'):
    _guard(tmp_path, resume=True, rounds=30, seed=1)


@pytest.mark.parametrize('resume', [False, True])
def test_lists_each_difference_and_changes_nothing(tmp_path, resume):
  _guard(tmp_path, lora=config.Lora(targets=('attn.proj', 'mlp.fc2')))
  before = (tmp_path / 'config.json').read_bytes()
  with pytest.raises(ValueError, match='of another experiment') as caught:
    _guard(
      tmp_path,
      resume=resume,
      method='depthfl',
      lora=config.Lora(rank=4, targets=('attn.q',)),
    )
  assert str(caught.value).splitlines()[1:] == [
    "  method: 'fedra' there, 'depthfl' here",
    '  lora.rank: 8 there, 4 here',
    "  lora.targets: ['attn.proj', 'mlp.fc2'] there, ['attn.q'] here",
  ]
  assert (tmp_path / 'config.json').read_bytes() == before


@pytest.mark.parametrize('text', ['{"method', '[]'])
def test_names_a_broken_config(tmp_path, text):
  (tmp_path / 'config.json').write_text(text)
  with pytest.raises(ValueError, match=r'config\.json must hold an experiment'):
    _guard(tmp_path, resume=True)


@pytest.mark.parametrize('rounds', ['100', None, [100], 100.0, True])
def test_rounds_that_are_no_whole_number(tmp_path, rounds):
  _guard(tmp_path)
  path = tmp_path / 'config.json'
  fields = json.loads(path.read_text())
  path.write_text(json.dumps(fields | {'rounds': rounds}))
  with pytest.raises(ValueError, match=r'rounds: .* there, 100 here'):
    _guard(tmp_path, resume=True)


@pytest.mark.parametrize('name', ['file', 'file/below'])
def test_refuses_a_file(tmp_path, name):
  (tmp_path / 'file').write_text('')
  with pytest.raises(OSError, match=r'workdir=.* must be a folder'):
    _guard(tmp_path / name)


def test_refuses_a_file_for_checkpoints(tmp_path):
  (tmp_path / 'checkpoints').write_text('')
  with pytest.raises(NotADirectoryError, match='checkpoints must be a folder'):
    _guard(tmp_path)


def test_refuses_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
  # root may write anywhere, so the answer of the system is replaced.
  monkeypatch.setattr(os, 'access', lambda *_: False)
  with pytest.raises(PermissionError, match='must be writable'):
    _guard(tmp_path)


def test_a_config_of_an_older_version_has_the_defaults(tmp_path):
  _guard(tmp_path)
  path = tmp_path / 'config.json'
  fields = json.loads(path.read_text())
  del fields['lora']['dropout'], fields['lora']['targets'], fields['prism']
  path.write_text(json.dumps(fields))
  with pytest.raises(ValueError, match=r'lora\.dropout: 0\.1 there, 0\.2 here'):
    _guard(tmp_path, resume=True, lora=config.Lora(dropout=0.2))
  _guard(tmp_path, resume=True)


def test_a_field_that_is_gone(tmp_path):
  _guard(tmp_path)
  path = tmp_path / 'config.json'
  fields = json.loads(path.read_text())
  path.write_text(json.dumps(fields | {'gone': 1}))
  with pytest.raises(ValueError, match='gone: 1 there, nothing here'):
    _guard(tmp_path, resume=True)


def test_checkpoints_without_a_config(tmp_path):
  with checkpoint.Checkpoints(tmp_path, 1, {}) as saved:
    saved.save(1, {'x': 1})
  with pytest.raises(ValueError, match='already has a run: pass --resume'):
    _guard(tmp_path)


_HOLD = """
import sys, time
from fedjax_tune.training import workdir
with workdir.claim(sys.argv[1]):
  print('held', flush=True)
  time.sleep(600)
"""


def test_one_process_at_a_time(tmp_path):
  with subprocess.Popen(
    [sys.executable, '-c', _HOLD, str(tmp_path)],
    stdout=subprocess.PIPE,
    cwd=pathlib.Path(__file__).parents[1],
  ) as process:
    assert process.stdout
    assert process.stdout.readline() == b'held\n'
    said = rf'is in use by process {process.pid} on \S+; wait for it'
    with pytest.raises(RuntimeError, match=said):
      _guard(tmp_path)
    with (
      pytest.raises(RuntimeError, match=said),
      workdir.claim(tmp_path),
    ):
      pass
    process.kill()
    process.wait()
  # The lock went with the process, however that ended.
  _guard(tmp_path)


def test_twice_in_one_process(tmp_path):
  with (
    workdir.claim(tmp_path),
    pytest.raises(RuntimeError, match=f'in use by process {os.getpid()} on'),
    workdir.claim(tmp_path),
  ):
    pass
  with workdir.claim(tmp_path):
    pass


def test_a_file_system_without_locks(tmp_path, monkeypatch):
  def refuse(*_):
    raise OSError(errno.ENOSYS, 'Function not implemented')

  with workdir.claim(tmp_path) as claim:
    assert claim.locked
  monkeypatch.setattr(fcntl, 'flock', refuse)
  with workdir.claim(tmp_path) as claim:
    assert not claim.locked
    claim.check()
  _guard(tmp_path)


def test_a_folder_that_goes_away(tmp_path):
  folder = tmp_path / 'run'
  with workdir.claim(folder) as claim:
    claim.check()
    shutil.rmtree(folder)
    with pytest.raises(endings.StorageError, match=r'run is gone \(No such'):
      claim.check()
    folder.mkdir()
    (folder / '.lock').touch()
    with pytest.raises(endings.StorageError, match='replaced by another'):
      claim.check()


def _check_same(changes, *, resume, **options):
  there = config.Experiment(**options)
  here = dataclasses.replace(there, **changes)
  both = dataclasses.asdict(there), dataclasses.asdict(here)
  workdir.check_same(*both, resume, 'here')


@pytest.mark.parametrize('resume', [True, False])
def test_what_trains_nothing_may_change(resume):
  clients = config.Clients(report=5, report_steps=2)
  free = {'writers': ('wandb',), 'eval_start': True, 'clients': clients}
  _check_same(free, resume=resume)
  with pytest.raises(ValueError, match='held_out'):
    _check_same({'clients': config.Clients(held_out=0.1)}, resume=resume)


def test_rounds_grow_but_where_the_rate_depends_on_them():
  _check_same({'rounds': 7}, resume=True, rounds=5)
  local = config.Local(over_rounds='cosine')
  with pytest.raises(ValueError, match='rounds: 5 there, 7 here'):
    _check_same({'rounds': 7}, resume=True, rounds=5, local=local)


# -- a folder of its own


@pytest.mark.parametrize(
  ('place', 'name'),
  [
    ('pics', 'folder:pics'),
    ('pics/runs/a', 'folder:pics'),
    ('link/new', 'folder:pics'),
    ('pics', 'folder:pics/../link/'),
    ('tables', 'csv:tables'),
    ('tables', 'jsonl:tables/'),
    ('gs://b/pics/run', 'folder:gs://b/pics/'),
  ],
)
@pytest.mark.parametrize('resume', [False, True])
def test_data_are_no_place_for_a_run(
  tmp_path, monkeypatch, place, name, resume
):
  monkeypatch.chdir(tmp_path)
  for made in ('pics', 'tables'):
    (tmp_path / made).mkdir()
  (tmp_path / 'link').symlink_to('pics')
  e = config.Experiment()
  e.data.name = name
  with pytest.raises(
    ValueError, match=rf'workdir={place} must not be in data\.'
  ):
    loop.train(e, place, resume=resume)
  assert not list(tmp_path.glob('*/*'))


@pytest.mark.parametrize(
  ('place', 'name'),
  [
    ('pics2', 'folder:pics'),
    ('.', 'csv:tables'),
    ('tables/run', 'npz:tables'),
    ('tables', 'csv:tables/a.csv'),
    ('pics', 'folder:gs://b/pics'),
    ('pics', 'cifar10'),
    ('pics', 'folder:'),
    ('pics', 3),
  ],
)
def test_a_folder_beside_the_data(tmp_path, monkeypatch, place, name):
  monkeypatch.chdir(tmp_path)
  apart.check_data(place, name)


def test_a_module_of_the_users_must_be_what_it_was(tmp_path, monkeypatch):
  path = tmp_path / 'a_method_of_mine.py'
  path.write_text('RATE = 1\n')
  monkeypatch.syspath_prepend(tmp_path)
  importlib.import_module(path.stem)
  experiment = dataclasses.asdict(config.Experiment())
  own = {'experiment': experiment, 'content': {}, 'settings': {}}
  there = own | {'machine': identity.imported((path.stem, 'not_there'))}
  identity.check(there, dict(there), 'here')
  path.write_text('RATE = 2\n')
  now = own | {'machine': identity.imported((path.stem,))}
  with pytest.raises(ValueError, match=r'--inexact .*\n  module a_method_of_m'):
    identity.check(there, now, 'here')
  identity.check(there, now, 'here', inexact=True)

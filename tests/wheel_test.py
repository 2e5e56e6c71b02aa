"""The package as others install it: a wheel, away from this repository."""

import importlib.metadata
import json
import os
import pathlib
import re
import subprocess
import sys
import tomllib
import venv
import zipfile

import pytest
import tensorflow_datasets as tfds
import tiny_pictures
import tiny_sets

_ROOT = pathlib.Path(__file__).parents[1]
_PROJECT = tomllib.loads((_ROOT / 'pyproject.toml').read_text())
_PINS = (_ROOT / 'requirements.txt').read_text().splitlines()


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  """Builds it from a copy, which leaves nothing behind here."""
  folder = tmp_path_factory.mktemp('wheel')
  tree, out = folder / 'tree', folder / 'out'
  listed = subprocess.run(
    ['git', 'ls-files', '-co', '--exclude-standard'],
    cwd=_ROOT, capture_output=True, check=True, text=True,
  )  # fmt: skip
  for name in listed.stdout.splitlines():
    if (_ROOT / name).is_file():
      (tree / name).parent.mkdir(parents=True, exist_ok=True)
      (tree / name).write_bytes((_ROOT / name).read_bytes())
  _pip('wheel', '--no-build-isolation', '--wheel-dir', out, tree)
  (path,) = out.glob('fedjax_tune-*-py3-none-any.whl')
  return path


def _pip(*args):
  command = [sys.executable, '-m', 'pip', *map(str, args)]
  more = ['--no-deps', '--no-index', '--disable-pip-version-check', '--quiet']
  subprocess.run([*command, *more], check=True, capture_output=True)


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
  """An environment that has the wheel; all else it sees of this one."""
  place = tmp_path_factory.mktemp('venv') / 'venv'
  venv.create(place)
  python = place / 'bin' / 'python'
  (site,) = place.glob('lib/python*/site-packages')
  # Without the files by which this environment finds this repository.
  seen = [path for path in sys.path if path.endswith('site-packages')]
  (site / 'seen.pth').write_text('\n'.join(seen) + '\n')
  _pip('--python', python, 'install', wheel)
  return place / 'bin'


def _run(command, *args, cwd):
  env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
  done = subprocess.run(
    [command, *args],
    cwd=cwd, env=env, capture_output=True, text=True, check=False,
  )  # fmt: skip
  return done.returncode, done.stdout, done.stderr


def test_the_wheel_has_all_modules_and_no_common_name(wheel):
  with zipfile.ZipFile(wheel) as archive:
    names = set(archive.namelist())
  top = {name.partition('/')[0] for name in names}
  assert {n for n in top if not n.endswith('.dist-info')} == {'fedjax_tune'}
  for folder in ('fedjax_tune', 'launch', 'experiments'):
    for path in (_ROOT / folder).rglob('*.py'):
      place = path.relative_to(_ROOT).as_posix()
      own = place if folder == 'fedjax_tune' else f'fedjax_tune/{place}'
      assert own in names
  assert 'fedjax_tune/py.typed' in names


def test_ranges_hold_the_pins():
  """What is tested is one of what may be installed."""
  packaging = pytest.importorskip('packaging.requirements')
  project = _PROJECT['project']
  extra = project['optional-dependencies']['emoji']
  ranges = [*map(packaging.Requirement, project['dependencies'] + extra)]
  normal = lambda name: re.sub('[-_.]+', '-', name).lower()
  known = {normal(r.name): r.specifier for r in ranges}
  pins = [re.match(r'([\w.-]+)==([\w.]+)', line) for line in _PINS]
  found = [(normal(pin[1]), pin[2]) for pin in pins if pin]
  assert {name for name, _ in found} == known.keys()
  assert [(n, v) for n, v in found if v not in known[n]] == []


_EXPERIMENT = """
from fedjax_tune import config


def get_config():
  return config.Experiment(
    method='all_large',
    rounds=1,
    model=config.Model(weights='random:vit_test'),
    data=config.Data(name='tiny', data_dir={folder!r}, image_size=16),
    lora=config.Lora(rank=2, targets=('attn.q',)),
    clients=config.Clients(
      partition='iid', count=2, budgets=(), cohort='uniform', cohort_size=2
    ),
    local=config.Local(steps=1, batch_size=4),
  )
"""


@pytest.mark.slow
def test_it_trains_and_exports_elsewhere(installed, tmp_path):
  command = installed / 'fedjax-tune'
  colours = ('red', 'green', 'blue')
  rows = [
    {
      'image': tiny_pictures.jpeg(16, 16, colour=colours[i % 3]),
      'label': i % 3,
    }
    for i in range(24)
  ]
  features = {
    'image': tfds.features.Image(),
    'label': tfds.features.ClassLabel(names=['a', 'b', 'c']),
  }
  tiny_sets.write(tmp_path / 'data', features, {'train': rows, 'test': rows})
  text = _EXPERIMENT.format(folder=str(tmp_path / 'data'))
  (tmp_path / 'mine.py').write_text(text)
  status, out, err = _run(
    command, 'train', '--config=mine.py', '--workdir=run', cwd=tmp_path
  )
  assert (status, err) == (0, '')
  assert 'after 1 round;' in out
  status, _, err = _run(
    command, 'export', '--workdir=run', '--format=hf', '--out=out', cwd=tmp_path
  )
  assert (status, err) == (0, '')
  assert json.loads((tmp_path / 'out/config.json').read_text())
  # A sweep starts others of itself.
  status, out, _ = _run(
    command, 'sweep', '--config=mine.py', '--workdir=both',
    '--methods=all_large', cwd=tmp_path,
  )  # fmt: skip
  assert status == 0
  assert (tmp_path / 'both/all_large/seed0/summary.json').exists()


@pytest.mark.slow
def test_its_own_experiments_are_found(installed, tmp_path):
  """One that imports another; what it lacks is named as it is got here."""
  status, _, err = _run(
    installed / 'fedjax-tune', 'train', '--config=experiments/fedra_nico.py',
    '--workdir=run', '--config.data.data_dir=none',
    '--config.model.weights=random:vit_base', cwd=tmp_path,
  )  # fmt: skip
  assert status == 2
  assert '`fedjax-tune prepare --dataset=nico' in err


@pytest.mark.slow
def test_the_command_says_what_it_has(installed, tmp_path):
  command = installed / 'fedjax-tune'
  version = importlib.metadata.version('fedjax_tune')
  assert _run(command, '--version', cwd=tmp_path) == (
    0, f'fedjax-tune {version}\n', '',
  )  # fmt: skip
  status, out, _ = _run(command, cwd=tmp_path)
  assert status == 0
  assert re.findall(r'^  (\w+) ', out, re.MULTILINE) == [
    'prepare', 'inspect', 'train', 'sweep', 'deploy', 'export', 'bench',
  ]  # fmt: skip
  status, out, _ = _run(command, 'export', '--help', cwd=tmp_path)
  assert (status, '--workdir' in out) == (0, True)
  status, _, err = _run(command, 'tarin', cwd=tmp_path)
  assert status == 2
  assert err.startswith("error: command 'tarin' must be one of prepare, ")

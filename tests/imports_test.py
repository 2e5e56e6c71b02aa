"""Who may import whom: the layers of the package, and what it declares."""

import ast
from collections.abc import Callable, Iterator
import functools
from importlib import metadata
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

import fedjax_tune

_PUBLIC = fedjax_tune.__all__
_ROOT = pathlib.Path(__file__).parents[1]
# From bottom to top: a room imports from those before it only.
_ROOMS = (
  'typing',
  'commands',
  'endings',
  'files',
  'selection',
  'config',
  'report',
  'data',
  'models',
  'engine',
  'costs',
  'methods',
  'plugins',
  'training',
  'deploy',
  '__init__',
)
# folder -> what nothing in it imports
_FORBIDDEN = {
  'fedjax_tune': ('absl', 'experiments', 'launch', 'torch', 'transformers'),
  'experiments': ('absl', 'launch'),
} | {
  f'fedjax_tune/{room}': tuple(
    f'fedjax_tune.{name}' for name in (*_ROOMS[i + 1 :], *_PUBLIC)
  )
  for i, room in enumerate(_ROOMS[:-1])
}


def _imports(source: str) -> Iterator[str]:
  """Yields imported modules, and `module.name` of each imported name."""
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      # Only the commands know each other by their place.
      parts = [*(['launch'] if node.level else []), node.module]
      place = '.'.join(filter(None, parts))
      yield from (f'{place}.{alias.name}' for alias in node.names)


def _breaches(source: str, forbidden: tuple[str, ...]) -> list[str]:
  return [
    name
    for name in _imports(source)
    if any(f'{name}.'.startswith(f'{module}.') for module in forbidden)
  ]


def _files(place: str) -> list[pathlib.Path]:
  """Lists the files of a folder, or the one file of that name."""
  file = _ROOT / f'{place}.py'
  return [file] if file.exists() else sorted((_ROOT / place).rglob('*.py'))


def test_every_room_has_its_place():
  there = {path.stem for path in (_ROOT / 'fedjax_tune').iterdir()}
  assert there - {'__pycache__', 'py'} == set(_ROOMS)  # py.typed


def test_the_map_has_the_order():
  map_ = (_ROOT / 'WORKSPACE.md').read_text()
  listed = re.findall(r'^- `fedjax_tune/(\w+)', map_, re.MULTILINE)
  assert listed == [*reversed(_ROOMS[:-1])]


@pytest.mark.parametrize('folder', _FORBIDDEN)
def test_layers(folder):
  files = _files(folder)
  assert files
  found = {
    str(path.relative_to(_ROOT)): breaches
    for path in files
    if (breaches := _breaches(path.read_text(), _FORBIDDEN[folder]))
  }
  assert not found


@pytest.mark.parametrize(
  'source',
  [
    'import torch',
    'import torch.nn as nn',
    'from torch import nn',
    'def f():\n  from torch.nn import Linear',
  ],
)
def test_breach_is_seen(source):
  assert _breaches(source, ('torch',))


def test_a_room_above_is_seen():
  upward = 'from fedjax_tune.methods import METHODS'
  assert _breaches(upward, _FORBIDDEN['fedjax_tune/config'])
  assert not _breaches(upward, _FORBIDDEN['fedjax_tune/plugins'])
  lazy = 'from fedjax_tune import Experiment'
  assert _breaches(lazy, _FORBIDDEN['fedjax_tune/deploy'])


def test_similar_name_is_no_breach():
  assert not _breaches('import torchish\nfrom a import torch', ('torch',))


# -- what a run imports before its first round


def test_a_command_starts_without_what_it_may_not_need():
  """Seconds, and hundreds of megabytes; see the imports in functions."""
  slow = {
    'gguf', 'matplotlib', 'orbax', 'scipy', 'tensorflow_datasets', 'torch',
    'transformers',
  }  # fmt: skip
  program = 'import sys, launch.train; print(*sys.modules)'
  done = subprocess.run(
    [sys.executable, '-c', program], cwd=_ROOT, capture_output=True, check=True
  )
  imported = set(done.stdout.decode().split())
  assert 'fedjax_tune.training.loop' in imported
  assert not slow & imported


def test_a_command_starts_before_jax_computes():
  """Hosts can join only until then."""
  program = (
    'import launch.train; from jax._src import xla_bridge;'
    'assert not xla_bridge.backends_are_initialized()'
  )
  subprocess.run([sys.executable, '-c', program], cwd=_ROOT, check=True)


# -- what is imported is declared

_PROJECT = tomllib.loads((_ROOT / 'pyproject.toml').read_text())
_RUNTIME = (_ROOT / 'requirements.txt').read_text().splitlines()
_TEST = _PROJECT['project']['optional-dependencies']['test']
# `launch/peers/` has programs of these, which nothing here installs.
_PEERS = ('fedjax', 'flwr', 'launch.peers.torch_model', 'pfl', 'ray', 'torch')


def _normal(name: str) -> str:
  return re.sub('[-_.]+', '-', name).lower()


def _declared(lines: list[str]) -> set[str]:
  """Returns the normalised names of pinned distributions."""
  pins = [re.match(r'([\w.-]+)==', line) for line in lines]
  return {_normal(pin[1]) for pin in pins if pin}


# Reads all that is installed.
_installed = functools.cache(metadata.packages_distributions)


@functools.cache
def _distributions(module: str) -> list[str]:
  """Names what is installed and has a module; several may share `google`."""
  top, *rest = module.split('.')
  names = sorted(set(_installed().get(top, ())))
  if len(names) > 1 and rest:
    place = f'{top}/{rest[0]}'
    names = [name for name in names if _has(name, place)]
  return names or [top]


def _has(distribution: str, place: str) -> bool:
  files = metadata.files(distribution) or []
  return any(str(file).startswith((f'{place}/', f'{place}.')) for file in files)


def _foreign(source: str, own: set[str]) -> set[str]:
  """Returns what comes neither from here nor with Python."""
  known = own | sys.stdlib_module_names
  return {n for n in _imports(source) if n.split('.')[0] not in known}


def _undeclared(source: str, own: set[str], declared: set[str]) -> list[str]:
  return sorted(
    name
    for name in _foreign(source, own)
    if declared.isdisjoint(map(_normal, _distributions(name)))
  )


def _at_import(source: str) -> str:
  """Returns a module without what only its functions import."""
  tree = ast.parse(source)
  for node in ast.walk(tree):
    if isinstance(node, ast.FunctionDef):
      node.body = [ast.Pass()]
  return ast.unparse(tree)


_OWN = {'fedjax_tune', 'launch', 'experiments', 'tests'} | {
  path.stem for path in (_ROOT / 'tests').rglob('*.py')
}


def _all_undeclared(
  folder: str, declared: set[str], read: Callable[[str], str] = str
) -> dict[str, list[str]]:
  files = [
    path
    for path in sorted((_ROOT / folder).rglob('*.py'))
    if path.parent.name != 'peers'
  ]
  assert files
  sources = {str(path.relative_to(_ROOT)): path.read_text() for path in files}
  found = {
    name: _undeclared(read(source), _OWN, declared)
    for name, source in sources.items()
  }
  return {name: modules for name, modules in found.items() if modules}


@pytest.mark.parametrize('folder', ['fedjax_tune', 'experiments'])
def test_imports_are_declared(folder):
  assert not _all_undeclared(folder, _declared(_RUNTIME))


def test_imports_of_commands_are_declared():
  """The benchmark compares with torch and peft, which the tests install."""
  runtime = _declared(_RUNTIME)
  assert not _all_undeclared('launch', runtime, _at_import)
  assert not _all_undeclared('launch', runtime | _declared(_TEST))


def test_only_peers_import_the_frameworks_of_peers():
  """Each of them is a program of its own; the others need none of it."""
  files = [p for place in ('launch', 'fedjax_tune') for p in _files(place)]
  found = {
    path.name: names
    for path in files
    if path.parent.name != 'peers'
    and (names := _breaches(_at_import(path.read_text()), _PEERS))
  }
  assert not found


def test_imports_of_tests_are_declared():
  assert not _all_undeclared('tests', _declared(_RUNTIME) | _declared(_TEST))


def test_pins_are_what_is_installed():
  """Of the lines for every Python; jax and flax differ between versions."""
  for line in _RUNTIME + _TEST:
    if pin := re.fullmatch(r'([\w.-]+)==(\S+)', line):
      installed = metadata.version(pin[1]).partition('+')[0]
      assert installed == pin[2], line


@pytest.mark.parametrize(
  ('source', 'wanted'),
  [
    ('import scipy.stats', ['scipy.stats']),
    ('from scipy import stats', ['scipy.stats']),
    ('from google.protobuf import message', ['google.protobuf.message']),
    ('import numpy as np', []),
    ('from fedjax_tune import config\nimport os.path', []),
    ('import not_installed', ['not_installed']),
  ],
)
def test_an_undeclared_import_is_seen(source, wanted):
  declared = {'numpy', 'googleapis-common-protos'}
  assert _undeclared(source, {'fedjax_tune'}, declared) == wanted


def test_imports_of_functions_are_told_apart():
  source = 'import a\ndef f():\n  import b\nclass C:\n  def g(self): import c'
  assert list(_imports(_at_import(source))) == ['a']


def test_pre_commit_has_the_pinned_ruff():
  text = (_ROOT / '.pre-commit-config.yaml').read_text()
  (rev,) = re.findall(r'ruff-pre-commit\n +rev: v(\S+)', text)
  assert f'ruff=={rev}' in _TEST

"""What the documents show runs, and what they name is there."""

import ast
import pathlib
import re

import numpy as np
import pytest

from fedjax_tune import config, plugins
from fedjax_tune.config import validate
from fedjax_tune.data import builders
from fedjax_tune.methods import METHODS
from fedjax_tune.models import packaged
from fedjax_tune.training import loop

_ROOT = pathlib.Path(__file__).parents[1]
_README = (_ROOT / 'README.md').read_text()
_BLOCKS = re.findall('```python\n(.*?)```', _README, re.DOTALL)
# The last two are run by api_test.py.
_EXPERIMENT, _ARRAYS, _LIBRARY, _, _ = _BLOCKS


def test_own_experiment_is_valid():
  names = {}
  exec(_EXPERIMENT, names)
  validate.validate(names['get_config'](), plugins.choices())


def test_library_examples(monkeypatch):
  started = []
  run = lambda *args, **options: started.append((*args, options))
  monkeypatch.setattr(loop, 'train', run)
  images, labels = np.zeros((9, 42, 42, 3), np.uint8), np.arange(9) % 3
  names = {
    'images': images,
    'labels': labels,
    'test_images': images,
    'test_labels': labels,
  }
  exec(_ARRAYS, names)
  ((experiment, workdir, options),) = started
  validate.validate(experiment, plugins.choices())
  assert workdir == 'runs/own'
  assert len(options['partition']) == experiment.clients.count
  exec(_LIBRARY, names)
  assert names['local']['lora_a'].shape == (3, 384, 8)
  held = np.asarray(names['mean']['lora_a'])[:, 0, 0]
  np.testing.assert_array_equal(np.flatnonzero(held), [0, 2, 4, 9, 11])
  np.testing.assert_array_equal(names['mean']['head'], 1)


def test_readme_lists_the_methods():
  listed = re.findall(r'^\| `(\w+)` \|', _README, re.MULTILINE)
  assert sorted(listed) == sorted(METHODS)


@pytest.mark.parametrize(
  ('section', 'names'),
  [
    (config.Model, packaged.PACKAGED),
    (config.Data, (*builders.OWN, *builders.DOMAINS)),
    (config.Clients, plugins.choices()['clients.partition']),
    (config.Local, plugins.choices()['local.optimizer']),
    (config.Local, plugins.choices()['local.schedule']),
    (config.Server, plugins.choices()['server.optimizer']),
  ],
)
def test_docstrings_name_what_is_registered(section, names):
  assert [name for name in names if f"'{name}'" not in section.__doc__] == []


@pytest.mark.parametrize('folder', ['fedjax_tune', 'launch'])
def test_map_names_every_module(folder):
  workspace = (_ROOT / 'WORKSPACE.md').read_text()
  for path in (_ROOT / folder).rglob('*.py'):
    if path.name != '__init__.py':
      assert f'`{path.name}`' in workspace or (
        f'{path.relative_to(_ROOT)}`' in workspace
      )


_PAGE = (_ROOT / 'experiments' / 'reliability.md').read_text()


def _rows():
  """Yields the cells of each numbered row of the page's table."""
  for line in _PAGE.splitlines():
    if re.match(r'\| \d', line):
      yield [cell.strip() for cell in line.strip('|').split('|')]


def test_every_kind_of_fault_has_siblings_and_tests():
  rows = list(_rows())
  assert [row[0] for row in rows] == [str(i) for i in range(1, 27)]
  for number, _, now, siblings, tests in rows:
    assert now
    assert len(re.split('[;:,]', siblings)) >= 3, number
    assert len(re.findall(r'`tests/\S+::test_\w+`', tests)) >= 2, number


def test_the_tests_of_each_fault_exist():
  named = re.findall(r'`(tests/[\w/]+\.py)::(\w+)`', _PAGE)
  assert len(named) == _PAGE.count('::')
  for path in {path for path, _ in named}:
    tree = ast.parse((_ROOT / path).read_text())
    there = {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
    wanted = {name for file, name in named if file == path}
    assert wanted <= there, f'{path}: {sorted(wanted - there)}'

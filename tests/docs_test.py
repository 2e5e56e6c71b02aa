"""What the documents show runs, and the map names every module."""

import pathlib
import re

import numpy as np
import pytest

from fedjax_tune import config, train, validate
from fedjax_tune.methods import BUILDERS

_ROOT = pathlib.Path(__file__).parents[1]
_README = (_ROOT / 'README.md').read_text()
_EXPERIMENT, _LIBRARY = re.findall('```python\n(.*?)```', _README, re.DOTALL)


def test_own_experiment_is_valid():
  names = {}
  exec(_EXPERIMENT, names)
  validate.validate(names['get_config'](), BUILDERS)


def test_library_example(monkeypatch):
  started = []
  monkeypatch.setattr(train, 'train', lambda *args: started.append(args))
  names = {}
  exec(_LIBRARY, names)
  assert names['local']['lora_a'].shape == (3, 384, 8)
  held = np.asarray(names['mean']['lora_a'])[:, 0, 0]
  np.testing.assert_array_equal(np.flatnonzero(held), [0, 2, 4, 9, 11])
  np.testing.assert_array_equal(names['mean']['head'], 1)
  assert started == [(config.Experiment(rounds=2), 'runs/library')]


def test_readme_lists_the_methods():
  listed = re.findall(r'^\| `(\w+)` \|', _README, re.MULTILINE)
  assert sorted(listed) == sorted(BUILDERS)


@pytest.mark.parametrize('folder', ['fedjax_tune', 'launch'])
def test_map_names_every_module(folder):
  workspace = (_ROOT / 'WORKSPACE.md').read_text()
  for path in (_ROOT / folder).rglob('*.py'):
    if path.name != '__init__.py':
      assert f'`{path.name}`' in workspace or (
        f'{path.relative_to(_ROOT)}`' in workspace
      )

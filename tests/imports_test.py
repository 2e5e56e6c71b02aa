"""Who may import whom: the layers of the package."""

import ast
from collections.abc import Iterator
import pathlib

import pytest

_ROOT = pathlib.Path(__file__).parents[1]
# folder -> what nothing in it imports
_FORBIDDEN = {
  'fedjax_tune': ('absl', 'experiments', 'launch', 'torch', 'transformers'),
  'fedjax_tune/engine': ('fedjax_tune.methods', 'fedjax_tune.report'),
  'fedjax_tune/report': ('fedjax_tune.engine', 'fedjax_tune.methods'),
  'fedjax_tune/models': ('fedjax_tune.engine', 'fedjax_tune.methods'),
  'experiments': ('absl', 'launch'),
}


def _imports(source: str) -> Iterator[str]:
  """Yields imported modules, and `module.name` of each imported name."""
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def _breaches(source: str, forbidden: tuple[str, ...]) -> list[str]:
  return [
    name
    for name in _imports(source)
    if any(f'{name}.'.startswith(f'{module}.') for module in forbidden)
  ]


@pytest.mark.parametrize('folder', _FORBIDDEN)
def test_layers(folder):
  files = sorted((_ROOT / folder).rglob('*.py'))
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


def test_similar_name_is_no_breach():
  assert not _breaches('import torchish\nfrom a import torch', ('torch',))

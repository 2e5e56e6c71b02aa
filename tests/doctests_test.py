"""The examples in docstrings give what they show."""

import doctest
import importlib
import pathlib

import pytest

_ROOT = pathlib.Path(__file__).parents[1]


def _prompts() -> dict[str, int]:
  """Returns how many prompts there are in each module that has any."""
  found = {}
  for folder in ('fedjax_tune', 'launch'):
    for path in sorted((_ROOT / folder).rglob('*.py')):
      if count := path.read_text().count('>>> '):
        module = '.'.join(path.relative_to(_ROOT).with_suffix('').parts)
        found[module] = count
  return found


_PROMPTS = _prompts()


@pytest.mark.parametrize('name', _PROMPTS)
def test_docstrings(name):
  failed, tried = doctest.testmod(importlib.import_module(name))
  assert not failed
  # None lies where doctest doesn't look.
  assert tried == _PROMPTS[name]


def test_there_are_examples():
  assert sum(_PROMPTS.values()) >= 7

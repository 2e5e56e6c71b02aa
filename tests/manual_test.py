"""What --help and --print_config show is whole and true."""

import ast
import pathlib
import re

import pytest

from fedjax_tune import config
from fedjax_tune.config import fields
from fedjax_tune.config.field_rules import RULES
from fedjax_tune.methods import METHODS
from launch import manual

_README = pathlib.Path(__file__).parents[1] / 'README.md'


@pytest.mark.parametrize('field', [*fields.fields()], ids=lambda f: f.path)
def test_every_field_is_documented(field):
  assert field.text.endswith(('.', ')')), field
  assert field.path in RULES


def test_fields_are_all_that_have_rules():
  assert {f.path for f in fields.fields()} == set(RULES)


def test_every_field_and_method_is_listed():
  lines = manual.options().splitlines()
  for field in fields.fields():
    assert f'  {field.path}={field.default!r}' in lines
  assert set(METHODS) <= {line.strip() for line in lines}
  told = [line for line in lines if line.startswith('      ')]
  assert max(map(len, told)) <= 80


def test_a_word_finds_fields_and_methods():
  lines = manual.about('Heterotune').splitlines()
  assert lines[0].startswith('[heterotune] ')
  named = [line for line in lines if re.match(r'  \w', line)]
  assert '  heterotune' in named
  assert all('heterotune' in line for line in named)
  with pytest.raises(ValueError, match=r'--help=learning_rate .*local\.lr'):
    manual.about('learning_rate')


def test_values_that_the_text_lacks_are_listed():
  text = manual.options()
  assert "of 'auto', 'attn.q', 'attn.k'" in text
  assert "of 'float32'" not in text


def test_sources_are_those_of_the_readme():
  rows = re.findall(
    r'^\| `(\w+)` \|.*\| ([^|]+) \|$', _README.read_text(), re.M
  )
  assert dict(rows) == {name: m.source for name, m in METHODS.items()}


def test_written_values_read_back():
  experiment = config.Experiment(rounds=7)
  experiment.clients.budgets, experiment.clients.count = (3, 2), 2
  usual = {'clients.budgets': (4, 1), 'clients.count': 2}
  lines = manual.written(experiment, usual).splitlines()
  values = dict(line.split('  # ')[0].split('=', 1) for line in lines)
  found = {name: ast.literal_eval(value) for name, value in values.items()}
  assert found == {f.path: f.default for f in fields.fields(experiment)}
  assert [line for line in lines if '#' in line] == [
    'rounds=7  # not 100',
    'clients.budgets=(3, 2)  # not (4, 1)',
  ]

import io
import re

import pytest
from rich import console as rich_console

from fedjax_tune.costs import table
from fedjax_tune.report import tables


def cost(**changes):
  fields = {
    'name': '12 layers',
    'clients': 5,
    'layers': 12,
    'params_held': 21_813_888,
    'params_trainable': 184_328,
    'trainable_percent': 0.845,
    'uplink_bytes': 737_312,
    'downlink_bytes': 737_312,
    'flops_per_step': 123_400_000_000,
    'peak_memory_bytes': 3 * 2**29,
  }
  return table.ClassCost(**(fields | changes))


def summary(accuracy, **changes):
  fields = {
    'method': 'fedra',
    'seed': 0,
    'rounds': 10,
    'accuracy': accuracy,
    'accuracy_by_domain': {'noto': accuracy, 'twemoji': accuracy - 0.1},
    'client_steps_per_s': 40.0,
    'uplink_bytes': 50 * 2**20,
    'downlink_bytes': 20 * 2**20,
    'train_flops': 2.5e12,
  }
  return fields | changes


def cells(markdown):
  rows = [line.strip('|').split('|') for line in markdown.splitlines()]
  return [[cell.strip() for cell in row] for row in rows]


def rendered(table, width=80):
  """The table on a terminal, of the usual width by default."""
  shown = io.StringIO()
  rich_console.Console(file=shown, width=width).print(table)
  return shown.getvalue()


def test_human_units():
  assert tables.human_bytes(2**20 - 1) == '1 MiB'
  assert tables.human_bytes(512) == '512 B'
  assert tables.human_bytes(1.25 * 2**20) == '1.25 MiB'
  assert tables.human_flops(999_960_000) == '1 GFLOP'
  assert tables.human_count(184_328) == '184 k'
  assert tables.human_count(7) == '7'


def test_cost_in_both_forms():
  rows = [cost(), cost(name='3 layers', layers=3)]
  _, _, large, small = cells(table.cost_markdown(rows))
  assert large == [
    '12 layers', '5', '21.8 M', '184 k', '0.84', '720 KiB', '720 KiB',
    '123 GFLOP', '1.5 GiB',
  ]  # fmt: skip
  assert small[0] == '3 layers'
  text = rendered(table.cost_table(rows))
  assert all(cell in text for cell in (*large, *small))
  assert text.count('720 KiB') == 2
  text = rendered(table.cost_table([cost(downlink_bytes=2**20)]))
  assert '720 KiB' in text
  assert '1 MiB' in text


def test_costs_of_a_long_name_fit_a_terminal():
  rows = [cost(name='dinov2_vits14_d12, 12 layers', clients=100)]
  assert '1.5 GiB' in rendered(table.cost_table(rows))


@pytest.mark.parametrize('width', [30, 40, 60, 80, 100])
def test_numbers_are_whole_at_any_width(width):
  rows = [cost(), cost(name='3 layers', layers=3, params_held=5_630_000)]
  text = rendered(table.cost_table(rows), width)
  numbers = ('21.8 M', '5.63 M', '184 k', '0.84', '720 KiB', '123 GFLOP')
  assert all(number in text for number in numbers)
  assert '…' not in text
  runs = [summary(0.5), summary(0.6, seed=1)]
  text = rendered(tables.comparison_table(runs), width)
  assert '55.0 ± 7.1' in text
  assert '…' not in text


def test_comparison_of_seeds_and_methods():
  runs = [summary(0.5), summary(0.6, seed=1), summary(0.3, method='all_small')]
  header, _, fedra, small = cells(tables.comparison_markdown(runs))
  assert header[:5] == ['method', 'accuracy %', 'noto', 'twemoji', 'seeds']
  # Deviation of a sample: |0.6 - 0.5| / sqrt(2).
  assert fedra == [
    'fedra', '55.0 ± 7.1', '55.0', '45.0', '2', '5', '2', '2.5', '40',
  ]  # fmt: skip
  assert small[:5] == ['all_small', '30.0', '30.0', '20.0', '1']
  text = rendered(tables.comparison_table(runs))
  assert all(cell in text for cell in (*fedra, *small))


def test_labels_part_the_variants_of_a_method():
  runs = [summary(0.5, label='a'), summary(0.6, label='b')]
  _, _, *rows = cells(tables.comparison_markdown(runs))
  assert [row[:2] for row in rows] == [['a', '50.0'], ['b', '60.0']]


def test_tables_name_what_was_measured():
  runs = [
    summary(0.5, metric='exact_match'),
    summary(0.6, metric='exact_match'),
  ]
  header, *_ = cells(tables.comparison_markdown(runs))
  assert header[1] == 'exact match %'
  assert 'Exact match (%)' in rendered(tables.comparison_table(runs))
  assert tables.measured([summary(0.5), *runs]) == 'score'


def test_a_run_that_diverged_has_no_accuracy():
  run = summary(0.5) | {'accuracy': None, 'accuracy_by_domain': {'noto': None}}
  _, _, row = cells(tables.comparison_markdown([run]))
  assert row[1:3] == ['-', '-']


def test_names_of_domains_are_no_markup():
  run = summary(0.5) | {'accuracy_by_domain': {'[red]a|b[/red]\x1b': 0.25}}
  header, _, row = tables.comparison_markdown([run]).splitlines()
  unescaped = r'(?<!\\)\|'
  assert len(re.split(unescaped, header)) == len(re.split(unescaped, row))
  text = rendered(tables.comparison_table([run]))
  assert '[red]a|b[/red]' in text
  assert '\x1b' not in text

"""What it takes to become as good as another, by hand."""

import pytest

from fedjax_tune.report import targets


def _rows(accuracies, seconds):
  return [
    {
      'round': i,
      'cost/uplink_bytes': 10**9 * (i + 1),
      'cost/downlink_bytes': 10**9 * (i + 1),
      'cost/train_flops': 10**12 * (i + 1),
      'time/simulated_s': seconds * (i + 1),
    }
    | ({} if a is None else {'eval/accuracy': a})
    for i, a in enumerate(accuracies)
  ]


def test_spent_until_is_the_first_time():
  rows = _rows([None, 0.5, None, 0.7, 0.6], seconds=100.0)
  assert targets.spent_until(rows, 0.6) == targets.Spent(
    4, 8 * 10**9, 4 * 10**12, 400.0
  )
  assert targets.spent_until(rows, 0.8) is None


def test_table_by_hand():
  runs = {
    'all_large': {
      0: _rows([0.2, 0.6, 0.99, 1.0], seconds=3600.0),
      1: _rows([0.2, 0.3, 0.4, 0.5], seconds=3600.0),
    },
    # Seed 0 gets there in one round, seed 1 never; seed 7 has no baseline.
    'raffm': {
      0: _rows([0.98, 0.1, 0.1, 0.1], seconds=1800.0),
      1: _rows([0.1] * 4, seconds=1800.0),
      7: _rows([1.0] * 4, seconds=1.0),
    },
    'fjord': {0: _rows([0.1] * 4, seconds=1.0)},
  }
  lines = targets.target_markdown(runs, 'all_large').splitlines()
  cells = [[c.strip() for c in line.strip('|').split('|')] for line in lines]
  assert cells[0][:3] == ['method', 'seeds there', 'rounds']
  # The baseline meets 98 % of its own end in rounds 3 and 4.
  assert cells[2] == ['all_large', '2 of 2', '3.5', '7', '3.5', '3.5', '1']
  assert cells[3] == ['raffm', '1 of 2', '1', '2', '1', '0.5', '6']
  assert cells[4] == ['fjord', '0 of 1', '-', '-', '-', '-', '-']


def test_without_devices_there_is_no_time():
  runs = {'all_large': {0: _rows([0.5, 0.6], seconds=0.0)}}
  line = targets.target_markdown(runs, 'all_large').splitlines()[2]
  assert [c.strip() for c in line.strip('|').split('|')][-2:] == ['-', '-']


@pytest.mark.parametrize('end', [None, 0.0, -0.1])
def test_a_baseline_that_ends_with_nothing_is_no_target(end):
  runs = {
    'all_large': {0: _rows([0.5, end], 1.0), 1: _rows([0.1, 0.5], 1.0)},
    'raffm': {0: _rows([None, 0.0], 1.0), 1: _rows([None, 0.6], 1.0)},
  }
  runs['all_large'][0][-1]['eval/accuracy'] = end
  lines = targets.target_markdown(runs, 'all_large').splitlines()[2:]
  cells = [[c.strip() for c in line.strip('|').split('|')] for line in lines]
  assert [row[:3] for row in cells] == [
    ['all_large', '1 of 1', '2'],
    ['raffm', '1 of 1', '2'],
  ]

"""Where the time of a run goes, by a clock of the test's own."""

import math

import jax
import jax.numpy as jnp
import pytest

from fedjax_tune.training import clock


class _Time:
  """A clock that stands still unless it is told."""

  def __init__(self):
    self.now = 0.0

  def __call__(self):
    return self.now

  def pass_(self, seconds):
    self.now += seconds


@pytest.fixture
def time():
  return _Time()


def _process(rounds, time):
  """Returns the rows of a process; every second round evaluates."""
  watch, rows = clock.Clock(time), []
  time.pass_(3)
  with watch.section('compile'):
    time.pass_(8)
  for rnd in rounds:
    with watch.section('training'):
      time.pass_(10)
    if rnd % 2:
      with watch.section('evaluation'):
        time.pass_(4)
        with watch.section('compile'):
          time.pass_(1)
    rows.append(watch.lap())
    with watch.section('checkpoint'):
      time.pass_(2)
  return rows


_NONE = {
  f'time/{name}_s': 0
  for name in (
    'training',
    'evaluation',
    'compile',
    'data',
    'checkpoint',
    'other',
  )
}


def test_rows_have_what_happened_since_the_row_before(time):
  first, second = _process(range(2), time)
  assert first == _NONE | {
    'time/compile_s': 8,
    'time/training_s': 10,
    'time/other_s': 3,
  }
  assert second == _NONE | {
    'time/checkpoint_s': 2,
    'time/training_s': 10,
    'time/evaluation_s': 4,
    'time/compile_s': 1,
  }


def test_what_processes_spent_adds_up(time):
  rows = _process(range(2), time)
  alone, _ = clock.shares(rows)
  assert alone == 21 + 17
  rows += _process(range(2, 4), time)
  total, shares = clock.shares([{'time/round_s': 5.0}, *rows])
  assert total == 2 * alone
  assert math.fsum(shares.values()) == pytest.approx(1)
  assert {name: share * total for name, share in shares.items()} == (
    pytest.approx(
      {
        'training': 40,
        'evaluation': 8,
        'compile': 18,
        'checkpoint': 4,
        'other': 6,
      }
    )
  )
  assert clock.describe(shares) == (
    'training 53 %, compiling 24 %, evaluation 11 %, checkpoints 5 %, other 8 %'
  )


def test_rows_of_older_runs_tell_nothing():
  assert clock.shares([{'time/round_s': 5.0}]) == (0, {})


def test_waiting_counts_as_data(time):
  watch = clock.Clock(time)

  def items():
    for item in 'ab':
      time.pass_(5)
      yield item
    time.pass_(1)

  seen = []
  for item in watch.waits(items()):
    time.pass_(2)
    seen.append(item)
  assert seen == ['a', 'b']
  assert watch.lap() == _NONE | {'time/data_s': 11, 'time/other_s': 4}


def test_an_error_ends_its_section(time):
  watch = clock.Clock(time)

  def fail():
    with watch.section('evaluation'):
      time.pass_(3)
      raise KeyError

  with pytest.raises(KeyError):
    fail()
  time.pass_(1)
  assert watch.lap() == _NONE | {'time/evaluation_s': 3, 'time/other_s': 1}


def test_what_compiles_within_a_section_is_no_part_of_it():
  with clock.Clock() as watch:
    with watch.section('evaluation'):
      jax.jit(lambda x: jnp.cos(x) @ x)(jnp.ones((7, 7)))
    heard = watch.lap()
    assert heard['time/compile_s'] > 0
    assert heard['time/evaluation_s'] > 0
  jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((7, 7)))
  assert watch.lap()['time/compile_s'] == 0

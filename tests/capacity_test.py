import pytest
import tiny

from fedjax_tune import capacity


def planner(**changes):
  return tiny.run(tiny.experiment(**changes)).planner


def test_what_fits_passes():
  capacity.check_rounds(planner())


def test_batches_of_two_rounds_must_fit():
  made = planner()
  pixels = tiny.STACK_SIZE**2 * 3
  needed = 2 * 4 * 2 * 4 * pixels  # Rounds, clients, steps, examples.
  capacity.check_rounds(made, memory=needed)
  with pytest.raises(ValueError, match=r'local.batch_size=4 does not fit'):
    capacity.check_rounds(made, memory=needed - 1)


def test_this_machine_has_less_than_that():
  made = planner(local={'batch_size': 10**6, 'steps': 10**5})
  with pytest.raises(ValueError, match=r'local.batch_size=1000000 .* has \d'):
    capacity.check_rounds(made)


def test_a_program_must_fit():
  capacity.check_program('6 layers', 2**30, memory=2**30)
  with pytest.raises(ValueError, match=r'6 layers does not fit: .* 2.0 GiB'):
    capacity.check_program('6 layers', 2**31, memory=2**30)

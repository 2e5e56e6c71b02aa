import io

import pytest
from rich import console as rich_console

from fedjax_tune.report.progress import RoundProgress, waiting


def show(num_rounds, seconds, start_round=0, terminal=False, rejected=()):
  """What a run shows whose rounds take `seconds` each."""
  clock, shown = [0.0], io.StringIO()
  console = rich_console.Console(
    file=shown,
    width=80,
    force_terminal=terminal,
    force_interactive=terminal,
    get_time=lambda: clock[0],
  )
  with RoundProgress(num_rounds, start_round, 'fedra', console) as progress:
    for rnd in range(start_round, num_rounds):
      clock[0] += seconds
      accuracy = 0.25 if rnd == start_round else None
      progress.advance(
        loss=1.5,
        client_steps_per_s=40.0,
        score=accuracy,
        rejected=rejected,
      )
  return shown.getvalue()


@pytest.mark.parametrize(
  ('num_rounds', 'seconds', 'lines'),
  [
    (3, 0.1, 3),  # Fewer rounds than ten: one line each.
    (100, 0.1, 11),  # Fast: the first round and each tenth.
    (50, 4.0, 10 + 11),  # Slow: every ten seconds besides.
  ],
)
def test_lines_without_a_terminal(num_rounds, seconds, lines):
  shown = show(num_rounds, seconds).splitlines()
  assert len(shown) >= lines if seconds > 1 else len(shown) == lines
  assert f'round {num_rounds}/{num_rounds}' in shown[-1]


def test_a_line_holds_everything_and_no_control_characters():
  shown = show(4, 60.0)
  assert '\x1b' not in shown
  assert shown.splitlines()[1] == (
    'fedra  round 2/4   loss 1.5000   accuracy 25.0%   40.0 client-steps/s'
    '   0:02:00 elapsed, 0:02:00 left'
  )


def test_resumed_run_counts_from_where_it_was():
  shown = show(10, 60.0, start_round=8).splitlines()
  assert [line.split()[2] for line in shown] == ['9/10', '10/10']


def test_a_terminal_gets_bar_and_numbers():
  shown = show(4, 60.0, terminal=True)
  for part in ('━', '4/4', 'loss 1.5000', 'accuracy 25.0%', '40.0 client'):
    assert part in shown


def test_rejects_a_start_beyond_the_end():
  with pytest.raises(ValueError, match=r'start_round=5 .*num_rounds=4'):
    RoundProgress(4, start_round=5)


def test_rejected_clients_are_named_once_a_line():
  shown = show(100, 0.1, rejected=(7, 3)).splitlines()
  assert '40.0 client-steps/s   rejected clients 3, 7   ' in shown[0]
  # The nine rounds before the tenth's line had none.
  assert 'rejected clients 3, 7 (18 times)   ' in shown[1]
  assert 'rejected' not in show(4, 60.0)
  shown = show(4, 60.0, terminal=True, rejected=[5])
  assert 'rejected client 5' in shown
  assert 'times' not in shown
  many = show(1, 60.0, rejected=range(20))
  assert 'rejected clients 0, 1, 2, 3, 4, 5, 6, 7, ...' in many


def test_no_loss_is_no_number():
  shown = io.StringIO()
  console = rich_console.Console(file=shown, width=80)
  with RoundProgress(1, console=console) as progress:
    progress.advance(loss=float('nan'), client_steps_per_s=1, rejected=[0])
  assert 'loss -   1.0 client-steps/s   rejected client 0' in shown.getvalue()


def test_what_takes_a_while_is_told_without_a_terminal():
  shown = io.StringIO()
  with waiting(rich_console.Console(file=shown), 'Compiling'):
    assert shown.getvalue() == 'Compiling ...\n'

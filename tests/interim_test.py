"""A run that is not finished has its table, and figures that cost little."""

import types
from typing import Any

from rich import console as rich_console

from fedjax_tune import config
from fedjax_tune.report import writer
from fedjax_tune.training import interim, loop


class _Time:
  """A clock, on which each drawing takes some seconds."""

  def __init__(self, drawing_s):
    self.now, self.drawing_s, self.drawn = 0.0, drawing_s, []

  def __call__(self):
    return self.now

  def draw(self):
    self.drawn.append(self.now)
    self.now += self.drawing_s


def _domains(a, b):
  return {'eval/accuracy/a': a, 'eval/accuracy/b': b}


def _row(accuracy=None, **more):
  costs = ('cost/uplink_bytes', 'cost/downlink_bytes', 'cost/train_flops')
  row = {'train/loss': 1.5, **dict.fromkeys(costs, 2048), **more}
  return row if accuracy is None else row | {'eval/accuracy': accuracy}


def _interim(folder, time, rows='', **more):
  e = config.Experiment(rounds=40)
  return interim.Interim(
    str(folder), e, rows, 'accuracy', time.draw, time, **more
  )


def test_the_table_has_every_evaluation(tmp_path):
  kept = writer.Rows()
  kept.write(0, _row(0.25, **_domains(0.5, 0)))
  found = _interim(tmp_path, _Time(0.1), kept.rows)
  found.write(1, _row())
  text = (tmp_path / 'accuracy.md').read_text()
  assert text.startswith('fedra seed 0, 1 of 40 rounds')
  found.write(2, _row(1 / 3, **_domains(0.75, 0)))
  lines = (tmp_path / 'accuracy.md').read_text().splitlines()
  assert lines[0] == 'fedra seed 0, 3 of 40 rounds'
  cells = [[c.strip() for c in line.split('|')[1:-1]] for line in lines[2:]]
  assert cells[0] == [
    'round', 'accuracy %', 'a', 'b', 'train loss', 'up', 'down', 'training'
  ]  # fmt: skip
  assert [row[:5] for row in cells[2:]] == [
    ['1', '25.0', '50.0', '0.0', '1.5'],
    ['3', '33.3', '75.0', '0.0', '1.5'],
  ]


def test_the_table_begins_before_the_first_round(tmp_path):
  time = _Time(0.1)
  start = [{'round': -1, 'eval/accuracy': 0.125}]
  found = _interim(tmp_path, time, start=start)
  lines = (tmp_path / 'accuracy.md').read_text().splitlines()
  assert lines[0] == 'fedra seed 0, 0 of 40 rounds'
  cells = [cell.strip() for cell in lines[-1].split('|')[1:-1]]
  assert cells == ['0', '12.5', '-', '0 B', '0 B', '0 FLOP']
  # There is no round to draw yet.
  found.draw()
  assert not time.drawn
  found.write(0, _row(0.25))
  found.draw()
  assert time.drawn


def test_the_start_is_shown(tmp_path):
  shown = rich_console.Console(record=True, width=80)
  run: Any = types.SimpleNamespace(
    judge=lambda *_: {'eval/accuracy': 0.125},
    engine=types.SimpleNamespace(init=lambda: None),
    setup=types.SimpleNamespace(
      experiment=config.Experiment(rounds=40),
      train=types.SimpleNamespace(
        task=types.SimpleNamespace(primary='exact_match')
      ),
    ),
  )
  loop._judge_start(run, str(tmp_path), shown, anew=True)
  # What is there already is not judged again.
  loop._judge_start(run, str(tmp_path), shown, anew=False)
  assert shown.export_text() == 'round 0/40   exact match 12.5%\n'


def test_a_mean_over_clients_is_told(tmp_path):
  found = _interim(tmp_path, _Time(0.1))
  found.write(0, _row(0.25))
  assert 'clients' not in (tmp_path / 'accuracy.md').read_text()
  found.write(1, _row(0.5, **{'eval/worst_client/accuracy': 0.25}))
  text = (tmp_path / 'accuracy.md').read_text()
  assert text.endswith(
    "mean over clients, each one's own model on data like its own.\n"
  )


def test_figures_take_a_hundredth_of_the_time(tmp_path):
  time = _Time(drawing_s=2.0)
  found = _interim(tmp_path, time)
  for rnd in range(40):
    time.now += 25.0
    found.write(rnd, _row(0.5))
  # The first is expected to take a second; then it is known.
  assert time.drawn[0] == 100.0
  assert 2.0 * len(time.drawn) <= 0.01 * time.now
  assert len(time.drawn) == 5


def test_what_is_asked_for_is_drawn_at_once(tmp_path):
  time = _Time(drawing_s=2.0)
  found = _interim(tmp_path, time)
  found.draw()
  assert time.drawn == []  # There is nothing to draw.
  found.write(0, _row(0.5))
  found.draw()
  assert time.drawn == [0.0]


def test_one_domain_is_the_mean(tmp_path):
  found = _interim(tmp_path, _Time(0.1))
  found.write(0, _row(0.25, **{'eval/accuracy/a': 0.25}))
  header = (tmp_path / 'accuracy.md').read_text().splitlines()[2]
  assert [c.strip() for c in header.split('|')[1:4]] == [
    'round',
    'accuracy %',
    'train loss',
  ]

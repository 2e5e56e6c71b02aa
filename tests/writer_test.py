import json
import os

import numpy as np
import pytest
import tiny_events

from fedjax_tune import endings
from fedjax_tune.report import writer


def write(workdir, rounds, rows=''):
  with writer.MetricsWriter(workdir, rows) as made:
    for rnd in rounds:
      layers = np.array([rnd, 2])
      made.write(rnd, {'train/loss': 1 / (rnd + 1), 'coverage/layers': layers})
  return (workdir / 'metrics.jsonl').read_bytes()


def test_resumed_equals_uninterrupted(tmp_path):
  whole = write(tmp_path / 'whole', range(6))
  # Killed in round 5, whose line is torn; the last checkpoint was round 3's.
  write(tmp_path / 'resumed', range(5))
  with (tmp_path / 'resumed' / 'metrics.jsonl').open('a') as file:
    file.write('{"round": 5, "train/l')
  rows = ''.join(whole.decode().splitlines(keepends=True)[:3])
  assert write(tmp_path / 'resumed', range(3, 6), rows) == whole
  board = tiny_events.read(tmp_path / 'resumed')
  assert board == tiny_events.read(tmp_path / 'whole')
  assert [scalar[:2] for scalar in board] == [
    ('train/loss', rnd) for rnd in range(6)
  ]


def test_a_new_run_starts_empty(tmp_path):
  write(tmp_path, range(5))
  write(tmp_path, range(2))
  assert [row['round'] for row in writer.read_metrics(tmp_path)] == [0, 1]


def test_lines_are_there_at_once(tmp_path):
  with writer.MetricsWriter(tmp_path) as made:
    made.write(0, {'train/loss': np.float32(0.5)})
    assert writer.read_metrics(tmp_path) == [{'round': 0, 'train/loss': 0.5}]
    assert tiny_events.read(tmp_path) == [('train/loss', 0, 0.5)]


def test_a_file_that_goes_away(tmp_path):
  with writer.MetricsWriter(tmp_path) as made:
    (tmp_path / 'metrics.jsonl').unlink()
    with pytest.raises(endings.StorageError, match=r'metrics\.jsonl: No such'):
      made.write(0, {'train/loss': 0.5})
    (tmp_path / 'metrics.jsonl').touch()
    with pytest.raises(endings.StorageError, match='replaced by another file'):
      made.write(0, {'train/loss': 0.5})


@pytest.mark.parametrize('value', [float('nan'), np.float32('inf')])
def test_not_finite_is_null(tmp_path, value):
  with writer.MetricsWriter(tmp_path) as made:
    made.write(0, {'train/loss': value, 'coverage/layers': [1, value]})
  text = (tmp_path / 'metrics.jsonl').read_text()
  assert 'NaN' not in text
  assert 'Infinity' not in text
  (row,) = writer.read_metrics(tmp_path)
  assert row['train/loss'] is None
  assert row['coverage/layers'] == [1, None]


def test_scalars_reach_tensorboard(tmp_path):
  write(tmp_path, range(2))
  (events,) = (tmp_path / 'tensorboard').iterdir()
  content = events.read_bytes()
  assert b'train/loss' in content
  assert b'coverage' not in content


def test_tensorboard_reads_what_was_written(tmp_path):
  with writer.MetricsWriter(tmp_path) as made:
    made.write(0, {'train/loss': 0.1, 'train/rejected_clients': [3]})
    made.write(300, {'/eval/a b': np.int64(2**40), 'eval/none': None})
    made.write(2**31, {'cost/flops': 1e300})
  *found, (name, rnd, none), last = tiny_events.read(tmp_path)
  assert found == [
    ('train/loss', 0, float(np.float32(0.1))),
    ('eval/a_b', 300, 2.0**40),
  ]
  assert (name, rnd) == ('eval/none', 300)
  assert np.isnan(none)
  assert last == ('cost/flops', 2**31, float('inf'))


def test_read_names_a_broken_line(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{"round": 0}\n{"rou\n{"round": 2}\n')
  with pytest.raises(ValueError, match=r'metrics\.jsonl, line 2'):
    writer.read_metrics(tmp_path)


def test_read_without_a_file(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'holds no metrics\.jsonl'):
    writer.read_metrics(tmp_path)


def test_write_json_round_trips_numpy(tmp_path):
  path = tmp_path / 'new' / 'a.json'
  obj = {'a': np.arange(3), 'b': (np.float64(0.5), {'c': np.bool_(True)})}
  writer.write_json(path, obj)
  assert json.loads(path.read_text()) == {
    'a': [0, 1, 2],
    'b': [0.5, {'c': True}],
  }


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / 'a.json'
  writer.write_json(path, {'a': 1})

  def full_disk(_):
    raise OSError('no space')

  monkeypatch.setattr(os, 'fsync', full_disk)
  with pytest.raises(OSError, match='no space'):
    writer.write_json(path, {'a': 2})
  assert json.loads(path.read_text()) == {'a': 1}

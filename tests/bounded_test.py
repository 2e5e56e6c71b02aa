"""Caches stay below their size, and lose what was used longest ago."""

import os
import pathlib
import threading
import time

import numpy as np
import pytest

from fedjax_tune.data import array_cache
from fedjax_tune.files import bounded


def _entry(folder, name, size, hours, inside=''):
  path = folder / name
  file = path / inside if inside else path
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_bytes(b'x' * size)
  then = time.time() - 3600 * hours
  os.utime(path, (then, then))
  return path


@pytest.mark.parametrize(
  ('most', 'left'),
  [
    (60, 'abcd'),
    (59, 'bcd'),
    (50, 'bcd'),
    (49, 'cd'),
    (29, 'd'),
    (0, 'd'),
  ],
)
def test_the_oldest_go_until_the_rest_fits(tmp_path, most, left):
  _entry(tmp_path, 'b', 20, 4)
  _entry(tmp_path, 'a', 10, 5)
  _entry(tmp_path, 'd', 15, 0.5)  # Somebody may be at it.
  _entry(tmp_path, 'c', 15, 3, inside='folder/file')
  bounded.trim(tmp_path, most)
  assert ''.join(sorted(p.name for p in tmp_path.iterdir())) == left


def test_what_is_used_stays(tmp_path):
  a, b = _entry(tmp_path, 'a', 10, 5), _entry(tmp_path, 'b', 10, 4)
  bounded.touch(a)
  bounded.trim(tmp_path, 10)
  assert a.exists()
  assert not b.exists()
  bounded.trim(tmp_path / 'absent', 0)


def test_several_trim_at_once(tmp_path, monkeypatch):
  """Each looks before any deletes, so all want the same entries gone."""
  for i in range(30):
    inside = 'file' if i % 2 else ''
    _entry(tmp_path, f'{i:02}', 10, 100 - i, inside)
  barrier, look = threading.Barrier(4), bounded._look
  seen = threading.local()

  def looking(path):
    found = look(path)
    seen.count = getattr(seen, 'count', 0) + 1
    if seen.count == 30:
      barrier.wait()
    return found

  monkeypatch.setattr(bounded, '_look', looking)
  failed = []

  def trim():
    try:
      bounded.trim(tmp_path, 100)
    except Exception as error:
      failed.append(error)

  threads = [threading.Thread(target=trim) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert not failed
  left = sorted(p.name for p in tmp_path.iterdir())
  assert left == [f'{i:02}' for i in range(20, 30)]


def test_arrays_that_are_read_stay(tmp_path, monkeypatch):
  cache = array_cache.Cache(tmp_path)
  get = lambda i: cache.get(i, (), lambda: {'x': np.full(100, i)})
  for i in range(3):
    get(i)
  files = {i: _file_of(tmp_path, i) for i in range(3)}
  for i, path in files.items():
    then = time.time() - 3600 * (9 - i)
    os.utime(path, (then, then))
  get(0)
  most = 2 * pathlib.Path(files[0]).stat().st_size + 1
  monkeypatch.setattr(array_cache, '_MOST_IN_ALL', most)
  get(3)
  assert files[0].exists()
  assert not files[1].exists()
  assert not files[2].exists()
  assert not cache.notes


def _file_of(folder, i):
  (found,) = [path for path in folder.iterdir() if np.load(path)['x'][0] == i]
  return found

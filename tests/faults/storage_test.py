"""Full disks, lost and read-only folders: one line, and the run can go on."""

import contextlib
import errno
import os
import pathlib
import shutil
import subprocess
import sys
import threading

import lab
import pytest

from fedjax_tune import endings
from fedjax_tune.report import tensorboard, writer
from fedjax_tune.training import checkpoint, loop, snapshot


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('storage')


@pytest.fixture(scope='module')
def whole(folder):
  lab.go(folder / 'whole')
  return lab.result(folder / 'whole')


def _full_after(owner, name, calls):
  """Makes a function fail as on a full disk, from its nth call on."""
  function, count = getattr(owner, name), []

  def full(*args, **options):
    count.append(args)
    if len(count) > calls:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return function(*args, **options)

  return lab.patched(owner, name, full)


class _FullFile:
  """A file on a disk that is full from the third write on."""

  def __init__(self, file):
    self._file, self._writes = file, 0

  def __getattr__(self, name):
    return getattr(self._file, name)

  def write(self, text):
    self._writes += 1
    if self._writes > 2:
      # Half a line is there.
      self._file.write(text[:10])
      self._file.flush()
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return self._file.write(text)


@contextlib.contextmanager
def _full_metrics():
  init = writer.MetricsWriter.__init__

  def opened(self, *args):
    init(self, *args)
    self._file = _FullFile(self._file)

  with lab.patched(writer.MetricsWriter, '__init__', opened):
    yield


_FULL = {
  'a checkpoint': (
    lambda: _full_after(snapshot, '_save', 1),
    'checkpoints/4',
  ),
  'what a checkpoint is about': (
    lambda: _full_after(snapshot, '_write_through', 1),
    'checkpoints/2',
  ),
  'the last checkpoint': (
    lambda: _full_after(snapshot, '_save', 2),
    'checkpoints/6',
  ),
  'metrics': (_full_metrics, 'metrics.jsonl'),
  'TensorBoard': (
    lambda: _full_after(tensorboard.Board, 'write', 3),
    'metrics.jsonl',
  ),
  'the plots': (
    lambda: _full_after(loop.reporting, 'read_metrics', 0),
    '',
  ),
  'costs': (lambda: _full_after(os, 'fsync', 1), 'costs.md'),
}


@pytest.mark.parametrize('what', _FULL)
def test_a_full_disk_is_said_in_one_line(tmp_path, whole, what):
  full, name = _FULL[what]
  with pytest.raises(endings.StorageError) as caught:
    lab.go(tmp_path, patch=full())
  assert str(caught.value) == (
    f'cannot write {tmp_path / name}: No space left on device; make room there,'
    ' then a run goes on with --resume.'
  )
  lab.go(tmp_path, resume=True)
  assert lab.result(tmp_path) == whole


def test_a_full_disk_is_noticed_in_the_next_round(tmp_path):
  """A checkpoint is written behind the run's back."""
  seen = []
  charge = loop.Run.charge

  def slowly(self, meter, members):
    # Long enough for a checkpoint to fail.
    pool = seen and threading.Event().wait(0.2)
    seen.append(pool)
    return charge(self, meter, members)

  with (
    pytest.raises(endings.StorageError, match='checkpoints/2'),
    _full_after(snapshot, '_write_through', 0),
  ):
    lab.go(tmp_path, patch=lab.patched(loop.Run, 'charge', slowly))
  assert len(seen) == 3


def test_a_folder_that_vanishes(tmp_path):
  workdir, rounds = tmp_path / 'run', []
  charge = loop.Run.charge

  def count(self, *args):
    rounds.append(args)
    if len(rounds) == 2:
      shutil.rmtree(workdir)
    return charge(self, *args)

  with pytest.raises(endings.StorageError, match=f'workdir={workdir} is gone'):
    lab.go(workdir, patch=lab.patched(loop.Run, 'charge', count))
  assert len(rounds) == 2
  assert not workdir.exists()


def test_metrics_that_vanish(tmp_path, whole):
  """The rows would go to a file that nobody can read."""
  lose = lab.during(3, lambda: (tmp_path / 'metrics.jsonl').unlink())
  with pytest.raises(endings.StorageError, match=r'metrics\.jsonl: No such'):
    lab.go(tmp_path, patch=lose)
  lab.go(tmp_path, resume=True)
  assert lab.result(tmp_path) == whole


def test_checkpoints_that_vanish(tmp_path):
  """The next one is written in a new folder."""
  with checkpoint.Checkpoints(tmp_path, 1, {}) as saved:
    saved.save(1, {'x': 1})
    saved.wait()
    shutil.rmtree(tmp_path / 'checkpoints')
    saved.save(2, {'x': 2})
  kept, damaged = checkpoint.find(tmp_path)
  assert kept
  assert kept.rounds == 2
  assert not damaged


@pytest.fixture
def small_disk(tmp_path):
  """A file system of 1 MiB, where one can be mounted."""
  disk = tmp_path / 'disk'
  disk.mkdir()
  mount = ['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', str(disk)]
  if not sys.platform.startswith('linux') or os.geteuid() or _fails(mount):
    pytest.skip('needs root, to mount a small disk')
  yield disk
  subprocess.run(['umount', str(disk)], check=True)


def _fails(command):
  return subprocess.run(command, capture_output=True).returncode


def _fill(disk: pathlib.Path, keep: int) -> None:
  """Fills a disk but for some bytes."""
  free = os.statvfs(disk)
  room = free.f_bavail * free.f_frsize
  (disk / 'filler').write_bytes(bytes(max(room - keep, 0)))


@pytest.mark.parametrize('keep', range(0, 200_000, 25_000))
def test_a_disk_that_is_really_full(small_disk, whole, keep):
  workdir = small_disk / 'run'
  workdir.mkdir()
  _fill(small_disk, keep)
  with pytest.raises(endings.StorageError) as caught:
    lab.go(workdir)
  said = str(caught.value)
  assert said.startswith(f'cannot write {workdir}/')
  assert 'No space left on device; make room there' in said
  assert '\n' not in said
  (small_disk / 'filler').unlink()
  lab.go(workdir, resume=True)
  assert lab.result(workdir) == whole


def test_a_disk_that_turns_read_only(small_disk, whole):
  def turn(mode):
    path = str(small_disk)
    subprocess.run(['mount', '-o', f'remount,{mode}', path], check=True)

  workdir = small_disk / 'run'
  # Files that are open for writing forbid it: as after an error of the disk.
  kept = writer.MetricsWriter._check_there

  def broken(self):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self._path))

  with (
    pytest.raises(endings.StorageError, match='Read-only file system; mend'),
    lab.patched(writer.MetricsWriter, '_check_there', broken),
  ):
    lab.go(workdir)
  assert writer.MetricsWriter._check_there is kept
  turn('ro')
  with pytest.raises(OSError, match='must be writable'):
    lab.go(workdir, resume=True)
  turn('rw')
  lab.go(workdir, resume=True)
  assert lab.result(workdir) == whole

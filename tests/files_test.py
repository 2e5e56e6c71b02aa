"""Files at an address: read once, written whole, by one process at a time."""

import errno
import itertools
import os
import shutil

import pytest
import tiny_bucket
from tiny_bucket import Bucket

from fedjax_tune import endings
from fedjax_tune.costs import hardware
from fedjax_tune.data import fetch
from fedjax_tune.files import mirror, paths, whole

bucket = tiny_bucket.bucket


def _write(folder, **texts):
  for name, text in texts.items():
    path = folder / name.replace('__', '/')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _read(folder):
  return {
    str(path.relative_to(folder)): path.read_text()
    for path in sorted(folder.rglob('*'))
    if path.is_file()
  }


# -- one file


@pytest.mark.parametrize('shared', [False, True])
def test_a_file_changes_whole(tmp_path, shared):
  path = tmp_path / 'new' / 'file'
  whole.write_text(path, 'old')

  def fail():
    with whole.file(path, shared=shared) as part:
      part.write_text('ne')
      raise KeyError

  with pytest.raises(KeyError):
    fail()
  assert _read(tmp_path) == {'new/file': 'old'}
  with whole.file(path, shared=shared) as part:
    part.write_text('new')
    assert path.read_text() == 'old'
  assert _read(tmp_path) == {'new/file': 'new'}


def test_processes_that_share_a_file_write_apart(tmp_path):
  path = tmp_path / 'file'
  with whole.file(path, shared=True) as a, whole.file(path, shared=True) as b:
    assert a != b
    a.write_text('a')
    b.write_text('b')
  assert _read(tmp_path) == {'file': 'a'}


# -- reading


def test_what_is_read_is_copied_once(bucket, monkeypatch):
  _write(bucket / 'b', set__x__1='one', set__y__2='two')
  found = paths.here('data.name', 'gs://b/set')
  assert found.name == 'set'
  assert _read(found) == {'x/1': 'one', 'y/2': 'two'}
  (bucket / 'b/set/x/1').write_text('edited')
  # A run reads what was there when it began.
  assert paths.here('data.name', 'gs://b/set') == found
  paths._copy.cache_clear()
  assert _read(paths.here('data.name', 'gs://b/set'))['x/1'] == 'edited'
  paths._copy.cache_clear()
  monkeypatch.setattr(paths, 'fetch', None)
  again = paths.here('data.name', 'gs://b/set')
  assert _read(again)['x/1'] == 'edited'
  assert _read(found)['x/1'] == 'one'


def test_one_object(bucket):
  text = (
    '[a]\nflops = 1e9\nmemory = "2GiB"\nuplink = 1\ndownlink = 1\nshare = 1'
  )
  (bucket / 'b').mkdir(parents=True)
  (bucket / 'b/devices.toml').write_text(text)
  (device,) = hardware.assign('gs://b/devices.toml', 1)
  assert device.name == 'a'
  assert _read(paths.cache() / 'copies')


def test_nothing_half_copied_counts(bucket, monkeypatch):
  _write(bucket / 'b', set__1='one', set__2='two')
  opened = itertools.count()
  read = Bucket.open

  def breaking(self, path, mode='rb', **options):
    if path.startswith('gs:') and next(opened) == 1:
      raise OSError(errno.EIO, 'lost')
    return read(self, path, mode, **options)

  with monkeypatch.context() as patch:
    patch.setattr(Bucket, 'open', breaking)
    with pytest.raises(OSError, match='lost'):
      paths.here('data.name', 'gs://b/set')
  assert not _read(paths.cache())
  assert len(_read(paths.here('data.name', 'gs://b/set'))) == 2


@pytest.mark.parametrize(
  ('error', 'kind', 'says'),
  [
    (
      ImportError('Please install gcsfs'),
      ValueError,
      'install gcsfs.*pip inst',
    ),
    (
      RuntimeError('no login'),
      OSError,
      'cannot be reached: RuntimeError: no l',
    ),
    (None, FileNotFoundError, "name='gs://b/x' does not exist"),
  ],
)
@pytest.mark.usefixtures('bucket')
def test_what_cannot_be_read_is_named(monkeypatch, error, kind, says):
  def fail(*_):
    raise error

  if error:
    monkeypatch.setattr(Bucket, 'exists', fail)
  with pytest.raises(kind, match=says) as caught:
    paths.here('name', 'gs://b/x')
  assert "'gs://b/x'" in str(caught.value)


def test_an_object_that_stands_for_its_folder_is_none(bucket, monkeypatch):
  _write(bucket / 'b', set__x='1')
  monkeypatch.setattr(Bucket, 'listdir', lambda *_, **__: ['b/set/', 'b/set/x'])
  assert _read(paths.here('data.name', 'gs://b/set')) == {'x': '1'}


def test_names_that_lead_out_of_a_folder_are_refused(bucket, monkeypatch):
  _write(bucket / 'b', set__x='1')
  monkeypatch.setattr(Bucket, 'listdir', lambda *_, **__: ['b/set/x', '..'])
  with pytest.raises(ValueError, match=r"gs://b/set has an object of .* '..'"):
    paths.here('data.name', 'gs://b/set')
  assert not paths.cache().exists()


def test_no_such_kind_of_address():
  with pytest.raises(ValueError, match="name='ftp://b/x' must be on this mach"):
    paths.here('name', 'ftp://b/x')


def test_what_is_used_in_place_stays_here(monkeypatch):
  with pytest.raises(ValueError, match=r'data_dir=.gs://b/x. must be a fo'):
    fetch.data_dir('gs://b/x')
  monkeypatch.setenv('FEDJAX_TUNE_DATA', 'gs://b/x')
  with pytest.raises(ValueError, match='FEDJAX_TUNE_DATA='):
    fetch.data_dir()


# -- writing


def test_a_folder_of_this_machine_is_itself(tmp_path):
  with mirror.opened('out', tmp_path, new=True) as place:
    assert (place.folder, place.shown) == (tmp_path, str(tmp_path))
    _write(place.folder, a='1')
    place.fetch()
    place.send()
  assert _read(tmp_path) == {'a': '1'}


def _objects(bucket):
  found = _read(bucket / 'b/run')
  return {k: v for k, v in found.items() if k != '.owner'}


def test_what_changed_is_sent(bucket):
  sent = []
  Bucket.before = lambda path: sent.append(path.removeprefix('gs://b/run/'))
  with mirror.opened('workdir', 'gs://b/run') as place:
    _write(place.folder, a='1', b__c='2', **{'.lock': '', '.x__y': ''})
    place.send()
    assert _objects(bucket) == {'a': '1', 'b/c': '2'}
    _write(place.folder, a='10', d='3')
    (place.folder / 'b/c').unlink()
    sent.clear()
    place.send()
    assert sorted(sent) == ['a', 'd']
    assert _objects(bucket) == {'a': '10', 'd': '3'}
    _write(place.folder, e='4')
  assert _objects(bucket) == {'a': '10', 'd': '3', 'e': '4'}
  assert not place.folder.exists()


def test_nothing_is_written_before_it_is_asked_for(bucket):

  def refuse():
    with mirror.opened('workdir', 'gs://b/run') as place:
      _write(place.folder, a='1')
      raise ValueError(f'{place.folder}/a is odd')

  with pytest.raises(ValueError, match=r'gs://b/run/a is odd'):
    refuse()
  assert not bucket.exists()


def test_the_next_process_goes_on(bucket):
  with mirror.opened('workdir', 'gs://b/run') as place:
    _write(place.folder, a='1', b='2', checkpoints__2__about__='')
    _write(place.folder, **{'checkpoints__2__about.json': '{}'})
    place.send()
  with mirror.opened('workdir', 'gs://b/run') as place:
    place.fetch()
    assert _read(place.folder) == _objects(bucket)
    (place.folder / 'b').unlink()
    place.send()
  assert 'b' not in _objects(bucket)


def test_the_last_process_has_it(bucket):
  folders = []

  def run():
    with mirror.opened('workdir', 'gs://b/run') as one:
      folders.append(one.folder)
      one.send()
      _write(one.folder, a='1')
      with mirror.opened('workdir', 'gs://b/run') as two:
        _write(two.folder, a='2')
        two.send()
      one.send()

  with pytest.raises(endings.StorageError, match='taken over by process') as e:
    run()
  assert _objects(bucket) == {'a': '2'}
  # What it could not send is not lost.
  assert str(folders[0]) in str(e.value)
  assert _read(folders[0]) == {'a': '1'}
  shutil.rmtree(folders[0])


@pytest.mark.parametrize('calls', range(1, 8))
def test_a_killed_process_leaves_a_whole_checkpoint(bucket, tmp_path, calls):
  """Before each object of the second time that it sends."""
  parts = ('state__a', 'state__b', 'metrics.jsonl', mirror.SEAL)
  of = lambda n: {f'checkpoints__{n}__{part}': str(n) for part in parts}
  count = itertools.count(1)
  with mirror.opened('workdir', 'gs://b/run') as place:
    _write(place.folder, **of(1), **of(2))
    place.send()
    shutil.rmtree(place.folder / 'checkpoints/1')
    _write(place.folder, **of(3), **{'metrics.jsonl': '3'})

    def copy(_):
      if next(count) == calls:
        shutil.copytree(bucket, tmp_path / 'killed')

    Bucket.before = copy
    place.send()
    Bucket.before = lambda _: None
  killed = tmp_path / 'killed'
  if not killed.exists():
    assert calls > next(count) - 1
    return
  Bucket.root = killed
  with mirror.opened('workdir', 'gs://b/run') as place:
    place.fetch()
    found = _read(place.folder)
    whole = {n for n in '123' if f'checkpoints/{n}/{mirror.SEAL}' in found}
    assert '2' in whole
    for n in '123':
      there = {k for k in found if k.startswith(f'checkpoints/{n}/')}
      assert len(there) == len(parts) * (n in whole)
    place.send()
  # What was cut short goes.
  assert _read(killed / 'b/run').keys() - {'.owner'} == found.keys()


@pytest.mark.usefixtures('bucket')
def test_a_store_that_fails_ends_the_run():
  folders = []

  def full(_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  def run():
    with mirror.opened('workdir', 'gs://b/run') as place:
      folders.append(place.folder)
      place.send()
      _write(place.folder, a='1')
      Bucket.before = full
      place.send()

  with pytest.raises(endings.StorageError, match='cannot write gs://b/run'):
    run()
  assert _read(folders[0]) == {'a': '1'}
  shutil.rmtree(folders[0])


def test_results_go_to_a_new_address(bucket):
  _write(bucket / 'b', out__x='mine')
  with (
    pytest.raises(FileExistsError, match=r'out=gs://b/out has files'),
    mirror.opened('out', 'gs://b/out', new=True),
  ):
    pass
  assert _read(bucket) == {'b/out/x': 'mine'}

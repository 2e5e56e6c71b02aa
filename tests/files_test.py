"""Files at an address: read once, written whole, by one process at a time."""

import errno
import itertools
import os
import shutil

import pytest
import tiny_bucket
from tiny_bucket import Bucket

from fedjax_tune import endings
from fedjax_tune.files import mirror, whole

bucket = tiny_bucket.bucket


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
  assert tiny_bucket.read(tmp_path) == {'new/file': 'old'}
  with whole.file(path, shared=shared) as part:
    part.write_text('new')
    assert path.read_text() == 'old'
  assert tiny_bucket.read(tmp_path) == {'new/file': 'new'}


def test_processes_that_share_a_file_write_apart(tmp_path):
  path = tmp_path / 'file'
  with whole.file(path, shared=True) as a, whole.file(path, shared=True) as b:
    assert a != b
    a.write_text('a')
    b.write_text('b')
  assert tiny_bucket.read(tmp_path) == {'file': 'a'}


# -- one folder


@pytest.mark.parametrize('there', [False, True])
def test_a_folder_appears_whole(tmp_path, there):
  path = tmp_path / 'new' / 'folder'
  before = {'new/folder/in/a': 'old', 'new/folder/c': 'c'} if there else {}
  names = {'in', 'c'} if there else set()
  tiny_bucket.write(tmp_path, **before)

  def fail():
    with whole.folder(path) as part:
      tiny_bucket.write(part, a='half')
      assert {p.name for p in path.glob('[!.]*')} == names
      raise KeyError

  with pytest.raises(KeyError):
    fail()
  assert path.exists() == there
  assert tiny_bucket.read(tmp_path) == before
  with whole.folder(path) as part:
    tiny_bucket.write(part, **{'in/a': 'new', 'in/b': 'b'})
  after = {'new/folder/in/a': 'new', 'new/folder/in/b': 'b'}
  assert tiny_bucket.read(tmp_path) == before | after
  assert not list(tmp_path.rglob('*.part'))


# -- writing


def test_a_folder_of_this_machine_is_itself(tmp_path):
  with mirror.opened('out', tmp_path, new=True) as place:
    assert (place.folder, place.shown) == (tmp_path, str(tmp_path))
    tiny_bucket.write(place.folder, a='1')
    place.fetch()
    place.send()
  assert tiny_bucket.read(tmp_path) == {'a': '1'}


def _objects(bucket):
  found = tiny_bucket.read(bucket / 'b/run')
  return {k: v for k, v in found.items() if k != '.owner'}


def test_what_changed_is_sent(bucket):
  sent = []
  Bucket.before = lambda path: sent.append(path.removeprefix('gs://b/run/'))
  with mirror.opened('workdir', 'gs://b/run') as place:
    tiny_bucket.write(
      place.folder, a='1', b__c='2', **{'.lock': '', '.x__y': ''}
    )
    place.send()
    assert _objects(bucket) == {'a': '1', 'b/c': '2'}
    tiny_bucket.write(place.folder, a='10', d='3')
    (place.folder / 'b/c').unlink()
    sent.clear()
    place.send()
    assert sorted(sent) == ['a', 'd']
    assert _objects(bucket) == {'a': '10', 'd': '3'}
    tiny_bucket.write(place.folder, e='4')
  assert _objects(bucket) == {'a': '10', 'd': '3', 'e': '4'}
  assert not place.folder.exists()


def test_nothing_is_written_before_it_is_asked_for(bucket):

  def refuse():
    with mirror.opened('workdir', 'gs://b/run') as place:
      tiny_bucket.write(place.folder, a='1')
      raise ValueError(f'{place.folder}/a is odd')

  with pytest.raises(ValueError, match=r'gs://b/run/a is odd'):
    refuse()
  assert not bucket.exists()


def test_the_next_process_goes_on(bucket):
  with mirror.opened('workdir', 'gs://b/run') as place:
    tiny_bucket.write(place.folder, a='1', b='2', checkpoints__2__about__='')
    tiny_bucket.write(place.folder, **{'checkpoints__2__about.json': '{}'})
    place.send()
  with mirror.opened('workdir', 'gs://b/run') as place:
    place.fetch()
    assert tiny_bucket.read(place.folder) == _objects(bucket)
    (place.folder / 'b').unlink()
    place.send()
  assert 'b' not in _objects(bucket)


def test_the_last_process_has_it(bucket):
  folders = []

  def run():
    with mirror.opened('workdir', 'gs://b/run') as one:
      folders.append(one.folder)
      one.send()
      tiny_bucket.write(one.folder, a='1')
      with mirror.opened('workdir', 'gs://b/run') as two:
        tiny_bucket.write(two.folder, a='2')
        two.send()
      one.send()

  with pytest.raises(endings.StorageError, match='taken over by process') as e:
    run()
  assert _objects(bucket) == {'a': '2'}
  # What it could not send is not lost.
  assert str(folders[0]) in str(e.value)
  assert tiny_bucket.read(folders[0]) == {'a': '1'}
  shutil.rmtree(folders[0])


@pytest.mark.parametrize('calls', range(1, 8))
def test_a_killed_process_leaves_a_whole_checkpoint(bucket, tmp_path, calls):
  """Before each object of the second time that it sends."""
  parts = ('state__a', 'state__b', 'metrics.jsonl', mirror.SEAL)
  of = lambda n: {f'checkpoints__{n}__{part}': str(n) for part in parts}
  count = itertools.count(1)
  with mirror.opened('workdir', 'gs://b/run') as place:
    tiny_bucket.write(place.folder, **of(1), **of(2))
    place.send()
    shutil.rmtree(place.folder / 'checkpoints/1')
    tiny_bucket.write(place.folder, **of(3), **{'metrics.jsonl': '3'})

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
    found = tiny_bucket.read(place.folder)
    whole = {n for n in '123' if f'checkpoints/{n}/{mirror.SEAL}' in found}
    assert '2' in whole
    for n in '123':
      there = {k for k in found if k.startswith(f'checkpoints/{n}/')}
      assert len(there) == len(parts) * (n in whole)
    place.send()
  # What was cut short goes.
  assert tiny_bucket.read(killed / 'b/run').keys() - {'.owner'} == found.keys()


@pytest.mark.usefixtures('bucket')
def test_a_store_that_fails_ends_the_run():
  folders = []

  def full(_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  def run():
    with mirror.opened('workdir', 'gs://b/run') as place:
      folders.append(place.folder)
      place.send()
      tiny_bucket.write(place.folder, a='1')
      Bucket.before = full
      place.send()

  with pytest.raises(endings.StorageError, match='cannot write gs://b/run'):
    run()
  assert tiny_bucket.read(folders[0]) == {'a': '1'}
  shutil.rmtree(folders[0])


def test_results_go_to_a_new_address(bucket):
  tiny_bucket.write(bucket / 'b', out__x='mine')
  with (
    pytest.raises(FileExistsError, match=r'out=gs://b/out has files'),
    mirror.opened('out', 'gs://b/out', new=True),
  ):
    pass
  assert tiny_bucket.read(bucket) == {'b/out/x': 'mine'}

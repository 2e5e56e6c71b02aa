"""What is read at an address is copied here, once and whole."""

import errno
import itertools

import pytest
import tiny_bucket
from tiny_bucket import Bucket

from fedjax_tune.costs import hardware
from fedjax_tune.data import fetch
from fedjax_tune.files import paths

bucket = tiny_bucket.bucket


def test_what_is_read_is_copied_once(bucket, monkeypatch):
  tiny_bucket.write(bucket / 'b', set__x__1='one', set__y__2='two')
  found = paths.here('data.name', 'gs://b/set')
  assert found.name == 'set'
  assert tiny_bucket.read(found) == {'x/1': 'one', 'y/2': 'two'}
  (bucket / 'b/set/x/1').write_text('edited')
  # A run reads what was there when it began.
  assert paths.here('data.name', 'gs://b/set') == found
  paths._copy.cache_clear()
  assert (
    tiny_bucket.read(paths.here('data.name', 'gs://b/set'))['x/1'] == 'edited'
  )
  paths._copy.cache_clear()
  monkeypatch.setattr(paths, 'fetch', None)
  again = paths.here('data.name', 'gs://b/set')
  assert tiny_bucket.read(again)['x/1'] == 'edited'
  assert tiny_bucket.read(found)['x/1'] == 'one'


def test_one_object(bucket):
  text = (
    '[a]\nflops = 1e9\nmemory = "2GiB"\nuplink = 1\ndownlink = 1\nshare = 1'
  )
  (bucket / 'b').mkdir(parents=True)
  (bucket / 'b/devices.toml').write_text(text)
  (device,) = hardware.assign('gs://b/devices.toml', 1)
  assert device.name == 'a'
  assert tiny_bucket.read(paths.cache() / 'copies')


def test_nothing_half_copied_counts(bucket, monkeypatch):
  tiny_bucket.write(bucket / 'b', set__1='one', set__2='two')
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
  assert not tiny_bucket.read(paths.cache())
  assert len(tiny_bucket.read(paths.here('data.name', 'gs://b/set'))) == 2


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
  tiny_bucket.write(bucket / 'b', set__x='1')
  monkeypatch.setattr(Bucket, 'listdir', lambda *_, **__: ['b/set/', 'b/set/x'])
  assert tiny_bucket.read(paths.here('data.name', 'gs://b/set')) == {'x': '1'}


def test_names_that_lead_out_of_a_folder_are_refused(bucket, monkeypatch):
  tiny_bucket.write(bucket / 'b', set__x='1')
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

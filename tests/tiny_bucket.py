"""A bucket in a folder: what a store can do, and no more."""

from collections.abc import Callable
import pathlib
from typing import Any

from fsspec.implementations import local
import pytest

from fedjax_tune.files import paths


class Bucket(local.LocalFileSystem):
  """Objects of gs://; each is a file of `root`, written whole or not at all.

  Attributes:
    root: The folder of all buckets.
    before: Is called with the place of each object before it is written.
  """

  protocol = ('gs', 'gcs')
  cachable = False
  root: pathlib.Path
  before: Callable[[str], None]

  @classmethod
  def _strip_protocol(cls, path: Any) -> str:
    return super()._strip_protocol(str(path).replace('gs:/', str(cls.root)))

  def open(
    self, path: Any, mode: Any = 'rb', *args: Any, **options: Any
  ) -> Any:
    assert mode in ('r', 'rb', 'w', 'wb'), 'a store appends to nothing'
    if 'w' in mode:
      type(self).before(path)
    return super().open(path, mode, *args, **options)

  def mv(self, *_args: Any, **_options: Any) -> None:
    raise AssertionError('a store renames nothing')

  mv_file = rename = mv


@pytest.fixture
def bucket(tmp_path, monkeypatch):
  """gs:// of this test; the path of all buckets."""
  made = Bucket(auto_mkdir=True)
  monkeypatch.setattr(Bucket, 'root', tmp_path / 'buckets', raising=False)
  monkeypatch.setattr(Bucket, 'before', lambda _: None, raising=False)
  # Whatever package else would read gs://.
  monkeypatch.setattr('etils.epath.gpath._is_tf_installed', lambda: False)
  monkeypatch.setattr(
    'etils.epath.backend.fsspec_backend.fs',
    lambda path: made if str(path).startswith('gs:') else _HERE,
  )
  monkeypatch.setenv('FEDJAX_TUNE_DATA', str(tmp_path / 'cache'))
  paths._copy.cache_clear()
  yield tmp_path / 'buckets'
  paths._copy.cache_clear()


_HERE = local.LocalFileSystem()


def write(folder: pathlib.Path, **texts: str) -> None:
  """Writes files; `__` in a name stands for a slash."""
  for name, text in texts.items():
    path = folder / name.replace('__', '/')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def read(folder: pathlib.Path) -> dict[str, str]:
  """Returns the texts of all files below a folder, by their paths."""
  return {
    str(path.relative_to(folder)): path.read_text()
    for path in sorted(folder.rglob('*'))
    if path.is_file()
  }

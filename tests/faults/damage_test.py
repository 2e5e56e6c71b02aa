"""Damaged checkpoints are found, said, and passed over for older ones."""

import os
import pathlib
import shutil

import lab
import numpy as np
import pytest

from fedjax_tune.training import checkpoint

_STATE, _ROWS, _ABOUT = 'state/d/*', 'metrics.jsonl', 'about.json'
_FILES = (
  _STATE,
  'state/_METADATA',
  'state/manifest.ocdbt',
  'state/ocdbt.process_0/d/*',
  _ROWS,
  _ABOUT,
)


def _file(place, pattern):
  """Returns a file of a checkpoint; Orbax draws the names of some."""
  return max(place.glob(pattern), key=lambda path: path.stat().st_size)


def _flip(path):
  content = bytearray(path.read_bytes())
  content[-1] ^= 1
  path.write_bytes(content)


def _flip_first(path):
  content = bytearray(path.read_bytes())
  content[0] ^= 1
  path.write_bytes(content)


def _flip_middle(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 64
  path.write_bytes(content)


def _truncate(path):
  os.truncate(path, path.stat().st_size // 2)


def _empty(path):
  os.truncate(path, 0)


def _zero(path):
  path.write_bytes(bytes(path.stat().st_size))


def _extend(path):
  path.write_bytes(path.read_bytes() + b'\n{}')


def _delete(path):
  path.unlink()


def _swap(path):
  """Puts the older checkpoint's file there."""
  place = next(p for p in path.parents if p.name == '4')
  older = place.with_name('2') / path.relative_to(place)
  shutil.copy(older if older.exists() else _file(older.parent, '*'), path)


def _make_folder(path):
  path.unlink()
  path.mkdir()


_DAMAGES = [
  _flip, _flip_first, _flip_middle, _truncate, _empty, _zero, _extend, _delete,
  _swap, _make_folder,
]  # fmt: skip


def _save(workdir):
  with checkpoint.Checkpoints(workdir, 2, {'of': 'a run'}) as saved:
    for rounds in (2, 4):
      # Of different names and shapes, so that every file differs.
      x = np.full(48 + rounds, rounds, np.float32)
      state = {'x': x, 'n': np.int64(rounds), str(rounds): np.ones(rounds)}
      saved.save(rounds, state, '{"round": 0}\n' * rounds)


@pytest.mark.parametrize('pattern', _FILES)
@pytest.mark.parametrize('damage', _DAMAGES)
def test_damage_is_found(tmp_path, damage, pattern):
  _save(tmp_path)
  place = tmp_path / 'checkpoints/4'
  path = _file(place, pattern)
  name = path.relative_to(place).as_posix()
  damage(path)
  kept, damaged = checkpoint.find(tmp_path)
  assert kept
  assert kept.rounds == 2
  assert kept.leaves["['n']"] == 2
  assert list(damaged) == [4]
  said = damaged[4]
  missing = {_delete: 'No such file or directory', _make_folder: 'Is a direct'}
  if damage is _swap and name == _ABOUT:
    assert said == 'it is that of round 2'
  elif damage in missing:
    assert said.startswith(f'{name}: {missing[damage]}')
  else:
    assert said == f'{name} is not what was written'


@pytest.mark.parametrize('name', ['more', 'state/d/more'])
def test_a_file_more_is_found(tmp_path, name):
  _save(tmp_path)
  (tmp_path / 'checkpoints/4' / name).write_bytes(b'1')
  kept, damaged = checkpoint.find(tmp_path)
  assert kept
  assert kept.rounds == 2
  assert damaged == {4: f'{name} was not written with it'}


def test_swapped_checkpoints_are_found(tmp_path):
  _save(tmp_path)
  folder = tmp_path / 'checkpoints'
  (folder / '4').rename(folder / 'x')
  (folder / '2').rename(folder / '4')
  (folder / 'x').rename(folder / '2')
  kept, damaged = checkpoint.find(tmp_path)
  assert kept is None
  assert damaged == {4: 'it is that of round 2', 2: 'it is that of round 4'}


def test_an_emptied_checkpoint_is_found(tmp_path):
  _save(tmp_path)
  shutil.rmtree(tmp_path / 'checkpoints/4')
  (tmp_path / 'checkpoints/4').mkdir()
  kept, damaged = checkpoint.find(tmp_path)
  assert kept
  assert kept.rounds == 2
  assert damaged == {4: 'about.json: No such file or directory'}


def test_every_byte_of_a_checkpoint_counts(tmp_path):
  _save(tmp_path)
  place = tmp_path / 'checkpoints/4'
  rng = np.random.default_rng(0)
  for path in filter(pathlib.Path.is_file, sorted(place.rglob('*'))):
    content = path.read_bytes()
    for at in rng.integers(len(content), size=20):
      changed = bytearray(content)
      changed[at] ^= 1 << rng.integers(8)
      path.write_bytes(changed)
      kept, _ = checkpoint.find(tmp_path)
      assert kept
      # White space between JSON's parts says nothing.
      assert kept.rounds == 2 or chr(content[at]).isspace()
    path.write_bytes(content)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('damage')


@pytest.fixture(scope='module')
def whole(folder):
  lab.go(folder / 'whole')
  return lab.result(folder / 'whole')


@pytest.fixture
def begun(folder, whole, tmp_path):
  """The finished run as it was before its last two rounds."""
  del whole
  if not (folder / 'begun').exists():
    with pytest.raises(lab.Stopped):
      lab.go(folder / 'begun', patch=lab.stopped_in(5))
  return pathlib.Path(shutil.copytree(folder / 'begun', tmp_path / 'begun'))


@pytest.mark.parametrize('pattern', [_STATE, _ABOUT])
def test_a_run_goes_on_from_the_one_before(begun, whole, pattern):
  place = begun / 'checkpoints/4'
  path = _file(place, pattern)
  name = path.relative_to(place).as_posix()
  _truncate(path)
  shown = lab.go(begun, resume=True)
  assert (
    f'Damaged checkpoints in {begun} are passed over (4: {name} is not what was'
    ' written); the run goes on after round 2.'
  ) in shown
  assert lab.result(begun) == whole
  # What was damaged is there for whoever wants to look.
  assert (begun / 'checkpoints/4.damaged' / name).exists()
  assert lab.go(begun, resume=True).count('amaged') == 0


def test_no_whole_checkpoint(begun):
  for rounds in (2, 4):
    _zero(_file(begun / f'checkpoints/{rounds}', _STATE))
  with pytest.raises(ValueError, match=r'no whole checkpoint \(4: .*; 2: .*\);'
                     ' delete its folder checkpoints to start'):  # fmt: skip
    lab.go(begun, resume=True)
  shutil.rmtree(begun / 'checkpoints')
  lab.go(begun, resume=True)

"""Prepared sets that are damaged, half-made, out of date or made twice."""

import os
import shutil
import subprocess
import sys
import threading

import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds
from tiny_pictures import jpeg, png, save
import tiny_sets

from fedjax_tune import config
from fedjax_tune.data import builders, corpus, nico, nico_lists

_IMAGE = tfds.features.Image(shape=(None, None, 3))
_LABEL = tfds.features.ClassLabel(names=['a', 'b'])


def _load(folder, name='tiny', **fields):
  cfg = config.Data(name=name, data_dir=str(folder), image_size=8, **fields)
  return corpus.load(cfg)


def _cut(path, size):
  path.write_bytes(path.read_bytes()[:size])


def _write(folder, **options):
  rows = [{'image': jpeg(8, 8), 'label': k} for k in (0, 1)]
  features = {'image': _IMAGE, 'label': _LABEL}
  splits = {'train': rows, 'test': rows}
  return tiny_sets.write(folder, features, splits, **options)


_SHARD = 'tiny-train.array_record-00000-of-00001'


@pytest.mark.parametrize(
  ('file', 'size', 'message'),
  [
    ('dataset_info.json', 20, r'dataset_info.json is not valid JSON.*delete'),
    ('dataset_info.json', 0, r'dataset_info.json is not valid JSON.*delete'),
    ('features.json', 20, r'features.json is not valid JSON.*delete'),
    ('features.json', None, r'tiny/1.0.0 is incomplete: it has no .*Delete'),
    ('dataset_info.json', None, r'tiny/1.0.0 is incomplete: it has no .*Del'),
    ('label.labels.txt', 1, r'labels.txt: has 1 names for 2 classes'),
    (_SHARD, None, r'tiny-train.array_record\S+ is missing. Delete that fold'),
    (_SHARD, 0, r'tiny-train.array_record\S+ is cut short or corrupt'),
    (_SHARD, 70000, r'tiny-train.array_record\S+ is cut short or corrupt'),
  ],
)
def test_damaged_sets_are_named(file, size, message, tmp_path):
  path = _write(tmp_path) / file
  path.unlink() if size is None else _cut(path, size)
  with pytest.raises(ValueError, match=message):
    _load(tmp_path)


@pytest.mark.parametrize(
  ('file', 'old', 'new', 'message'),
  [
    ('label.labels.txt', b'\n', b'\n\xe9', r'labels.txt is not UTF-8'),
    ('label.labels.txt', b'', b'\xef\xbb\xbf', r'labels.txt must not begin'),
    ('features.json', b'"numClasses": "2"', b'"numClasses": "x"', 'numClasses'),
    ('dataset_info.json', b'"shardLengths": [', b'"shardLengths": 6, "x": [',
     'shardLengths field'),
  ],
)  # fmt: skip
def test_descriptions_that_make_no_sense(file, old, new, message, tmp_path):
  path = _write(tmp_path) / file
  assert old in path.read_bytes()
  path.write_bytes(path.read_bytes().replace(old, new, 1))
  with pytest.raises(ValueError, match=message):
    _load(tmp_path)


def test_a_shard_of_another_size_is_named(tmp_path):
  folder = _write(tmp_path)
  other = _write(tmp_path / 'other', version='2.0.0')
  shutil.copy(folder / _SHARD, other / _SHARD.replace('train', 'test'))
  info = other / 'dataset_info.json'
  info.write_text(info.read_text().replace('"2"', '"3"', 1))
  with pytest.raises(ValueError, match=r'has 2 records; must have 3'):
    _load(tmp_path / 'other')


def test_a_newer_version_is_read(tmp_path):
  _write(tmp_path)
  rows = [{'image': jpeg(8, 8), 'label': k} for k in (0, 1, 1)]
  features = {'image': _IMAGE, 'label': _LABEL}
  splits = {'train': rows, 'test': rows}
  tiny_sets.write(tmp_path, features, splits, version='2.0.0')
  train, _ = _load(tmp_path)
  assert len(train) == 3


def test_what_a_killed_attempt_left_is_no_set(tmp_path):
  whole = _write(tmp_path)
  half = whole.parent / 'incomplete.ABC123_1.0.0'
  shutil.move(whole, half)
  with pytest.raises(ValueError, match=r"data.name='tiny': must be one of"):
    _load(tmp_path)


@pytest.fixture
def source(tmp_path):
  """NICO++ with a folder a class: two classes, a picture a class and split."""
  folder = tmp_path / 'source'
  (folder / nico_lists.FOLDER).mkdir(parents=True)
  for domain in nico_lists.DOMAINS:
    for split in nico_lists.SPLITS:
      lines = []
      for label, name in enumerate(('bear', 'bird')):
        file = f'images/{domain}/{name}/{split}.jpg'
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        blue = 50 if split == 'train' else 200
        path.write_bytes(jpeg(16, 8, colour=(100 * label, 50, blue)))
        lines.append(f'{file} {label}\n')
      _list(folder, domain, split).write_text(''.join(lines))
  return folder


def _list(folder, domain, split):
  return folder / nico_lists.FOLDER / f'{domain}_{split}.txt'


def _nico(folder, domain='dim'):
  return _load(folder, 'nico', domains=(domain,))


def _prepare(folder, source, domain='dim'):
  return builders.build(nico.make_builder(domain, folder), source)


def test_classes_of_nico_are_its_folders(source):
  train, _ = _nico(source)
  assert train.class_names[:3] == ('bear', 'bird', '2')


def test_a_changed_list_is_read_again(source):
  before, _ = _nico(source)
  path = _list(source, 'dim', 'train')
  path.write_text(path.read_text().replace('bird/train', 'bird/test'))
  after, _ = _nico(source)
  assert after.fingerprint() != before.fingerprint()


def test_a_changed_picture_is_read_again(source):
  before, _ = _nico(source)
  path = source / 'images' / 'dim' / 'bird' / 'train.jpg'
  path.write_bytes(jpeg(16, 8, colour=(0, 0, 255)))
  after, _ = _nico(source)
  changed = (after.read(np.arange(2)) != before.read(np.arange(2))).any(
    (1, 2, 3)
  )
  assert changed.tolist() == (after.labels == 1).tolist()


def test_a_copy_elsewhere_is_refused_with_the_command(source, tmp_path):
  data_dir = tmp_path / 'data'
  assert _prepare(data_dir, source)
  _nico(data_dir)
  os.utime(source / 'images' / 'dim' / 'bear' / 'test.jpg', ns=(1, 1))
  message = (
    r'nico/dim/2.0.0 is .*out of date: its pictures changed: .*Prepare it with'
    r' `python -m launch.prepare --dataset=nico --source=FOLDER --data_dir='
  )
  with pytest.raises(ValueError, match=message):
    _nico(data_dir)
  assert _prepare(data_dir, source)
  assert not _prepare(data_dir, source)
  # Where the pictures are elsewhere, or gone, the copy stands for itself.
  shutil.rmtree(source)
  _nico(data_dir)


def test_labels_that_mean_two_things_are_refused(source):
  path = _list(source, 'rock', 'test')
  path.write_text(path.read_text().replace('.jpg 1', '.jpg 7'))
  message = r"rock_test.txt:2: 'bird' has the label 7, and 1 in .*train.txt:2"
  with pytest.raises(ValueError, match=message):
    nico_lists.check(source)
  with pytest.raises(ValueError, match=message):
    _nico(source, 'autumn')


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'', r'dim_train.txt is empty; must have a line'),
    (b'caf\xe9.jpg 1\n', r'dim_train.txt must be UTF-8'),
    (b'images/dim/bear/train.jpg -1\n', r'dim_train.txt:1: .* from 0 to 59'),
  ],
)
def test_bad_lists_are_named(content, message, source):
  _list(source, 'dim', 'train').write_bytes(content)
  with pytest.raises(ValueError, match=message):
    _nico(source)


def test_a_picture_cut_short_is_named_and_mended(source):
  path = source / 'images' / 'dim' / 'bird' / 'train.jpg'
  whole = jpeg(64, 64)
  path.write_bytes(whole[:-20])
  message = r'1 of 2 pictures .* images/dim/bird/train.jpg: is damaged or cut'
  for _ in range(2):
    with pytest.raises(ValueError, match=message):
      _nico(source)
    assert not list((source / 'nico' / 'dim').glob('*2.0.0'))
  path.write_bytes(whole)
  train, _ = _nico(source)
  assert len(train) == 2


def test_pictures_of_other_kinds_keep_their_meaning(source):
  pictures = {
    'bear/train.jpg': png(16, 0, b'\x80\x80' * 2),
    'bird/train.jpg': save(Image.new('RGBA', (4, 4), (9, 9, 9, 0)), 'PNG'),
  }
  for name, data in pictures.items():
    (source / 'images' / 'dim' / name).write_bytes(data)
  train, _ = _nico(source)
  found = {train.class_names[k]: i for i, k in enumerate(train.labels)}
  images = train.read(np.arange(2))
  assert (images[found['bear']] == 128).all()
  assert (images[found['bird']] == 255).all()
  told = ' '.join(train.notes)
  assert '1 picture scaled to 8 bits: row' in told
  assert '1 picture put on white where transparent: row' in told
  assert 'images/dim/bear/train.jpg' in told


@pytest.mark.parametrize('file', ['made_of.json', 'dataset_info.json'])
def test_a_half_made_copy_is_made_anew(file, source, tmp_path):
  data_dir = tmp_path / 'data'
  _prepare(data_dir, source)
  whole, _ = _nico(data_dir)
  copy = data_dir / 'nico' / 'dim' / '2.0.0'
  (copy / file).unlink()
  shutil.copytree(copy, copy.parent / 'incomplete.ABC123_2.0.0')
  with pytest.raises(ValueError, match=r'2.0.0 is incomplete'):
    _nico(data_dir)
  (made,) = builders.open_domains('nico', ['dim'], 8, data_dir).values()
  assert builders.build(made, source)
  again, _ = _nico(data_dir)
  assert again.fingerprint() == whole.fingerprint()
  assert not list(copy.parent.glob('incomplete*'))


def test_two_that_prepare_at_once_make_one_copy(source, tmp_path, monkeypatch):
  made, run = [], builders._run

  def slow(builder, source):
    made.append(builder)
    return run(builder, source)

  monkeypatch.setattr(builders, '_run', slow)
  done = []
  threads = [
    threading.Thread(
      target=lambda: done.append(_prepare(tmp_path / 'data', source))
    )
    for _ in range(3)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert sorted(done) == [False, False, True]
  assert len(made) == 1


@pytest.mark.slow
def test_the_command_makes_a_stale_copy_anew_and_tells(source, tmp_path):
  command = [sys.executable, '-m', 'launch.prepare', '--dataset=nico']
  command += [f'--data_dir={tmp_path / "data"}', f'--source={source}']
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  assert 'nico is prepared' in done.stdout
  exif = Image.Exif()
  exif[0x0112] = 6
  path = source / 'images' / 'dim' / 'bird' / 'train.jpg'
  path.write_bytes(jpeg(16, 8, exif=exif))
  _cut(next((tmp_path / 'data/nico/rock').glob('*/features.json')), 9)
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  assert 'nico dim is made anew: its pictures changed' in done.stdout
  told = 'train: 1 picture turned upright as EXIF says: dim row'
  assert told in done.stdout

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from fedjax_tune import config
from fedjax_tune.data import corpus, examples


def _load(name, **fields):
  return corpus.load(config.Data(name=name, image_size=14, **fields))


def test_plain_set_is_one_domain():
  with tfds.testing.mock_data(num_examples=9):
    train, test = _load('cifar10')
    assert train.domain_names == ('cifar10',)
    assert len(train.class_names) == 10
    assert train.groups is None
    assert not train.domains.any()
    assert train.read(np.array([3, 1])).shape == (2, 14, 14, 3)
    assert len(train) == len(test) == 9


def test_grey_images_become_rgb():
  with tfds.testing.mock_data(num_examples=3):
    train, _ = _load('mnist')
    image = train.read(np.array([0]))
  assert image.shape == (1, 14, 14, 3)
  assert (image == image[..., :1]).all()


def test_domainnet_domains_are_in_the_authors_order():
  with tfds.testing.mock_data(num_examples=40):
    train, _ = _load('domainnet', num_classes=100)
  assert train.domain_names == (
    'clipart',
    'infograph',
    'painting',
    'quickdraw',
    'real',
    'sketch',
  )
  assert train.labels.max() < 100
  assert len(train.class_names) == 100
  assert set(train.domains) == set(range(6))
  assert (np.diff(train.domains) >= 0).all()


def test_reads_are_by_index_in_any_order():
  with tfds.testing.mock_data(num_examples=5):
    train, _ = _load('cifar10')
    every = train.read(np.arange(5))
    rows = np.array([4, 0, 0])
    np.testing.assert_array_equal(train.read(rows), every[rows])


@pytest.mark.parametrize(
  ('name', 'fields', 'message'),
  [
    ('no_such_set', {}, r"data.name='no_such_set': must be one of"),
    ('emoji_style', {}, r"did you mean 'emoji_styles'\?"),
    ('ag_news_subset', {}, r'has text, but the model .* reads images'),
    ('lm1b', {}, 'must have image and label, or text'),
    ('domainnet', {'domains': ('photo',)}, r"no domain 'photo', only clipart"),
    ('domainnet', {'domains': ('real', 'real')}, 'named twice'),
    ('cifar10', {'num_classes': -1}, r'data.num_classes=-1'),
  ],
)
def test_bad_fields_are_refused(tmp_path, name, fields, message):
  with pytest.raises(ValueError, match=message):
    _load(name, data_dir=str(tmp_path), **fields)


def test_image_size_is_checked():
  with pytest.raises(ValueError, match=r'data.image_size=0: must be at least'):
    corpus.load(config.Data(image_size=0))


@pytest.mark.parametrize('name', ['cifar10', 'domainnet', 'nico'])
def test_unprepared_set_names_the_command(tmp_path, name):
  command = f'launch.prepare --dataset={name}.* --data_dir={tmp_path}`'
  with pytest.raises(FileNotFoundError, match=command):
    _load(name, data_dir=str(tmp_path))


def test_bad_folders_are_refused(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'nowhere/cifar10.*Prepare it'):
    _load('cifar10', data_dir=str(tmp_path / 'nowhere'))
  file = tmp_path / 'file'
  file.touch()
  with pytest.raises(NotADirectoryError, match=r'data.data_dir=.*folder'):
    _load('cifar10', data_dir=str(file))


def test_import_leaves_tensorflow_datasets_alone():
  program = (
    'import sys; from fedjax_tune.data import corpus, partition;'
    "assert 'tensorflow_datasets' not in sys.modules"
  )
  subprocess.run([sys.executable, '-c', program], check=True)


@pytest.mark.parametrize('limit', [examples._IN_MEMORY_BYTES, 0])
def test_fingerprint_is_of_the_content(monkeypatch, limit):
  monkeypatch.setattr(examples, '_IN_MEMORY_BYTES', limit)
  with tfds.testing.mock_data(num_examples=5):
    train, again = (_load('cifar10')[0] for _ in range(2))
    fewer, _ = _load('domainnet', domains=('real',))
  assert train.fingerprint() == again.fingerprint()
  labels = (train.labels + 1) % 10
  others = [
    fewer,
    dataclasses.replace(train, labels=labels),
    dataclasses.replace(train, domains=train.domains + 1),
    dataclasses.replace(train, groups=np.array(list('abcde'))),
    dataclasses.replace(train, inputs=255 - train.read(np.arange(5))),
    train.seen_as([again]),
  ]
  prints = {one.fingerprint() for one in (train, *others)}
  assert len(prints) == len(others) + 1

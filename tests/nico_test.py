import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

from fedjax_tune import config
from fedjax_tune.data import corpus, nico_lists


@pytest.fixture
def folder(tmp_path):
  """A NICO++ of six domains: two training images and a test image each."""
  lists = tmp_path / nico_lists.FOLDER
  lists.mkdir()
  for d, domain in enumerate(nico_lists.DOMAINS):
    # Some of the real folders have a space in their names.
    images = tmp_path / 'images' / domain / 'hot air'
    images.mkdir(parents=True)
    lines = []
    for i in range(3):
      Image.new('RGB', (20 + i, 10), (40 * d, 100, 50 * i)).save(
        images / f'{i}.jpg', quality=95
      )
      lines.append(f'images/{domain}/hot air/{i}.jpg {10 * i + 1}\n')
    (lists / f'{domain}_train.txt').write_text(''.join(lines[:2]))
    (lists / f'{domain}_test.txt').write_text(lines[2])
  return tmp_path


def _load(folder, **fields):
  cfg = config.Data(name='nico', data_dir=str(folder), image_size=14, **fields)
  return corpus.load(cfg)


def test_reads_what_the_lists_say(folder):
  train, test = _load(folder)
  assert train.domain_names == nico_lists.DOMAINS
  assert sorted(train.labels) == [1] * 6 + [11] * 6
  assert list(test.labels) == [21] * 6
  assert list(test.domains) == list(range(6))
  expected = [[40 * d, 100, 100] for d in range(6)]
  centres = test.read(np.arange(6))[:, 7, 7].astype(int)
  np.testing.assert_allclose(centres, expected, atol=4)  # JPEG is lossy.


def test_num_classes_keeps_the_first_labels(folder):
  train, _ = _load(folder, num_classes=22, domains=('rock', 'dim'))
  assert list(train.domains) == [0, 0, 1, 1]
  with pytest.raises(ValueError, match=r"'autumn'.*no test example"):
    _load(folder, num_classes=12)


def test_other_image_kinds_become_rgb(folder):
  path = folder / 'images' / 'autumn' / 'hot air' / '2.jpg'
  Image.new('L', (9, 9), 77).save(path, 'png')
  _, test = _load(folder, domains=('autumn',))
  assert (abs(test.read(np.array([0])).astype(int) - 77) < 3).all()


def test_missing_things_are_named(folder):
  (folder / 'images' / 'dim' / 'hot air' / '1.jpg').unlink()
  with pytest.raises(FileNotFoundError, match=r'dim_train.txt:2: no image'):
    nico_lists.check(folder)
  (folder / nico_lists.FOLDER / 'autumn_test.txt').unlink()
  with pytest.raises(FileNotFoundError, match=r'autumn_test.txt does not'):
    nico_lists.check(folder)
  with pytest.raises(FileNotFoundError, match=r'nowhere does not exist'):
    nico_lists.check(folder / 'nowhere')


@pytest.mark.parametrize('line', ['image.jpg', 'image.jpg 60', 'image.jpg x'])
def test_bad_lines_are_named(folder, line):
  file = folder / nico_lists.FOLDER / 'autumn_train.txt'
  file.write_text(f'{line}\n')
  with pytest.raises(ValueError, match=r'autumn_train.txt:1: .*from 0 to 59'):
    nico_lists.check(folder)


def test_unreadable_image_is_named(folder):
  path = folder / 'images' / 'rock' / 'hot air' / '0.jpg'
  path.write_text('not an image')
  with pytest.raises(ValueError, match=r'hot air/0\.jpg: is no picture that'):
    _load(folder)


def test_prepare_command(folder, tmp_path_factory):
  data_dir = tmp_path_factory.mktemp('data')
  command = [sys.executable, '-m', 'launch.prepare', '--dataset=nico']
  command.append(f'--data_dir={data_dir}')
  refused = subprocess.run(command, capture_output=True, text=True, check=False)
  assert refused.returncode == 2
  assert '--source is empty' in refused.stderr
  command.append(f'--source={folder}')
  for state in ('is prepared', 'was there already'):
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f'nico {state}' in done.stdout
    assert 'test 1, train 2' in done.stdout
  train, _ = _load(data_dir)
  assert len(train) == 12

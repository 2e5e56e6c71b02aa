"""Folders of pictures or texts of the user's own."""

import numpy as np
import pytest
import tiny_own

from fedjax_tune.data import examples, images
from fedjax_tune.data.own import sets

# -- folders


@pytest.mark.parametrize(
  ('folders', 'domains', 'sizes'),
  [
    (('cat', 'dog'), ('root',), (6, 2)),
    (('train/cat', 'train/dog', 'Test/cat', 'Test/dog'), ('root',), (8, 8)),
    (('train/cat', 'train/dog', 'val/cat', 'val/dog'), ('root',), (8, 8)),
    (
      ('art/cat', 'art/dog', 'photo/cat', 'photo/dog'),
      ('art', 'photo'),
      (12, 4),
    ),
    (
      (
        'art/train/cat',
        'art/train/dog',
        'art/test/cat',
        'art/test/dog',
        'photo/train/cat',
        'photo/train/dog',
        'photo/test/dog',
      ),
      ('art', 'photo'),
      (16, 12),
    ),
    # Folders that are all called alike say nothing.
    (('data/cat/images', 'data/dog/images'), ('root',), (6, 2)),
  ],
)
def test_layouts_of_folders(tmp_path, folders, domains, sizes):
  root = tiny_own.pictures(tmp_path / 'root', *folders)
  train, test = tiny_own.load(f'folder:{root}')
  assert train.class_names == ('cat', 'dog')
  assert train.domain_names == domains
  assert (len(train), len(test)) == sizes
  # Each class has examples on both sides, and none is on both.
  assert set(train.labels) == {0, 1}
  assert 1 in test.labels
  shades = lambda found: {
    int(x[0, 0, 0]) for x in found.read(range(len(found)))
  }
  assert shades(train).isdisjoint(shades(test))


def test_pictures_that_stay_on_disk(tmp_path, monkeypatch):
  root = tiny_own.pictures(tmp_path, 'cat', 'dog')
  decoded, _ = tiny_own.load(f'folder:{root}')
  monkeypatch.setattr(examples, '_IN_MEMORY_BYTES', 0)
  read, _ = tiny_own.load(f'folder:{root}')
  assert isinstance(read.inputs, images.Stored)
  every = np.arange(len(read))
  np.testing.assert_array_equal(read.read(every), decoded.read(every))
  (root / 'cat' / '0.png').unlink()
  (root / 'cat' / '1.png').unlink()
  with pytest.raises(ValueError, match=r'cat/\d.png: cannot be read: No such'):
    read.read(every)


def test_text_files_in_folders(tmp_path):
  for folder in ('neg', 'pos'):
    for n in range(3):
      path = tmp_path / folder / f'{n}.txt'
      path.parent.mkdir(exist_ok=True)
      path.write_text(f'{folder} {n}')
  (tmp_path / 'pos' / 'empty.txt').write_text(' \n')
  with pytest.raises(ValueError, match=r'1 row .*pos/empty.txt: text is empty'):
    sets.read(tiny_own.data(f'folder:{tmp_path}'))
  (found,) = sets.read(
    tiny_own.data(f'folder:{tmp_path}', bad_rows='leave_out')
  ).examples.values()
  assert {str(e.content) for part in found.values() for e in part} == {
    f'{name} {n}' for name in ('neg', 'pos') for n in range(3)
  }


@pytest.mark.parametrize(
  ('folders', 'message'),
  [
    ((), 'has no pictures .* and no .txt files; must have CLASS/FILE'),
    (('',), 'its 4 files lie in no folder of a class'),
    (('a/x', 'b/y'), "no folder such as 'x' is in two folders such as 'a'"),
    (('a/x/1', 'a/y/1', 'b/x/2'), 'lies 3 folders deep; must be CLASS/FILE'),
    (
      ('test/cat', 'test/dog'),
      'has test examples alone; must have some to train',
    ),
  ],
)
def test_folders_that_say_no_class(tmp_path, folders, message):
  tiny_own.pictures(tmp_path, *folders)
  with pytest.raises(ValueError, match=message):
    sets.read(tiny_own.data(f'folder:{tmp_path}'))


def test_what_lies_elsewhere_is_named(tmp_path):
  root = tiny_own.pictures(tmp_path, 'cat', 'dog')
  tiny_own.picture(root / 'loose.png', 1)
  tiny_own.picture(root / 'cat' / 'more' / 'deep.png', 2)
  (root / 'cat' / 'notes.csv').write_text('a')
  (root / 'cat' / '.hidden.png').write_text('')
  with pytest.raises(ValueError, match=r'2 rows or files') as caught:
    sets.read(tiny_own.data(f'folder:{root}'))
  assert 'loose.png: lies in no folder of a class' in str(caught.value)
  assert 'cat/more/deep.png: lies 2 folders deep, most lie 1' in str(
    caught.value
  )
  train, _ = tiny_own.load(f'folder:{root}', bad_rows='leave_out')
  assert any(
    '1 file, by name no picture, left out' in note
    for note in train.notes + _.notes
  )


@pytest.mark.parametrize('damage', [b'', b'no picture', b'cut'])
def test_damaged_pictures(tmp_path, damage):
  root = tiny_own.pictures(tmp_path, 'cat', 'dog')
  path = root / 'dog' / '1.png'
  path.write_bytes(path.read_bytes()[:-30] if damage == b'cut' else damage)
  whole = {'name': f'folder:{root}', 'test_share': 0.01}
  wanted = r"dog/1.png: is .*data.bad_rows='leave_out' goes on"
  with pytest.raises(ValueError, match=wanted):
    tiny_own.load(**whole)
  train, test = tiny_own.load(**whole, bad_rows='leave_out')
  assert len(train) + len(test) == 7
  said = [note for note in train.notes + test.notes if 'left out' in note]
  assert len(said) == 1
  assert said[0].endswith(': dog/1.png')

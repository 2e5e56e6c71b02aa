"""Sets in the files of their publishers: DomainNet, NICO++, CIFAR, GLUE."""

import numpy as np
import pyarrow as pa
from pyarrow import parquet
import pytest
import tiny_folders
import tiny_own

from fedjax_tune.data import corpus
from fedjax_tune.data.own import sets, survey


def _listed(root, place='splits', classes=('dog', 'cat')):
  """Writes two domains of pictures and their lists; classes have numbers."""
  (root / place).mkdir(parents=True, exist_ok=True)
  for domain in ('clipart', 'real'):
    for split, numbers in (('train', range(4)), ('test', range(4, 6))):
      lines = []
      for label, name in enumerate(classes):
        tiny_own.pictures(root, f'{domain}/{name}', count=6)
        lines += [f'{domain}/{name}/{n}.png {label}' for n in numbers]
      (root / place / f'{domain}_{split}.txt').write_text('\n'.join(lines))
  return root


@pytest.mark.parametrize('place', ['splits', 'NICO_DG_official', ''])
def test_pictures_are_those_of_the_lists(tmp_path, place):
  root = _listed(tmp_path, place)
  # Not listed, so not read.
  tiny_own.pictures(root, 'sketch/dog', 'sketch/cat')
  train, test = tiny_own.load(f'folder:{root}')
  assert train.domain_names == ('clipart', 'real')
  assert train.class_names == ('dog', 'cat')  # By number, not by name.
  assert (len(train), len(test)) == (16, 8)
  assert train.labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 1] * 2
  assert train.domains.tolist() == [0] * 8 + [1] * 8
  first, _ = tiny_own.load(f'folder:{root}', domains=('real',))
  assert first.labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_lines_of_lists_that_are_nothing(tmp_path):
  root = _listed(tmp_path)
  path = root / 'splits' / 'real_train.txt'
  path.write_text(
    path.read_text() + '\nreal/cat/9.png 1\n../x.png 0\nreal/cat\n'
  )
  with pytest.raises(ValueError, match='3 rows or files'):
    tiny_own.load(f'folder:{root}')
  faults = dict(survey.look(tiny_own.data(f'folder:{root}')).faults)
  assert 'there is no file' in faults['splits/real_train.txt:9']
  assert 'must lie inside' in faults['splits/real_train.txt:10']
  assert 'and the number of a class' in faults['splits/real_train.txt:11']


def test_folders_that_are_no_classes_leave_numbers(tmp_path):
  root = _listed(tmp_path, classes=('a/all', 'b/all'))
  assert sets.read(tiny_own.data(f'folder:{root}')).classes == ('0', '1')


@pytest.mark.parametrize('kind', [10, 100])
def test_cifar(tmp_path, kind):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
  labels = np.array([0, 1, 2, 1, 0, 2], np.uint8)
  coarse = [np.full((6, 1), 9, np.uint8)] if kind == 100 else []
  pixels = images.transpose(0, 3, 1, 2).reshape(6, -1)
  records = np.concatenate([*coarse, labels[:, None], pixels], axis=1)
  names = {10: 'batches.meta.txt', 100: 'fine_label_names.txt'}[kind]
  files = (
    ['train.bin'] if kind == 100 else ['data_batch_1.bin', 'data_batch_2.bin']
  )
  (tmp_path / names).write_text('plane\ncar\nbird\n\n')
  for file, part in zip(
    files, np.array_split(records, len(files)), strict=True
  ):
    part.tofile(tmp_path / file)
  test = tmp_path / ('test.bin' if kind == 100 else 'test_batch.bin')
  records[:3].tofile(test)
  parts = corpus.load(tiny_own.data(f'folder:{tmp_path}', image_size=32))
  assert parts[0].class_names == ('plane', 'car', 'bird')
  for part, count in zip(parts, (6, 3), strict=True):
    assert part.labels.tolist() == labels[:count].tolist()
    np.testing.assert_array_equal(part.read(np.arange(count)), images[:count])
  test.write_bytes(test.read_bytes()[:-1])
  with pytest.raises(ValueError, match='must have whole records of'):
    sets.read(tiny_own.data(f'folder:{tmp_path}'))
  test.unlink()
  with pytest.raises(ValueError, match=r'must have test\w*.bin'):
    sets.read(tiny_own.data(f'folder:{tmp_path}'))


def _glue(folder, columns, splits=('train', 'validation')):
  folder.mkdir()
  for split in splits:
    parquet.write_table(
      pa.table(columns), folder / f'{split}-00000-of-00001.parquet'
    )
  return f'parquet:{folder}'


def test_glue_is_judged_as_glue(tmp_path):
  bert = tiny_folders.write_bert(tmp_path)
  texts = [f'text {i}' for i in range(6)]
  load = lambda name: corpus.load(tiny_own.data(name), bert)
  cola = {'sentence': texts, 'label': [0, 1] * 3, 'idx': list(range(6))}
  train, test = load(_glue(tmp_path / 'cola', cola))
  assert train.task.metrics == ('matthews', 'accuracy')
  assert any('read as glue/cola' in note for note in test.notes)
  pair = {'sentence1': texts, 'sentence2': texts[::-1]}
  scores = [0.0, 5.0, 2.5, 1.25, 3.0, 4.0]
  train, _ = load(_glue(tmp_path / 'stsb', pair | {'label': scores}))
  assert train.task.kind == 'regression'
  assert train.task.metrics == ('pearson', 'spearman')
  np.testing.assert_allclose(train.labels, scores)
  mnli = {'premise': texts, 'hypothesis': texts, 'label': [0, 1, 2] * 2}
  splits = ('train', 'validation_matched', 'validation_mismatched')
  train, test = load(_glue(tmp_path / 'mnli', mnli, splits))
  assert (len(train), len(test)) == (6, 6)
  assert any('validation_mismatched' in note for note in test.notes)
  # Elsewhere it is what its columns say.
  train, _ = load(_glue(tmp_path / 'other', cola))
  assert train.task.metrics == ('accuracy',)

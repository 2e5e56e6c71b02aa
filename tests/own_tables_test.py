"""Tables of the user's own."""

import json

import numpy as np
from PIL import Image
import pyarrow as pa
from pyarrow import parquet
import pytest
import tiny_folders
import tiny_own

from fedjax_tune import config
from fedjax_tune.data import corpus, outlines, partition
from fedjax_tune.data.own import sets, survey
from fedjax_tune.typing import Tokens


@pytest.mark.parametrize('kind', ['csv', 'jsonl', 'parquet', 'npz'])
def test_every_table_says_the_same(tmp_path, kind):
  name = tiny_own.write(tmp_path, kind, tiny_own.rows())
  found = sets.read(tiny_own.data(name))
  (parts,) = found.examples.values()
  assert found.classes == ('n', 'y')
  assert found.has_clients
  every = [*parts['train'], *parts['test']]
  assert len(parts['test']) == 4
  said = sorted((e.content, e.label, e.client) for e in every)
  assert said == sorted(tuple(row.values()) for row in tiny_own.rows())
  # The split is by content, whatever the kind and the order of rows.
  again = sets.read(
    tiny_own.data(
      tiny_own.write(tmp_path, kind, tiny_own.rows()[::-1], 'again')
    )
  )
  other = sets.read(tiny_own.data(name, split_seed=1))
  held = [
    {str(e.content) for e in next(iter(own.examples.values()))['test']}
    for own in (found, again, other)
  ]
  assert held[0] == held[1] != held[2]


def test_pictures_of_all_kinds_are_the_same_pixels(tmp_path):
  root = tiny_own.pictures(
    tmp_path / 'root', 'train/a', 'train/b', 'test/a', 'test/b'
  )
  files = sorted(root.rglob('*.png'))
  rows = [
    {
      'image': str(f.relative_to(tmp_path)),
      'label': f.parent.name,
      'split': f.parent.parent.name,
    }
    for f in files
  ]
  stored = [
    row | {'image': {'bytes': f.read_bytes(), 'path': 'x'}}
    for row, f in zip(rows, files, strict=True)
  ]
  pixels = [
    row | {'image': np.asarray(Image.open(f))}
    for row, f in zip(rows, files, strict=True)
  ]
  names = [
    f'folder:{root}',
    tiny_own.write(tmp_path, 'csv', rows),
    tiny_own.write(tmp_path, 'jsonl', rows),
    tiny_own.write(tmp_path, 'parquet', stored),
    tiny_own.write(tmp_path, 'npz', pixels),
  ]
  whole = None
  for name in names:
    parts = tiny_own.load(name)
    assert [len(part) for part in parts] == [8, 8]
    found = [(part.read(np.arange(8)), part.labels) for part in parts]
    whole = whole or found
    for (images, labels), (wanted, same) in zip(found, whole, strict=True):
      np.testing.assert_array_equal(images, wanted)
      np.testing.assert_array_equal(labels, same)


def test_arrays_by_the_names_of_splits(tmp_path):
  images = np.arange(10, dtype=np.uint8)[:, None, None] + np.zeros(
    (5, 4), np.uint8
  )
  labels = np.arange(10)[:, None] % 2
  for train, test in (('x_train', 'x_test'), ('train_images', 'test_images')):
    label = lambda key: key.replace('x', 'y').replace('images', 'labels')
    arrays = {train: images, label(train): labels}
    arrays |= {test: images[:4], label(test): labels[:4]}
    np.savez(
      tmp_path / 'a.npz', **arrays, class_names=np.array(['even', 'odd'])
    )
    parts = tiny_own.load(f'npz:{tmp_path}/a.npz')
    assert [len(part) for part in parts] == [10, 4]
    assert parts[0].class_names == ('even', 'odd')
    np.testing.assert_array_equal(parts[0].labels, labels[:, 0])


def test_a_folder_of_files_has_a_split_by_their_names(tmp_path):
  for stem, count in (('train-00000', 6), ('train-00001', 4), ('test_x', 3)):
    tiny_own.write(tmp_path, 'csv', tiny_own.rows(count), stem)
  (parts,) = sets.read(tiny_own.data(f'csv:{tmp_path}')).examples.values()
  assert (len(parts['train']), len(parts['test'])) == (10, 3)
  tiny_own.write(tmp_path, 'csv', tiny_own.rows(2), 'more')
  with pytest.raises(ValueError, match=r'more.csv does not say by its name'):
    sets.read(tiny_own.data(f'csv:{tmp_path}'))


def test_classes_that_a_file_lists_and_a_split_without_labels(tmp_path):
  listed = {'names': ['bad', 'good'], '_type': 'ClassLabel'}
  said = json.dumps({'info': {'features': {'label': listed}}})
  for split, labels in (
    ('train', [0, 1, 1]),
    ('validation', [1, 0]),
    ('test', [-1, -1]),
  ):
    table = pa.table(
      {
        'sentence': [f'{split} {i}' for i in range(len(labels))],
        'label': labels,
      }
    )
    table = table.replace_schema_metadata({'huggingface': said})
    parquet.write_table(table, tmp_path / f'{split}-00000-of-00001.parquet')
  found = sets.read(tiny_own.data(f'parquet:{tmp_path}'))
  (parts,) = found.examples.values()
  assert found.classes == ('bad', 'good')
  assert [e.label for e in parts['train']] == ['bad', 'good', 'good']
  assert [e.label for e in parts['test']] == ['good', 'bad']
  assert '2 rows of test without a label left out' in found.notes


_FAULTS = (
  'text,label\n'
  'good one,y\n'
  '"two\nlines",n\n'
  'no label,\n'
  'too,many,fields\n'
  ',y\n'
  'another,n\n'
  'a "quote" inside,y\n'
  'last,"y" n\n'
)


def test_rows_that_cannot_be_used_are_named_by_line(tmp_path):
  (tmp_path / 'rows.csv').write_text(_FAULTS)
  name = f'csv:{tmp_path}/rows.csv'
  found = survey.look(tiny_own.data(name))
  assert found.faults == (
    ('rows.csv:5', 'label is empty'),
    ('rows.csv:6', 'has 3 fields; must have 2'),
    ('rows.csv:7', 'text is empty'),
    ('rows.csv:10', "is no row: ',' expected after '\"'"),
  )
  with pytest.raises(ValueError, match=r'4 rows .*rows.csv:6: has 3 fields'):
    outlines.domain_names(tiny_own.data(name))
  left = sets.read(tiny_own.data(name, bad_rows='leave_out'))
  ((parts,),) = [list(left.examples.values())]
  assert sum(map(len, parts.values())) == 4
  assert '1 row or file left out (text is empty): rows.csv:7' in left.notes


def test_lines_that_are_no_objects(tmp_path):
  (tmp_path / 'rows.jsonl').write_text(
    '{"text": "a", "label": 1}\n\n[1]\n{"text": 3, "label": 1}\n{"te\n'
    '{"text": "b", "label": true}\n{"text": "c", "label": 0.5}\n'
    '{"text": "d", "label": 1}\n{"text": "e", "label": true}\n'
  )
  faults = dict(
    survey.look(tiny_own.data(f'jsonl:{tmp_path}/rows.jsonl')).faults
  )
  assert faults['rows.jsonl:3'].startswith('is list; must be an object')
  assert faults['rows.jsonl:4'] == 'text is int; must be a text'
  assert faults['rows.jsonl:5'].startswith('is not JSON')
  assert "data.task='regression'" in faults['rows.jsonl:7']
  assert len(faults) == 4


@pytest.mark.parametrize('texts', [False, True])
def test_an_archive_without_a_known_name(tmp_path, texts):
  arrays = {'data': np.zeros((4, 8, 8, 3), np.uint8), 'label': np.arange(4) % 2}
  if texts:
    arrays['words'] = np.array(['a b', 'c', 'd', 'e'])
  np.savez(tmp_path / 'a.npz', **arrays)
  with pytest.raises(ValueError, match='none is called as') as caught:
    tiny_own.load(f'npz:{tmp_path}/a.npz')
  said = str(caught.value)
  start = f"data.name='npz:{tmp_path}/a.npz': the columns are 'data', 'label'"
  assert said.startswith(start)
  assert 'data.image_column' in said
  assert ('text' in said) == texts


def test_a_column_of_clients_with_gaps_need_not_be_read(tmp_path):
  lines = [f't{i},{"yn"[i % 2]},{"" if i == 3 else i % 4}' for i in range(20)]
  (tmp_path / 'a.csv').write_text('\n'.join(['text,label,user', *lines]))
  said = (
    r"a\.csv:5: user is empty, the client of the row \(data\.client_column='-'"
  )
  with pytest.raises(ValueError, match=said):
    sets.read(tiny_own.data(f'csv:{tmp_path}/a.csv'))
  own = sets.read(tiny_own.data(f'csv:{tmp_path}/a.csv', client_column='-'))
  assert not own.has_clients
  assert sum(len(part) for part in own.examples['a'].values()) == 20


def test_labels_that_are_arrays_are_named(tmp_path):
  images, labels = np.zeros((4, 8, 8, 3), np.uint8), np.eye(4, dtype=int)
  np.savez(tmp_path / 'a.npz', x=images, y=labels)
  with pytest.raises(ValueError, match="'y' holds ndarray; must hold names or"):
    tiny_own.load(f'npz:{tmp_path}/a.npz')


def test_a_table_none_of_whose_lines_is_a_row(tmp_path):
  (tmp_path / 'a.csv').write_text('text,label\n"never closed,x\nb,y\n')
  with pytest.raises(ValueError, match=r'no rows: a\.csv:2: is no row: unexp'):
    tiny_own.load(f'csv:{tmp_path}/a.csv')


def test_an_archive_names_its_texts_that_are_none(tmp_path):
  texts = np.array([b'\xff', b'b'])
  np.savez(tmp_path / 'a.npz', x_train=texts, y_train=np.arange(2))
  message = r"a\.npz, train: texts must be UTF-8, and b'\\xff' is not"
  with pytest.raises(ValueError, match=message):
    tiny_own.load(f'npz:{tmp_path}/a.npz')


@pytest.mark.parametrize(
  ('header', 'fields', 'message'),
  [
    ('a,b', {}, "the columns are 'a', 'b': none is called as texts"),
    ('text,b', {}, "'text', 'b': none is called as labels .*next_token"),
    ('text,file', {'label_column': 'txt'}, "label_column='txt': .*mean 'text'"),
    ('text,label', {'text_column': 'text,lable'}, "'lable' .*mean 'label'"),
    ('text,text', {}, "rows.csv:1: 'text' must be the name of one column"),
    ('text,', {}, "rows.csv:1: '' must be the name of one column"),
    (
      'text,label',
      {'text_column': 'text', 'image_column': 'label'},
      'must not both be given',
    ),
  ],
)
def test_columns_that_are_not_understood(tmp_path, header, fields, message):
  (tmp_path / 'rows.csv').write_text(f'{header}\nx,y\nz,w\n')
  with pytest.raises(ValueError, match=message):
    sets.read(tiny_own.data(f'csv:{tmp_path}/rows.csv', **fields))


def test_text_and_picture_in_one_table_must_be_told_apart(tmp_path):
  tiny_own.picture(tmp_path / 'a.png', 1)
  tiny_own.picture(tmp_path / 'b.png', 2)
  (tmp_path / 'rows.csv').write_text(
    'caption,file,label,text\nx,a.png,1,u\ny,b.png,2,v\ny,a.png,2,w\ny,b.png,1,t\n'
  )
  name = f'csv:{tmp_path}/rows.csv'
  with pytest.raises(
    ValueError, match=r"'text' may be the text and 'file' the"
  ):
    sets.read(tiny_own.data(name))
  assert sets.read(tiny_own.data(name, text_column='caption')).texts
  assert not sets.read(tiny_own.data(name, image_column='file')).texts


def test_pairs_numbers_and_texts_alone(tmp_path):
  rows = [{'s1': f'a {i}', 's2': f'b {i}', 'score': i / 2} for i in range(10)]
  name = tiny_own.write(tmp_path, 'csv', rows)
  fields = {'text_column': 's1,s2', 'label_column': 'score'}
  with pytest.raises(
    ValueError, match=r"score=0.5 is no class; data.task='regr"
  ):
    sets.read(tiny_own.data(name, **fields))
  bert = tiny_folders.write_bert(tmp_path)
  train, test = corpus.load(
    tiny_own.data(name, task='regression', **fields), bert
  )
  assert train.task.kind == 'regression'
  own = sets.read(tiny_own.data(name, task='regression', **fields))
  assert "columns: text='s1' and 's2', label='score'" in own.notes
  assert set(train.labels) | set(test.labels) == {i / 2 for i in range(10)}
  assert isinstance(train.inputs, Tokens)
  assert train.inputs.types.any()  # The second part of a pair.
  train, _ = corpus.load(
    tiny_own.data(name, task='next_token', text_column='s1'),
    bert,
  )
  assert train.task.kind == 'next_token'


def test_numbers_as_labels_keep_their_order(tmp_path):
  rows = [{'text': f'{i}', 'label': (10, 9, 2)[i % 3]} for i in range(9)]
  for kind in ('csv', 'parquet'):
    assert sets.read(
      tiny_own.data(tiny_own.write(tmp_path, kind, rows))
    ).classes == (
      '2',
      '9',
      '10',
    )
  floats = [row | {'label': float(row['label'])} for row in rows]
  for kind in ('csv', 'parquet'):
    found = sets.read(tiny_own.data(tiny_own.write(tmp_path, kind, floats)))
    assert found.classes == ('2', '9', '10')


def test_a_label_of_ones_own_for_each_row_is_none(tmp_path):
  rows = [{'text': f'{i}', 'label': f'id {i}'} for i in range(12)]
  with pytest.raises(
    ValueError, match='all 12 examples have labels of their own'
  ):
    sets.read(tiny_own.data(tiny_own.write(tmp_path, 'csv', rows)))


def test_domains_and_clients_of_a_table(tmp_path):
  rows = [
    {'text': f't {i}', 'label': i % 2, 'domain': 'ab'[i % 4 < 2], 'site': i % 5}
    for i in range(40)
  ]
  name = tiny_own.write(tmp_path, 'csv', rows)
  bert = tiny_folders.write_bert(tmp_path)
  train, _ = corpus.load(tiny_own.data(name, client_column='site'), bert)
  assert train.domain_names == ('a', 'b')
  assert train.groups is not None
  assert set(train.groups) == set('01234')
  cfg = config.Clients(partition='natural', count=5, min_examples=1)
  owned = partition.partition(cfg, train)
  for rows_of_client in owned.indices:
    assert len(set(train.groups[rows_of_client])) == 1
  (first, _) = corpus.load(tiny_own.data(name, domains=('b',)), bert)
  assert first.domain_names == ('b',)
  with pytest.raises(ValueError, match=r"no domain 'c', only a, b"):
    corpus.load(tiny_own.data(name, domains=('c',)), bert)

"""Labels and texts of prepared sets: what they mean, or set, split and row."""

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tiny_pictures import jpeg
import tiny_sets
import tiny_text

from fedjax_tune import config
from fedjax_tune.data import corpus, text, text_sets

_FEATURES = tfds.features
_IMAGE = _FEATURES.Image(shape=(None, None, 3))
_LABEL = _FEATURES.ClassLabel(names=['a', 'b'])
_PICTURE = jpeg(8, 8)


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  return tiny_text.write_bert(tmp_path_factory.mktemp('bert'))


def _pictures(*labels):
  return [{'image': _PICTURE, 'label': label} for label in labels]


def _texts(*texts):
  return [{'text': t, 'label': i % 2} for i, t in enumerate(texts)]


def _load(folder, tokenizer=None, **fields):
  cfg = config.Data(
    name='tiny', data_dir=str(folder), image_size=8, lengths=(8,), **fields
  )
  return corpus.load(cfg, tokenizer)


@pytest.mark.parametrize(
  ('rows', 'message'),
  [
    (
      {'train': _pictures(0, 1), 'test': _pictures(-1, -1)},
      r'split test: 2 of 2 rows .* row 0: label=-1 must be from 0 to 1;'
      ' -1 marks a row without a label; row 1',
    ),
    (
      {'train': _pictures(0, 1, -1, 1), 'test': _pictures(0, 1)},
      r'split train: 1 of 4 rows .* row \d: label=-1',
    ),
    (
      {'train': _pictures(1, 1, 1), 'test': _pictures(0, 1)},
      r"data.name='tiny': all 3 train examples have the label 1, 'b'; must be",
    ),
    (
      {'train': _pictures(0, 1)},
      r"data.name='tiny': .* train and in one called test or validation; it"
      r' has train \(2\)',
    ),
    (
      {'training': _pictures(0, 1), 'dev': _pictures(0)},
      r'it has training \(2\), dev \(1\)',
    ),
    ({'test': _pictures(0, 1)}, r'it has test \(2\)'),
  ],
)
def test_labels_and_splits(rows, message, tmp_path):
  tiny_sets.write(tmp_path, {'image': _IMAGE, 'label': _LABEL}, rows)
  with pytest.raises(ValueError, match=message):
    _load(tmp_path)


def test_validation_serves_as_test_and_that_is_told(tmp_path):
  rows = {'train': _pictures(0, 1), 'validation': _pictures(1)}
  tiny_sets.write(tmp_path, {'image': _IMAGE, 'label': _LABEL}, rows)
  _, test = _load(tmp_path)
  assert 'test: evaluated on validation, for want of a split test' in test.notes


@pytest.mark.parametrize(
  ('feature', 'label'),
  [
    (_FEATURES.Scalar(np.int64), 1),
    (_FEATURES.Text(), 'a'),
    (_FEATURES.Sequence(_LABEL), [0, 1]),
    (_FEATURES.Tensor(shape=(2,), dtype=np.int64), [0, 1]),
    (_FEATURES.Scalar(np.float32), 1.0),
  ],
)
def test_labels_that_are_not_of_classes(feature, label, tmp_path):
  rows = {split: _pictures(label) for split in ('train', 'test')}
  tiny_sets.write(tmp_path, {'image': _IMAGE, 'label': feature}, rows)
  kind = type(feature).__name__
  with pytest.raises(
    ValueError, match=rf'tiny/1.0.0: label is {kind}; must be'
  ):
    _load(tmp_path)


@pytest.mark.parametrize(
  ('feature', 'image', 'message'),
  [
    (_FEATURES.Text(), 'a.jpg', 'image is Text; must be an Image of 8 or 16'),
    (_FEATURES.Sequence(_IMAGE), [_PICTURE], 'image is Sequence; must be'),
    (
      _IMAGE,
      jpeg(64, 64)[:-300],
      r'test: 2 of 2 pictures .* row 0: is damaged',
    ),
    (_IMAGE, b'<svg/>', r'train: 2 of 2 rows .* row 0: is SVG, a drawing'),
    (
      _FEATURES.Tensor(shape=(2, 2, 3), dtype=np.float32),
      np.full((2, 2, 3), 255, np.float32),
      r'row 0: has float32 from 255 to 255; must lie in \[0, 1\]',
    ),
  ],
)
def test_images_that_are_none(feature, image, message, tmp_path):
  rows = [{'image': image, 'label': k} for k in (0, 1)]
  good = _pictures(0, 1) if 'test: 2' in message else rows
  tiny_sets.write(
    tmp_path,
    {'image': feature, 'label': _LABEL},
    {'train': good, 'test': rows},
  )
  with pytest.raises(ValueError, match=message):
    _load(tmp_path)


def test_images_of_16_bits_and_floats(tmp_path):
  images = {
    'deep': np.full((2, 2, 3), 514, np.uint16),
    'real': np.full((2, 2, 3), 0.2, np.float32),
  }
  for name, image in images.items():
    feature = _FEATURES.Tensor(shape=(2, 2, 3), dtype=image.dtype)
    rows = [{'image': image, 'label': k} for k in (0, 1)]
    features = {'image': feature, 'label': _LABEL}
    splits = {'train': rows, 'test': rows}
    tiny_sets.write(tmp_path / name, features, splits)
    train, _ = _load(tmp_path / name)
    wanted = {'deep': 2, 'real': 51}[name]
    assert (train.read(np.arange(2)) == wanted).all()
    assert train.notes[0].startswith('train: 2 pictures scaled to 8 bits: row')


@pytest.mark.parametrize('name', ['file', 'filename'])
def test_rows_are_called_by_their_file(name, tmp_path):
  rows = [{'image': b'', 'label': 0, name: 'a/b.jpg'}]
  features = {'image': _IMAGE, 'label': _LABEL, name: _FEATURES.Text()}
  tiny_sets.write(tmp_path, features, {'train': rows, 'test': rows})
  with pytest.raises(ValueError, match=r'row 0 \(a/b.jpg\): is empty, 0 byt'):
    _load(tmp_path)


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    (
      'caf\xe9'.encode('latin-1'),
      r"split train: 2 of 2 rows .* row 0: text=b'caf\\xe9' is not UTF-8: .*"
      ' byte 3',
    ),
    ('who'.encode('utf-16'), r"text=b'\\xff\\xfe.* is not UTF-8: .* byte 0"),
    (' \n', 'tiny, split train: all texts are empty'),
  ],
)
def test_texts(text, message, tmp_path, tokenizer):
  rows = {split: _texts(text, text) for split in ('train', 'test')}
  features = {'text': _FEATURES.Text(), 'label': _LABEL}
  tiny_sets.write(tmp_path, features, rows)
  with pytest.raises(ValueError, match=message):
    _load(tmp_path, tokenizer)


def test_empty_texts_and_those_in_both_splits_are_told(tmp_path, tokenizer):
  rows = {'train': _texts('who', '', 'wrote'), 'test': _texts('it', 'who')}
  features = {'text': _FEATURES.Text(), 'label': _LABEL}
  tiny_sets.write(tmp_path, features, rows)
  train, test = _load(tmp_path, tokenizer)
  assert len(train.notes) == len(test.notes) == 1
  assert train.notes[0].startswith('train: 1 text is empty: row ')
  assert test.notes[0].startswith('test: 1 examples are in train, too: row ')


_STSB = text_sets.TEXT_SETS['glue/stsb']
_PAIR = {'sentence1': b'a', 'sentence2': b'b'}


@pytest.mark.parametrize(
  ('row', 'entry', 'message'),
  [
    ({**_PAIR, 'label': np.nan}, _STSB, 'label=nan must be a number from 0'),
    ({**_PAIR, 'label': np.inf}, _STSB, 'label=inf must be a number from 0'),
    ({**_PAIR, 'label': -1.0}, _STSB, 'label=-1.0 must be .* from 0 to 5'),
    (
      {**_PAIR, 'label': np.zeros(2)},
      _STSB,
      r'label=\[0. 0.\] must be a number',
    ),
    (
      {'sentence1': b'a', 'sentence2': None, 'label': 1.0},
      _STSB,
      'sentence2 is NoneType; must be a text',
    ),
    (
      {'text': 'a', 'group': b'\xff', 'label': 0},
      text_sets.TEXT_SETS['friends'],
      r"group=b'\\xff' is not UTF-8",
    ),
    (
      {'title': b'a', 'description': ['b'], 'label': 0},
      text_sets.TEXT_SETS['ag_news_subset'],
      'description is list; must be a text',
    ),
    (
      {'question': 'a', 'context': 3, 'title': 'c', 'answers': {}},
      text_sets.TEXT_SETS['squad'],
      'context is int; must be a text',
    ),
  ],
)
def test_rows_of_texts(row, entry, message):
  with pytest.raises(ValueError, match=message):
    text.read_row(row, entry)


@pytest.mark.parametrize(
  ('starts', 'texts', 'odd'),
  [
    ([4, 9], ['book', 'was'], ()),
    ([], [], ()),
    ([0], ['book'], ('not where answer_start',)),
    ([-8], ['book'], ('not where answer_start',)),
    ([400], ['book'], ('not where answer_start',)),
    ([4, 0], ['book'], ('not as many starts',)),
  ],
)
def test_answers_that_are_elsewhere_are_told(starts, texts, odd):
  answers = {'answer_start': np.array(starts), 'text': texts}
  found = text.inspect_answers('the book was', answers)
  assert len(found) == len(odd)
  assert all(part in note for part, note in zip(odd, found, strict=True))


def _write_domains(folder, *names):
  """Writes two domains of DomainNet, a picture a class, of its colour."""
  for domain, own in zip(('real', 'sketch'), names, strict=True):
    rows = [
      {'image': jpeg(8, 8, colour=colour), 'label': own.index(colour)}
      for colour in own
    ]
    features = {'image': _IMAGE, 'label': _FEATURES.ClassLabel(names=own)}
    splits = {'train': rows, 'test': rows}
    tiny_sets.write(folder, features, splits, name='domainnet', domain=domain)


def _load_domains(folder):
  cfg = config.Data(
    name='domainnet',
    data_dir=str(folder),
    image_size=8,
    domains=('real', 'sketch'),
  )
  return corpus.load(cfg)


def test_classes_mean_the_same_in_every_domain(tmp_path):
  _write_domains(tmp_path, ['red', 'green', 'blue'], ['blue', 'red', 'green'])
  for split in _load_domains(tmp_path):
    assert split.class_names == ('red', 'green', 'blue')
    colours = split.read(np.arange(6))[:, 4, 4].argmax(1)
    np.testing.assert_array_equal(colours, split.labels)
    assert set(split.domains) == {0, 1}


def test_domains_with_other_classes_are_refused(tmp_path):
  _write_domains(tmp_path, ['red', 'green'], ['red', 'blue'])
  message = r"domainnet/sketch/1.0.0: 'blue' is a class of only one of it and"
  with pytest.raises(ValueError, match=message):
    _load_domains(tmp_path)

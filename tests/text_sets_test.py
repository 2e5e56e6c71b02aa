"""Text sets of the catalogue, as mock data, through the loading path."""

from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
import tiny_text

from fedjax_tune import config
from fedjax_tune.data import (
  builders,
  corpus,
  metrics,
  sources,
  text,
  text_sets,
  tokens,
)

_LENGTHS = (16, 32)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tiny_text.write_bert(tmp_path_factory.mktemp('bert'))


def _load(name, folder, **fields):
  cfg = config.Data(name=name, lengths=_LENGTHS, **fields)
  return corpus.load(cfg, tokenizer=folder, pad=tiny_text.BERT_PAD)


@pytest.mark.parametrize(
  ('name', 'kind', 'outputs', 'metrics'),
  [
    ('glue/cola', 'classification', 2, ('matthews', 'accuracy')),
    ('glue/sst2', 'classification', 2, ('accuracy',)),
    ('glue/mrpc', 'classification', 2, ('accuracy', 'f1')),
    ('glue/qqp', 'classification', 2, ('accuracy', 'f1')),
    ('glue/stsb', 'regression', 1, ('pearson', 'spearman')),
    ('glue/mnli', 'classification', 3, ('accuracy',)),
    ('glue/qnli', 'classification', 2, ('accuracy',)),
    ('glue/rte', 'classification', 2, ('accuracy',)),
    ('glue/wnli', 'classification', 2, ('accuracy',)),
    ('ag_news_subset', 'classification', 4, ('accuracy',)),
    ('imdb_reviews', 'classification', 2, ('accuracy',)),
    ('yelp_polarity_reviews', 'classification', 2, ('accuracy',)),
  ],
)
def test_sets_of_the_catalogue(folder, name, kind, outputs, metrics):
  # Similarities of STS-B end at 5.
  with tfds.testing.mock_data(num_examples=6, max_value=5):
    train, test = _load(name, folder)
  task = train.task
  assert (task.kind, task.num_outputs, task.metrics) == (kind, outputs, metrics)
  assert test.task == task
  assert train.domain_names == (name,)
  assert len(train.class_names) == (outputs if kind != 'regression' else 0)
  for split in (train, test):
    assert len(split) == 6
    assert split.lengths is not None
    assert split.labels.shape == split.domains.shape == split.lengths.shape
    wanted = np.float32 if kind == 'regression' else np.int32
    assert split.labels.dtype == wanted
    ids, types = split.read(np.arange(6))
    assert ids.shape == types.shape == (6, 32)
    np.testing.assert_array_equal((ids != 0).sum(1), split.lengths)
    is_pair = name in text_sets.TEXT_SETS and text_sets.TEXT_SETS[name].second
    np.testing.assert_array_equal(types.any(1), bool(is_pair))


@pytest.mark.parametrize('name', ['squad', 'squad/v1.1', 'squad/v2.0'])
def test_squad(folder, name):
  with tfds.testing.mock_data(num_examples=6):
    _, test = _load(name, folder)
  assert test.task.kind == 'span'
  assert test.task.metrics == ('f1', 'exact_match')
  count = len(test)
  assert test.labels.shape == (count, 4)
  for array in (test.groups, test.domains, test.lengths):
    assert array is not None
    assert len(array) == count
  assert test.questions is not None
  assert len(test.questions.contexts) == 6
  assert set(test.questions.question) == set(range(6))
  predicted = {
    'start': test.labels[:, 2],
    'end': test.labels[:, 2],
    'score': np.arange(count) / count,
    'null': np.full(count, -1.0),
  }
  found = metrics.evaluate('span', test.task.metrics, predicted, test.questions)
  assert 0 <= found['exact_match'] <= found['f1'] <= 1


def test_read_cuts_to_a_length(folder):
  with tfds.testing.mock_data(num_examples=4):
    train, _ = _load('ag_news_subset', folder)
  rows = np.array([3, 0, 3])
  whole, cut = train.read(rows), train.read(rows, 16)
  assert cut.ids.shape == (3, 16)
  np.testing.assert_array_equal(cut.ids, whole.ids[:, :16])
  np.testing.assert_array_equal(cut.types, whole.types[:, :16])
  np.testing.assert_array_equal(whole.ids[0], whole.ids[2])


def test_num_classes_filters(folder):
  with tfds.testing.mock_data(num_examples=40):
    train, _ = _load('ag_news_subset', folder, num_classes=3)
  assert set(train.labels) == {0, 1, 2}
  assert train.class_names == ('World', 'Sports', 'Business')
  assert train.task.num_outputs == 3
  assert 0 < len(train) < 40


def test_rows_from_disk_equal_rows_of_mock_data(folder):
  tokenizer = tokens.load(folder)
  rows = [
    {'sentence1': 'Who wrote it?', 'sentence2': 'Ann', 'label': 2.5},
    {'sentence1': 'caf\u00e9', 'sentence2': '', 'label': 0.0},
  ]
  stored = [
    {k: v.encode() if isinstance(v, str) else v for k, v in row.items()}
    for row in rows
  ]
  entry = text_sets.TEXT_SETS['glue/stsb']
  one, other = (text.encode(r, entry, tokenizer, 16, 0) for r in (rows, stored))
  np.testing.assert_array_equal(one.encoded.ids, other.encoded.ids)
  np.testing.assert_array_equal(one.labels, other.labels)
  np.testing.assert_array_equal(one.labels, np.array([2.5, 0], np.float32))


def test_joined_fields_and_groups(folder):
  tokenizer = tokens.load(folder)
  news = [{'title': b'who', 'description': b'wrote the book', 'label': 3}]
  joined = text.encode(
    news, text_sets.TEXT_SETS['ag_news_subset'], tokenizer, 16, 0
  )
  line = [{'text': b'who wrote the book', 'label': 0, 'group': b'Ann'}]
  said = text.encode(line, text_sets.TEXT_SETS['friends'], tokenizer, 16, 0)
  np.testing.assert_array_equal(joined.encoded.ids, said.encoded.ids)
  assert joined.groups is None
  assert said.groups is not None
  assert said.groups.tolist() == ['Ann']


def test_windows_keep_their_group_and_row(folder):
  tokenizer = tokens.load(folder)
  rows = [
    {
      'question': b'who',
      'context': context,
      'title': title,
      'answers': {'answer_start': [0], 'text': [b'the']},
    }
    for title, context in ((b'one', b'the book ' * 30), (b'two', b'the'))
  ]
  made = text.encode(rows, text_sets.TEXT_SETS['squad'], tokenizer, 24, 0)
  assert made.groups is not None
  assert len(made.rows) > 2
  assert [('one', 'two')[r] for r in made.rows] == made.groups.tolist()
  assert made.labels[0, 0] == 3
  assert made.labels[-1, 0] == 3
  assert not made.labels[1:-1, 0].any()


def test_the_table_names_what_the_catalogue_has():
  for name, entry in text_sets.TEXT_SETS.items():
    if name in builders.PACKAGED:
      continue
    features: Any = tfds.builder(name).info.features
    assert text_sets.find(name, features) == entry
    assert set(entry.features) <= set(features)


@pytest.mark.parametrize(
  ('name', 'fields', 'message'),
  [
    ('cifar10', {}, 'has images, but the model of model.weights reads text'),
    ('squad', {'num_classes': 2}, r'num_classes=2: must be 0, squad has no'),
    ('glue/stsb', {'num_classes': 2}, r'num_classes=2: must be 0'),
    ('glue/sst2', {'domains': ('film',)}, r"no domain 'film', only glue/sst2"),
    ('lm1b', {}, r'features text; must have image and label, or text and'),
  ],
)
def test_bad_fields_are_refused(folder, tmp_path, name, fields, message):
  with pytest.raises(ValueError, match=message):
    _load(name, folder, data_dir=str(tmp_path), **fields)


def test_empty_domain_is_refused(folder, monkeypatch):
  monkeypatch.setattr(sources, 'iterate', lambda *_args: iter(()))
  with (
    tfds.testing.mock_data(num_examples=1),
    pytest.raises(ValueError, match=r"'ag_news_subset' .* no train example"),
  ):
    _load('ag_news_subset', folder)


@pytest.mark.parametrize('name', ['glue/mnli', 'squad/v2.0', 'imdb_reviews'])
def test_unprepared_set_names_the_command(folder, tmp_path, name):
  command = f'launch.prepare --dataset={name} --data_dir={tmp_path}'
  with pytest.raises(FileNotFoundError, match=command):
    _load(name, folder, data_dir=str(tmp_path))


def test_missing_tokenizer_is_refused(tmp_path):
  with (
    tfds.testing.mock_data(num_examples=2),
    pytest.raises(FileNotFoundError, match=r'has no tokenizer'),
  ):
    _load('glue/sst2', tmp_path)

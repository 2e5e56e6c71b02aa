"""What is kept on disk is what would be made, or is made again."""

import json
import multiprocessing
import pathlib

import numpy as np
import pytest
import tiny_text

from fedjax_tune.data import array_cache, digest, examples, images, tokens

_TEXTS = ['Who wrote the book?', '', 'written by Ann Lee ' * 4]


@pytest.fixture(autouse=True)
def _keep_all(monkeypatch):
  monkeypatch.setattr(tokens, '_FEW', 0)
  monkeypatch.setattr(examples, '_FEW', 0)


@pytest.fixture
def made(monkeypatch):
  """Counts how often texts were tokenised."""
  calls, pack = [], tokens.pack
  monkeypatch.setattr(
    tokens, 'pack', lambda *args: (calls.append(1), pack(*args))[1]
  )
  return calls


def _tokens(folder, tmp_path, first=_TEXTS, second=None, length=12):
  cache = array_cache.Cache(tmp_path / 'arrays')
  loaded = tokens.load(folder)
  pad = tiny_text.BERT_PAD
  found = tokens.encode(loaded, first, second, length, pad, cache)
  return found, cache.notes


def _check(found, folder, first=_TEXTS, second=None, length=12):
  loaded = tokens.load(folder)
  wanted = tokens.encode(loaded, first, second, length, tiny_text.BERT_PAD)
  for name in ('ids', 'types', 'lengths'):
    got, want = getattr(found, name), getattr(wanted, name)
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got, want)


def _file(tmp_path) -> pathlib.Path:
  (path,) = (tmp_path / 'arrays').iterdir()
  return path


def test_kept_tokens_are_those_that_were_made(tmp_path, made):
  folder = tiny_text.write_bert(tmp_path / 'model')
  for calls in (1, 2):
    found, notes = _tokens(folder, tmp_path)
    _check(found, folder)
    assert not notes
    assert len(made) == 1 + calls  # `_check` makes them, too.


def test_a_call_before_changes_no_key(tmp_path, made):
  """A tokenizer keeps the truncation that was asked of it last."""
  folder = tiny_text.write_bert(tmp_path / 'model')
  cache, loaded = array_cache.Cache(tmp_path / 'arrays'), tokens.load(folder)
  for length in (12, 5, 12):
    found = tokens.encode(loaded, _TEXTS, None, length, 0, cache)
    _check(found, folder, length=length)
  assert len(made) == 2 + 3  # `_check` makes them, too.


@pytest.mark.parametrize(
  'change',
  [
    {'first': [*_TEXTS[:-1], 'the book']},
    {'first': _TEXTS[::-1]},
    {'first': [_TEXTS[0] + _TEXTS[1], *_TEXTS[2:], '']},
    {'second': ['by', 'the', '']},
    {'length': 9},
  ],
)
def test_other_texts_are_made_anew(tmp_path, made, change):
  folder = tiny_text.write_bert(tmp_path / 'model')
  _tokens(folder, tmp_path)
  found, _ = _tokens(folder, tmp_path, **change)
  assert len(made) == 2
  _check(found, folder, **change)


def _lower(folder):
  path = folder / 'tokenizer.json'
  said = json.loads(path.read_text())
  said['normalizer']['lowercase'] = False
  path.write_text(json.dumps(said))


def _split(folder):
  path = folder / 'tokenizer_config.json'
  said = json.loads(path.read_text())
  path.write_text(json.dumps(said | {'split_special_tokens': True}))


@pytest.mark.parametrize('change', [_lower, _split])
def test_another_tokenizer_makes_them_anew(tmp_path, made, change):
  folder = tiny_text.write_bert(tmp_path / 'model')
  _tokens(folder, tmp_path)
  change(folder)
  found, _ = _tokens(folder, tmp_path)
  assert len(made) == 2
  _check(found, folder)


def test_other_code_makes_them_anew(tmp_path, made, monkeypatch):
  folder = tiny_text.write_bert(tmp_path / 'model')
  _tokens(folder, tmp_path)
  source = array_cache.inspect.getsource
  monkeypatch.setattr(
    array_cache.inspect, 'getsource', lambda module: source(module) + '#'
  )
  _tokens(folder, tmp_path)
  assert len(made) == 2


def _cut(content):
  return content[: len(content) // 2]


def _flip(content):
  at = len(content) // 3
  return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize(
  'damage', [_cut, _flip, lambda _: b'', lambda _: b'other']
)
def test_a_damaged_file_is_made_again(tmp_path, made, damage):
  folder = tiny_text.write_bert(tmp_path / 'model')
  _tokens(folder, tmp_path)
  path = _file(tmp_path)
  path.write_bytes(damage(path.read_bytes()))
  found, notes = _tokens(folder, tmp_path)
  assert notes == [f'{path} was damaged, and is made again']
  _check(found, folder)
  made.clear()
  _, notes = _tokens(folder, tmp_path)
  assert not notes
  assert not made


def test_no_flipped_bit_goes_unseen(tmp_path):
  cache, wanted = array_cache.Cache(tmp_path), np.arange(5)
  cache.get('x', (), lambda: {'a': wanted})
  (path,) = tmp_path.iterdir()
  whole = path.read_bytes()
  for at in range(0, len(whole), 3):
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
    got = cache.get('x', (), lambda: {'a': wanted})
    np.testing.assert_array_equal(got['a'], wanted)
    assert got['a'].dtype == wanted.dtype


def test_files_of_another_key_are_not_taken(tmp_path):
  """A file that was written whole, but holds other arrays than its seal."""
  cache = array_cache.Cache(tmp_path)
  numbers = {'a': np.arange(3)}
  cache.get('x', (), lambda: numbers)
  (path,) = tmp_path.iterdir()
  with np.load(path) as file:
    arrays = dict(file)
  np.savez(path, **{**arrays, 'a': np.arange(3) + 1})
  got = cache.get('x', (), lambda: numbers)
  np.testing.assert_array_equal(got['a'], numbers['a'])
  assert len(cache.notes) == 1


def _fail(*_, **__):
  raise PermissionError(13, 'Permission denied')


@pytest.mark.parametrize('name', ['mkdir', 'open'])
def test_a_folder_that_can_not_be_written_is_said_once(
  tmp_path, monkeypatch, name
):
  folder = tiny_text.write_bert(tmp_path / 'model')
  loaded = tokens.load(folder)
  cache = array_cache.Cache(tmp_path / 'arrays')
  with monkeypatch.context() as patch:
    patch.setattr(pathlib.Path, name, _fail)
    found = tokens.encode(loaded, _TEXTS, None, 12, 0, cache)
  (note,) = cache.notes
  assert note == (
    f'{tmp_path / "arrays"} can not be written (Permission denied): what it'
    ' would keep, every run makes anew'
  )
  _check(found, folder)
  assert not list(tmp_path.glob('arrays/*'))


def test_a_file_in_place_of_the_folder_is_no_error(tmp_path):
  (tmp_path / 'arrays').write_text('')
  folder = tiny_text.write_bert(tmp_path / 'model')
  found, (note,) = _tokens(folder, tmp_path)
  assert 'can not be written' in note
  _check(found, folder)


def _make_many(folder, start, results):
  start.wait()
  for number in range(40):
    cache = array_cache.Cache(folder)
    wanted = np.arange(5000) + number
    got = cache.get(number, (), lambda w=wanted: {'a': w})
    if cache.notes or not np.array_equal(got['a'], wanted):
      results.put(cache.notes or 'other numbers')
  results.put('done')


def test_two_processes_do_not_disturb_each_other(tmp_path):
  context = multiprocessing.get_context('spawn')
  start, results = context.Event(), context.Queue()
  workers = [
    context.Process(target=_make_many, args=(tmp_path, start, results))
    for _ in range(2)
  ]
  for worker in workers:
    worker.start()
  start.set()
  for worker in workers:
    worker.join()
  assert [results.get(timeout=5) for _ in workers] == ['done', 'done']
  assert len(list(tmp_path.iterdir())) == 40


def test_large_arrays_are_not_kept(tmp_path, monkeypatch):
  monkeypatch.setattr(array_cache, '_MOST_BYTES', 23)
  cache = array_cache.Cache(tmp_path / 'arrays')
  cache.get('x', (), lambda: {'a': np.zeros(3)})
  assert not (tmp_path / 'arrays').exists()


def test_few_texts_leave_no_files(tmp_path, monkeypatch):
  monkeypatch.setattr(tokens, '_FEW', 1000)
  _tokens(tiny_text.write_bert(tmp_path / 'model'), tmp_path)
  assert not (tmp_path / 'arrays').exists()


def test_kept_pictures_are_those_that_were_decoded(tmp_path, monkeypatch):
  rng = np.random.default_rng(0)
  source = [{'image': x} for x in rng.integers(0, 256, (5, 9, 7, 3), np.uint8)]

  def stored(rows, size=4):
    where = np.array([(0, i) for i in rows])
    contents = digest.of([source[i]['image'] for i in rows])
    names = [str(i) for i in rows]
    return images.Stored([source], where, names, size, contents, 'a set')

  calls, decode = [], images.Stored.__getitem__
  monkeypatch.setattr(
    images.Stored,
    '__getitem__',
    lambda *args: (calls.append(1), decode(*args))[1],
  )
  cache = array_cache.Cache(tmp_path)
  for rows, size in [([0, 1], 4), ([1, 0], 4), ([0, 1], 5), ([0, 1], 4)]:
    got = examples._decode(stored(rows, size), cache)
    np.testing.assert_array_equal(got, decode(stored(rows, size), np.arange(2)))
    assert got.dtype == np.uint8
  assert len(calls) == 3
  assert not cache.notes

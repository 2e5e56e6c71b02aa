"""Files of a tokenizer that say more than their vocabulary, or nonsense."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
import tiny_folders
import tiny_text

from fedjax_tune import config
from fedjax_tune.data import corpus, tokens
from fedjax_tune.data.tasks import Task
from fedjax_tune.models import peft, pretrained, sizes, tiers
from fedjax_tune.training import build
from fedjax_tune.typing import Tokens

_VOCAB = (
  '[PAD]',
  '[UNK]',
  '[CLS]',
  '[SEP]',
  '[MASK]',
  'the',
  'The',
  'f',
  '##o',
)


@pytest.fixture(name='folder')
def _folder(tmp_path):
  (tmp_path / 'vocab.txt').write_text('\n'.join(_VOCAB))
  return tmp_path


def _write(folder, **files: Any) -> None:
  """Writes JSON files; of tokenizer.json, that of tiny_text is changed."""
  for name, content in files.items():
    if name == 'tokenizer':
      tiny_text.write_bert(folder)
      built = json.loads((folder / 'tokenizer.json').read_text())
      content = built | content
    (folder / f'{name}.json').write_text(json.dumps(content))


def _spell(folder, text: str) -> list[str]:
  """Returns the tokens of a text, without what stands around it."""
  return tokens.load(folder).encode(text, add_special_tokens=False).tokens


def test_an_added_token_is_one(folder):
  _write(folder, added_tokens={'foo': 9, '<X>': 10})
  assert _spell(folder, 'foo the Foo <X>') == ['foo', 'the', 'foo', '<x>']
  (folder / 'added_tokens.json').unlink()
  assert _spell(folder, 'foo the') == ['f', '##o', '##o', 'the']


def test_special_tokens_are_tokens_unless_told_otherwise(folder):
  assert _spell(folder, 'the [MASK]') == ['the', '[MASK]']
  _write(folder, tokenizer_config={'split_special_tokens': True})
  assert _spell(folder, 'the [MASK]') == ['the', '[UNK]', '[UNK]', '[UNK]']
  _write(
    folder,
    tokenizer_config={'additional_special_tokens': ['@USER']},
    added_tokens={'@USER': 9},
  )
  assert _spell(folder, '@USER the @user') == ['@USER', 'the', '[UNK]', '[UNK]']


def test_the_configuration_has_the_word_over_lower_case(folder):
  """tokenizer.json of tiny_text lower-cases."""
  _write(
    folder,
    tokenizer={},
    tokenizer_config={
      'tokenizer_class': 'BertTokenizer',
      'do_lower_case': True,
    },
  )
  assert _spell(folder, 'THE') == ['the']
  _write(
    folder,
    tokenizer_config={
      'tokenizer_class': 'BertTokenizer',
      'do_lower_case': False,
    },
  )
  assert _spell(folder, 'THE') == ['[UNK]']


def test_line_ends_are_no_part_of_a_token(folder):
  (folder / 'vocab.txt').write_bytes('\r\n'.join((*_VOCAB, '')).encode())
  assert _spell(folder, 'the') == ['the']


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'[PAD]\n\xff\xfe', 'vocab.txt is not UTF-8'),
    (b'\xef\xbb\xbf[PAD]', 'vocab.txt must not begin with a byte order mark'),
    (b'[PAD]\nthe\na\nthe\n', "vocab.txt: lines 2 and 4 both say 'the'"),
    (b'[PAD]\n[UNK]\n[SEP]\nthe', r'vocabulary has no \[CLS\]'),
    (b'', r'vocabulary has no \[UNK\], \[CLS\], \[SEP\]'),
  ],
)
def test_bad_vocabularies(folder, content, message):
  (folder / 'vocab.txt').write_bytes(content)
  with pytest.raises(ValueError, match=message):
    tokens.load(folder)


_CASED = {'type': 'BertNormalizer', 'lowercase': False}
_CASED |= {'clean_text': True, 'handle_chinese_chars': True}
_CASED |= {'strip_accents': None}
_CLASS = {'tokenizer_class': 'BertTokenizer'}


@pytest.mark.parametrize(
  ('files', 'message'),
  [
    ({'tokenizer_config': [1]}, 'must hold a JSON object'),
    (
      {'tokenizer_config': {'do_lower_case': 'no'}},
      "case='no' must be true or",
    ),
    ({'tokenizer_config': {'truncation_side': 'left'}}, "side='left' is not"),
    (
      {'tokenizer_config': {'never_split': ['x']}},
      r"never_split=\['x'\] is not",
    ),
    (
      {'tokenizer_config': {'do_basic_tokenize': False}},
      'basic_tokenize=False',
    ),
    ({'tokenizer_config': {'auto_map': {'x': 'y'}}}, 'auto_map=.* is not supp'),
    (
      {'tokenizer_config': {'tokenizer_class': 'T5Tokenizer'}},
      "class='T5Tokenizer' is not supported, only BertTokenizer",
    ),
    (
      {'tokenizer_config': {'extra_special_tokens': 'abc'}},
      "config.json: extra_special_tokens='abc' must be a list of tokens",
    ),
    (
      {'special_tokens_map': {'additional_special_tokens': 7}},
      'map.json: additional_special_tokens=7 must be a list of tokens',
    ),
    (
      {'tokenizer_config': {'model_input_names': 'input_ids'}},
      "model_input_names='input_ids' must be a list of names",
    ),
    ({'tokenizer_config': {'unk_token': 3}}, 'unk_token has 3, which is not a'),
    (
      {'tokenizer_config': {'cls_token': None}},
      'cls_token=None must be a token',
    ),
    (
      {'added_tokens': {'foo': 12}},
      "'foo' is number 12 .* number 9 of the voc",
    ),
    ({'added_tokens': {'foo': 'x'}}, "'foo' must have a number of its own"),
    (
      {'tokenizer_config': {'added_tokens_decoder': {'9': 'foo'}}},
      "decoder has 'foo', which is not a token",
    ),
    ({'config': {'pad_token_id': 5}}, r"pad_token_id=5 must be 0, .*'\[PAD\]'"),
    # Beside tokenizer.json, whose class builds it anew.
    (
      {'tokenizer': {'normalizer': _CASED}, 'tokenizer_config': _CLASS},
      'normalizer has lowercase=False, .* True; say do_lower_case in tok',
    ),
    (
      {'tokenizer': {'pre_tokenizer': None}, 'tokenizer_config': _CLASS},
      "pre_tokenizer has type=None, .*'BertPreTokenizer'; tokenizer_class='Pre",
    ),
    (
      {'tokenizer': {}, 'tokenizer_config': _CLASS | {'cls_token': '[SEP]'}},
      r"puts \['\[CLS\]', '\[SEP\]'\] around .* \['\[SEP\]', '\[SEP\]'\]",
    ),
    # Which takes it as it is.
    ({'tokenizer': {}, 'tokenizer_config': {'do_lower_case': False}}, None),
    (
      {
        'tokenizer': {},
        'tokenizer_config': {
          'tokenizer_class': 'PreTrainedTokenizerFast',
          'do_lower_case': False,
        },
      },
      'do_lower_case=False, but tokenizer.json, .* as it is, has lowercase=True',
    ),
    (
      {
        'tokenizer': {},
        'tokenizer_config': {'tokenizer_class': 'LlamaTokenizer'},
      },
      "model of type 'WordPiece' is not that of .* 'BPE'",
    ),
  ],
)
def test_what_disagrees_is_refused(folder, files, message):
  _write(folder, config={'model_type': 'bert'})
  _write(folder, **files)
  if message is None:  # Said clearly, so that it is heeded.
    tokens.load(folder)
    return
  with pytest.raises(ValueError, match=message):
    tokens.load(folder)


def test_missing_files_are_named(folder):
  (folder / 'vocab.txt').rename(folder / 'vocab.json')
  _write(folder, config={'model_type': 'roberta'})
  with pytest.raises(FileNotFoundError, match='is missing'):
    tokens.load(folder)
  _write(folder, tokenizer_config={'tokenizer_class': 'LlamaTokenizer'})
  with pytest.raises(
    FileNotFoundError, match='json is missing; LlamaTokenizer'
  ):
    tokens.load(folder)


def test_tokens_beyond_the_model_are_refused(folder):
  tokens.load(folder, 9)
  tokens.load(folder, 99)
  with pytest.raises(ValueError, match=r"'##o' of number 8, but .* 8 tokens"):
    tokens.load(folder, 8)
  _write(folder, added_tokens={'foo': 9})
  with pytest.raises(ValueError, match=r"'foo' of number 9, but .* 9 tokens"):
    tokens.load(folder, 9)


def test_a_run_beyond_its_model_is_refused(tmp_path, monkeypatch):
  """Before its data are read: they would become NaN."""
  monkeypatch.delattr(corpus, 'load')
  small = dataclasses.replace(tiny_folders.BERT, vocab=60)
  experiment = config.Experiment(
    model=config.Model(weights=tiny_folders.write_bert(tmp_path, small)),
    data=config.Data(name='ag_news_subset', lengths=(16,)),
    clients=config.Clients(
      partition='iid', budgets=(), cohort='uniform', cohort_size=1
    ),
  )
  with (
    tfds.testing.mock_data(num_examples=4),
    pytest.raises(ValueError, match=r'of number \d+, but .* 60 tokens'),
  ):
    build.build(experiment)


_SIZES = sizes.TextConfig(1, 4, 1, 4, vocab=9, positions=8, types=1)


@pytest.mark.parametrize(
  ('ids', 'types', 'message'),
  [
    ([2, 8, 3], [0, 0, 0], None),
    ([2, 9, 3], [0, 0, 0], 'has token 9, but .* vectors for 9 tokens'),
    ([2, 8, 3], [0, 0, 1], 'type 1, but the model .* knows 1 types'),
  ],
)
def test_what_the_model_has_no_vector_for(ids, types, message):
  """A token that the vocabulary lacks, and BERT with a single type."""
  inputs = Tokens(np.array([ids], np.int32), np.array([types], np.int32))
  zeros = np.zeros(1, np.int32)
  split = corpus.Corpus(
    zeros, zeros, None, ('x',), ('a',), inputs, Task('classification', 1)
  )
  weights = pretrained.Pretrained(_SIZES, {}, 'the folder')
  if message is None:
    peft.check_tokens(split, weights)
    return
  with pytest.raises(ValueError, match=message):
    peft.check_tokens(split, weights)


def test_tiers_that_split_special_tokens_read_apart(tmp_path):
  folders = [tiny_folders.write_bert(tmp_path / name) for name in 'ab']
  found = tuple(
    tiers.Tier(
      name, pretrained.Pretrained(tiny_folders.BERT, {}, '', (), folder), {}
    )
    for name, folder in zip('ab', folders, strict=True)
  )
  assert tiers.readers(found) == {'a': 0, 'b': 0}
  path = tmp_path / 'b' / 'bert' / 'tokenizer_config.json'
  settings = json.loads(path.read_text()) | {'split_special_tokens': True}
  path.write_text(json.dumps(settings))
  assert tiers.readers(found) == {'a': 0, 'b': 1}

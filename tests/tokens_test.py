import json

import numpy as np
import pytest
import tiny_text
import transformers

from fedjax_tune.data import tokens

_TEXTS = [
  'Who wrote the book?',
  '',
  "It's Ann-Lee's 2nd book, written by the way; CAF\u00c9!",
  'zebra ' * 30,
  'a',
]
_SECOND = ['', 'The book was written by Ann Lee.' * 5, 'x', 'the ' * 40, 'b c']
_WRITERS = {
  'bert': (tiny_text.write_bert, tiny_text.BERT_PAD),
  'roberta': (tiny_text.write_roberta, tiny_text.ROBERTA_PAD),
}


@pytest.fixture(params=_WRITERS)
def folder_and_pad(request, tmp_path):
  write, pad = _WRITERS[request.param]
  return write(tmp_path), pad


@pytest.mark.parametrize('second', [None, _SECOND])
@pytest.mark.parametrize('max_length', [7, 20, 400])
def test_equals_transformers(folder_and_pad, second, max_length):
  folder, pad = folder_and_pad
  encoded = tokens.encode(tokens.load(folder), _TEXTS, second, max_length, pad)
  wanted = transformers.AutoTokenizer.from_pretrained(folder)(
    _TEXTS,
    second,
    truncation='longest_first',
    max_length=max_length,
    padding='max_length',
    return_token_type_ids=True,
    return_tensors='np',
  )
  np.testing.assert_array_equal(encoded.ids, wanted['input_ids'])
  np.testing.assert_array_equal(encoded.types, wanted['token_type_ids'])
  np.testing.assert_array_equal(
    encoded.lengths, wanted['attention_mask'].sum(-1)
  )
  assert encoded.ids.dtype == encoded.types.dtype == np.int32


@pytest.mark.parametrize('built', [True, False])
def test_types_are_given_where_the_files_say_so(tmp_path, built):
  write = tiny_text.write_bert if built else tiny_text.write_vocab
  folder = write(tmp_path)
  path = folder / 'tokenizer_config.json'
  said = json.loads(path.read_text()) if built else {}
  for inputs in (['input_ids'], ['input_ids', 'token_type_ids'], None):
    path.write_text(json.dumps(said | {'model_input_names': inputs}))
    loaded = tokens.load(folder)
    encoded = tokens.encode(loaded, ['who'], ['the book'], 8, 0)
    # Silent files leave it to the class, here of BERT's or of no family.
    has = inputs[1:] if inputs else not built
    assert list(encoded.types[0]) == [0, 0, 0, *[int(bool(has))] * 3, 0, 0]
    spelled = [loaded.id_to_token(i) for i in encoded.ids[0][:6]]
    assert spelled == ['[CLS]', 'who', '[SEP]', 'the', 'book', '[SEP]']


def test_tokens_may_not_be_drawn(tmp_path):
  folder = tiny_text.write_letters(tmp_path)
  path = folder / 'tokenizer.json'
  built = json.loads(path.read_text())
  built['model']['dropout'] = 0.5
  path.write_text(json.dumps(built))
  with pytest.raises(ValueError, match=r'dropout=0\.5, which must be null'):
    tokens.load(folder)


def test_vocab_alone_is_enough(tmp_path):
  full = tokens.load(tiny_text.write_bert(tmp_path / 'full'))
  vocab = tokens.load(tiny_text.write_vocab(tmp_path / 'vocab'))
  for second in (None, _SECOND):
    one = tokens.encode(full, _TEXTS, second, 16, 0)
    other = tokens.encode(vocab, _TEXTS, second, 16, 0)
    np.testing.assert_array_equal(one.ids, other.ids)
    np.testing.assert_array_equal(one.types, other.types)


def test_vocab_heeds_its_settings(tmp_path):
  folder = tiny_text.write_vocab(tmp_path)
  ids = {}
  for lower in ('true', 'false'):
    settings = f'{{"do_lower_case": {lower}}}'
    (folder / 'tokenizer_config.json').write_text(settings)
    ids[lower] = tokens.encode(tokens.load(folder), ['THE'], None, 3, 0).ids
  vocab = (folder / 'vocab.txt').read_text().split('\n')
  assert [vocab[i] for i in ids['true'][0]] == ['[CLS]', 'the', '[SEP]']
  assert [vocab[i] for i in ids['false'][0]] == ['[CLS]', '[UNK]', '[SEP]']


def test_no_text_holds_padding(folder_and_pad):
  """Nothing would attend to it; the user may say that it is text."""
  folder, pad = folder_and_pad
  texts = ['a', 'a [PAD] <pad> b']
  with pytest.raises(ValueError, match=f'pad={pad}: text 1 .* spells the pad'):
    tokens.encode(tokens.load(folder), texts, None, 40, pad)
  file = folder / 'tokenizer_config.json'
  settings = json.loads(file.read_text()) | {'split_special_tokens': True}
  file.write_text(json.dumps(settings))
  encoded = tokens.encode(tokens.load(folder), texts, None, 40, pad)
  np.testing.assert_array_equal(
    encoded.ids == pad, np.arange(40) >= encoded.lengths[:, None]
  )


def test_many_texts_are_encoded_in_order(tmp_path, monkeypatch):
  tokenizer = tokens.load(tiny_text.write_bert(tmp_path))
  texts = [f'book {i}' for i in range(20)]
  whole = tokens.encode(tokenizer, texts, None, 8, 0)
  monkeypatch.setattr(tokens, '_CHUNK', 7)
  chunked = tokens.encode(tokenizer, texts, None, 8, 0)
  np.testing.assert_array_equal(whole.ids, chunked.ids)
  assert len(np.unique(whole.ids, axis=0)) == 20


def test_wrong_padding_is_refused(tmp_path):
  tokenizer = tokens.load(tiny_text.write_roberta(tmp_path))
  with pytest.raises(ValueError, match=r'pad=0: text 0 .* of one model'):
    tokens.encode(tokenizer, ['a'], None, 8, 0)


@pytest.mark.parametrize(('second', 'least'), [(None, 3), (['b'], 5)])
def test_too_few_tokens_are_refused(tmp_path, second, least):
  tokenizer = tokens.load(tiny_text.write_bert(tmp_path))
  assert tokens.encode(tokenizer, ['a'], second, least, 0).lengths == [least]
  with pytest.raises(ValueError, match=f'max_length={least - 1}: .* {least}'):
    tokens.encode(tokenizer, ['a'], second, least - 1, 0)


def test_bad_folders_are_refused(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'has no tokenizer'):
    tokens.load(tmp_path)
  (tmp_path / 'tokenizer.model').touch()
  with pytest.raises(FileNotFoundError, match=r'; tokenizer.model is not read'):
    tokens.load(tmp_path)
  (tmp_path / 'vocab.txt').write_text('[CLS]\nword')
  with pytest.raises(ValueError, match=r'vocabulary has no \[UNK\], \[SEP\]'):
    tokens.load(tmp_path)
  (tmp_path / 'tokenizer.json').write_text('{}')
  with pytest.raises(ValueError, match=r'tokenizer.json is not a tokenizer'):
    tokens.load(tmp_path)

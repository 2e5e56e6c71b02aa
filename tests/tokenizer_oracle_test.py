"""Any folder's tokenizer gives the ids of `transformers`, or is refused.

Folders are drawn: which files there are, what each says, and where two of them
disagree. A folder whose files agree may not be refused.
"""

from collections.abc import Callable
import json
import pathlib
import shutil
import string
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors
import transformers

from fedjax_tune.data import tokens

# A drawn folder: its files, and whether they agree.
Folder = tuple[dict[str, Any], bool]

_SPECIAL = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]')
_LETTERS = string.ascii_letters + string.digits + '?.!,\'"-[]<>/\u00e9\u4e2d'
_WORDS = ('the', 'The', 'caf\u00e9', 'cafe', 'book', '##ook', '[', 'foo', 'bar')
_WORDPIECES = {
  t: i
  for i, t in enumerate(
    dict.fromkeys(
      (*_SPECIAL, *_LETTERS, *(f'##{c}' for c in _LETTERS), *_WORDS)
    )
  )
}
_BYTES = ['<s>', '<pad>', '</s>', '<unk>', '<mask>']
_BYTES += sorted(pre_tokenizers.ByteLevel.alphabet())
_MERGES = [('t', 'h'), ('th', 'e'), ('\u0120', 'the'), ('o', 'o')]
_BLANK = '\u2581'
_PIECES = ['<unk>', '<s>', '</s>', *(f'<0x{b:02X}>' for b in range(256))]
_PIECES += [_BLANK, *_LETTERS]
_PIECE_MERGES = [('t', 'h'), ('th', 'e'), (_BLANK, 'the'), ('o', 'o')]

_SPELLED = (
  '[CLS]', '[SEP]', '[MASK]', '[mask]', '<s>', '</s>', '<mask>', 'foo', 'FOO',
  'foobar', 'the book', 'The  caf\u00e9', 'cafe\u0301', '\u4e2d\u6587', '\x00\x07',
  '\ufffd', '\t\n', '\U0001f600', '<x>', '<X>', '\u2581the', ' the', '',
)  # fmt: skip
_TEXT = st.lists(
  st.sampled_from(_SPELLED) | st.text(max_size=8), max_size=6
).map(' '.join) | st.lists(st.sampled_from(_SPELLED), max_size=4).map(''.join)


def _dump(tokenizer: tokenizers.Tokenizer) -> dict[str, Any]:
  return json.loads(tokenizer.to_str())


def _with_blocks(draw: Any, built: dict[str, Any], pad: str) -> dict[str, Any]:
  """Puts blocks in that would cut and pad, unasked."""
  number = built['model']['vocab'].get(pad, 0)
  tokenizer = tokenizers.Tokenizer.from_str(json.dumps(built))
  if draw(st.booleans()):
    tokenizer.enable_truncation(6)
  if draw(st.booleans()):
    tokenizer.enable_padding(length=9, pad_id=number, pad_token=pad)
  return _dump(tokenizer)


def _common(draw: Any, size: int) -> tuple[dict[str, Any], bool]:
  """Draws the files of special and added tokens."""
  files: dict[str, Any] = {'tokenizer_config.json': {}}
  config, agree = files['tokenizer_config.json'], True
  if draw(st.booleans()):
    config['model_max_length'] = draw(st.sampled_from([6, 512, int(1e30)]))
  if draw(st.booleans()):
    names = ['token_type_ids'] * draw(st.booleans())
    config['model_input_names'] = ['input_ids', *names, 'attention_mask']
  if draw(st.booleans()):
    config['split_special_tokens'] = draw(st.booleans())
  if draw(st.booleans()):
    config['additional_special_tokens'] = ['<x>']
  if draw(st.booleans()):
    config['never_split'] = draw(st.sampled_from([None, ['foo']]))
    agree &= not config['never_split']
  kind = draw(st.sampled_from(['', '', 'added', 'decoder', 'map']))
  first = size + draw(st.sampled_from([0, 0, 0, 5]))
  if kind:
    agree &= first == size
  flags = {'lstrip': draw(st.booleans()), 'rstrip': draw(st.booleans())}
  if kind == 'added':
    files['added_tokens.json'] = {'foobar': first, '<X>': first + 1}
  if kind == 'decoder':
    config['added_tokens_decoder'] = {
      str(first): {
        'content': 'foobar',
        'normalized': draw(st.booleans()),
        'single_word': draw(st.booleans()),
        'special': draw(st.booleans()),
        **flags,
      }
    }
  if kind == 'map':
    token = {'content': '<x>', 'normalized': False, 'single_word': False}
    files['special_tokens_map.json'] = {
      'additional_special_tokens': ['<x>'],
      'mask_token': token | flags,
    }
  return files, agree


@st.composite
def _bert(draw: Any) -> Folder:
  files, agree = _common(draw, len(_WORDPIECES))
  config = files['tokenizer_config.json']
  said = {}
  for field, values in (
    ('do_lower_case', [True, False]),
    ('strip_accents', [None, True, False]),
    ('tokenize_chinese_chars', [True, False]),
  ):
    if draw(st.booleans()):
      config[field] = said[field] = draw(st.sampled_from(values))
  name = draw(
    st.sampled_from([None, 'BertTokenizer', 'BertTokenizerFast'])
    | st.sampled_from(['DistilBertTokenizer', 'PreTrainedTokenizerFast'])
  )
  if name:
    config['tokenizer_class'] = name
  as_is = name == 'PreTrainedTokenizerFast'
  if as_is or draw(st.booleans()):
    inside = {
      'do_lower_case': said.get('do_lower_case', True),
      'strip_accents': said.get('strip_accents'),
      'tokenize_chinese_chars': said.get('tokenize_chinese_chars', True),
    }
    if draw(st.booleans()):
      changed = draw(st.sampled_from(list(inside)))
      inside[changed] = not inside[changed]
      # An explicit setting wins; silence, or a file taken as it is, does not.
      agree &= (changed in said) != as_is if changed in said else as_is
    tokenizer = tokenizers.Tokenizer(
      models.WordPiece(_WORDPIECES, unk_token='[UNK]')
    )
    tokenizer.normalizer = normalizers.BertNormalizer(
      lowercase=inside['do_lower_case'],
      strip_accents=inside['strip_accents'],
      handle_chinese_chars=inside['tokenize_chinese_chars'],
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(
      ('[SEP]', 3), ('[CLS]', 2)
    )
    if draw(st.booleans()):
      tokenizer.add_special_tokens(list(_SPECIAL))
    files['tokenizer.json'] = _with_blocks(draw, _dump(tokenizer), '[PAD]')
  if 'tokenizer.json' not in files or draw(st.booleans()):
    files['vocab.txt'] = '\n'.join(_WORDPIECES) + draw(
      st.sampled_from(['', '\n'])
    )
  files['config.json'] = {'model_type': 'bert', 'pad_token_id': 0}
  return files, agree


@st.composite
def _roberta(draw: Any) -> Folder:
  vocab = {t: i for i, t in enumerate(_BYTES + [a + b for a, b in _MERGES])}
  files, agree = _common(draw, len(vocab))
  config = files['tokenizer_config.json']
  blank = draw(st.sampled_from([None, True, False]))
  if blank is not None:
    config['add_prefix_space'] = blank
  if draw(st.booleans()):
    config['tokenizer_class'] = 'RobertaTokenizer'
  if draw(st.booleans()):
    inside = draw(st.booleans())
    agree &= blank is not None or not inside
    tokenizer = tokenizers.Tokenizer(
      models.BPE(
        vocab, _MERGES, continuing_subword_prefix='', end_of_word_suffix=''
      )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=inside)
    tokenizer.post_processor = processors.RobertaProcessing(
      ('</s>', 2), ('<s>', 0), add_prefix_space=inside
    )
    if draw(st.booleans()):
      mask = tokenizers.AddedToken('<mask>', lstrip=True, special=True)
      tokenizer.add_special_tokens([*_BYTES[:4], mask])
    files['tokenizer.json'] = _with_blocks(draw, _dump(tokenizer), '<pad>')
  else:
    files['vocab.json'] = vocab
    files['merges.txt'] = '#version: 0.2\n' + '\n'.join(map(' '.join, _MERGES))
  files['config.json'] = {'model_type': 'roberta', 'pad_token_id': 1}
  return files, agree


@st.composite
def _llama(draw: Any) -> Folder:
  merged = [a + b for a, b in _PIECE_MERGES]
  vocab = {t: i for i, t in enumerate(_PIECES + merged)}
  files, agree = _common(draw, len(vocab))
  config = files['tokenizer_config.json']
  legacy, prefix = False, True
  if draw(st.booleans()):
    config['legacy'] = legacy = draw(st.booleans())
  if draw(st.booleans()):
    config['add_prefix_space'] = draw(st.sampled_from([None, True, False]))
    prefix = config['add_prefix_space'] is not False
  begins, says = draw(st.booleans()), draw(st.sampled_from([None, True, False]))
  if says is not None:
    config['add_bos_token'] = says
    agree &= begins == says
  name = draw(st.sampled_from(['LlamaTokenizer', 'LlamaTokenizerFast', None]))
  if name:
    config['tokenizer_class'] = name
  tokenizer = tokenizers.Tokenizer(
    models.BPE(
      vocab,
      _PIECE_MERGES,
      unk_token='<unk>',
      fuse_unk=True,
      byte_fallback=True,
    )
  )
  replace = normalizers.Replace(' ', _BLANK)
  if draw(st.booleans()):
    prepend = [normalizers.Prepend(_BLANK)] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*prepend, replace])
  else:
    scheme = ('always' if legacy else 'first') if prefix else 'never'
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
      _BLANK, scheme, split=False
    )
  if begins:
    tokenizer.post_processor = processors.TemplateProcessing(
      single='<s> $A', pair='<s> $A <s>:1 $B:1', special_tokens=[('<s>', 1)]
    )
  tokenizer.add_special_tokens(_PIECES[:3])
  files['tokenizer.json'] = _with_blocks(draw, _dump(tokenizer), '</s>')
  files['config.json'] = {'model_type': 'llama'}
  return files, agree


def _write(folder: pathlib.Path, files: dict[str, Any]) -> None:
  shutil.rmtree(folder, ignore_errors=True)
  folder.mkdir()
  for name, content in files.items():
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / name).write_text(text)


def _assert_equal(
  folder: pathlib.Path, drawn: Folder, texts: list[str]
) -> None:
  files, agree = drawn
  _write(folder, files)
  try:
    ours = tokens.load(folder)
  except ValueError:
    assert not agree
    return
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  ids = theirs(texts)['input_ids']
  assert [e.ids for e in ours.encode_batch(texts)] == ids
  pads = theirs.convert_tokens_to_ids([str(theirs.pad_token)])
  for second in (None, texts[::-1]):
    wanted = theirs(
      texts, second, truncation=True, max_length=12, padding=False
    )
    rows = wanted['input_ids']
    # Without types, a model takes all tokens for the first text's.
    none = [[0] * len(row) for row in rows]
    unused = len(ours.get_vocab()) + 9  # A padding that no text spells.
    if theirs.pad_token is None or any(pads[0] in row for row in rows):
      pads = [unused]
    encoded = tokens.encode(ours, texts, second, 12, pads[0])
    got = zip(encoded.ids, encoded.types, encoded.lengths, strict=True)
    for (row, types, length), row_w, types_w in zip(
      got, rows, wanted.get('token_type_ids', none), strict=True
    ):
      assert list(row[:length]) == row_w
      assert list(types[:length]) == types_w


_DRAWN: dict[str, Callable[[], st.SearchStrategy[Folder]]] = {
  'bert': _bert,
  'roberta': _roberta,
  'llama': _llama,
}
_SETTINGS = settings(
  deadline=None,
  max_examples=25,
  suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.mark.parametrize('family', _DRAWN)
@_SETTINGS
@given(data=st.data(), texts=st.lists(_TEXT, min_size=1, max_size=5))
def test_ids_are_those_of_transformers(tmp_path, family, data, texts):
  drawn = data.draw(_DRAWN[family]())
  _assert_equal(tmp_path / 'folder', drawn, texts)


@pytest.mark.slow
@pytest.mark.parametrize('family', _DRAWN)
@settings(_SETTINGS, max_examples=600)
@given(data=st.data(), texts=st.lists(_TEXT, min_size=1, max_size=5))
def test_ids_of_many_folders(tmp_path, family, data, texts):
  drawn = data.draw(_DRAWN[family]())
  _assert_equal(tmp_path / 'folder', drawn, texts)

"""Tokenizers as `transformers` 5 builds them from a folder's files.

If tokenizer.json and tokenizer_config.json disagree, the latter wins, as in
`transformers`. If tokenizer_config.json says nothing and the class would build
something other than tokenizer.json says, the folder is refused
(`tokenizer_checks`). With PreTrainedTokenizerFast, tokenizer.json is used as it
is.
"""

from collections.abc import Callable, Mapping
import json
from typing import Any, NamedTuple

from tokenizers import (
  AddedToken,
  Tokenizer,
  models,
  normalizers,
  pre_tokenizers,
  processors,
)

from fedjax_tune.data import tokenizer_checks, tokenizer_vocab
from fedjax_tune.data.tokenizer_files import NAMED, Files

Named = Mapping[str, str | AddedToken]


class Class(NamedTuple):
  """How a class builds a tokenizer.

  Attributes:
    build: Makes the tokenizer, without added tokens and the special tokens
      around texts.
    enclose: Makes the special tokens around texts; None leaves them to
      tokenizer.json.
    named: Named tokens by default.
    needed: The named tokens that the vocabulary must have.
    types: Whether models get token types if the files do not say so.
  """

  build: Callable[[Files, Named], Tokenizer]
  enclose: Callable[[Files, Named, Tokenizer], Any] | None
  named: Mapping[str, str]
  needed: tuple[str, ...]
  types: bool = False


def find(files: Files) -> Class:
  """Returns the class that `AutoTokenizer` would take.

  Raises:
    ValueError: The class is not supported.
  """
  name = files.name
  if not name:  # Families without a class of their own take the file as it is.
    alone = 'BertTokenizer' if files.built is None else _AS_IS
    return _CLASSES[_FAMILIES.get(files.family, alone)]
  if name == 'LlamaTokenizer' and '"ByteLevel"' in json.dumps(files.built):
    name = _AS_IS
  if name not in _CLASSES:
    raise ValueError(
      f'{files.config}: tokenizer_class={name!r} is not supported, only '
      f'{", ".join(_CLASSES)}{tokenizer_checks.HINT}'
    )
  return _CLASSES[name]


def find_named(files: Files, kind: Class) -> Named:
  """Returns the named tokens, in the order in which they may be added.

  Raises:
    ValueError: A token that the class needs is null.
  """
  padding = (files.built or {}).get('padding') or {}
  default = {k: v for k, v in padding.items() if k == 'pad_token'}
  settings = {
    key: value
    for key, value in files.settings.items()
    if key in NAMED or isinstance(value, str | AddedToken)
  }
  merged = default | dict(kind.named) | settings
  order = [*NAMED, *(name for name in merged if name.endswith('_token'))]
  named = {name: merged[name] for name in order if name in merged}
  for name in kind.needed:
    if named[name] is None:
      raise ValueError(f'{files.config}: {name}=None must be a token.')
  return {name: token for name, token in named.items() if token is not None}


def _as_is(files: Files, named: Named) -> Tokenizer:
  del named
  tokenizer = files.build()
  tokenizer_checks.check_as_is(files)
  return tokenizer


def _bert(files: Files, named: Named) -> Tokenizer:
  """BERT's (arXiv 1810.04805)."""
  if files.built is None:
    vocab = tokenizer_vocab.read_lines(files.folder / 'vocab.txt')
  else:
    vocab = tokenizer_vocab.built(files, 'WordPiece')
  tokenizer = Tokenizer(
    models.WordPiece(
      vocab, unk_token=str(named['unk_token']), max_input_chars_per_word=100
    )
  )
  strip = files.settings.get('strip_accents')
  tokenizer.normalizer = normalizers.BertNormalizer(
    lowercase=files.switch('do_lower_case', True),
    strip_accents=None if strip is None else files.switch('strip_accents'),
    handle_chinese_chars=files.switch('tokenize_chinese_chars', True),
  )
  tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  said = {
    'do_lower_case': 'lowercase',
    'strip_accents': 'strip_accents',
    'tokenize_chinese_chars': 'handle_chinese_chars',
  }
  tokenizer_checks.check_parts(files, tokenizer, said)
  return tokenizer


def _enclose_bert(files: Files, named: Named, tokenizer: Tokenizer) -> Any:
  del files
  return processors.BertProcessing(
    _numbered(named['sep_token'], tokenizer),
    _numbered(named['cls_token'], tokenizer),
  )


def _roberta(files: Files, named: Named) -> Tokenizer:
  """RoBERTa's, of bytes (arXiv 1907.11692)."""
  del named
  if files.built is None:
    vocab, merges = tokenizer_vocab.read_merges(files.folder)
  else:
    vocab = tokenizer_vocab.built(files, 'BPE')
    merges = tokenizer_vocab.merges(files)
  tokenizer = Tokenizer(
    models.BPE(
      vocab, merges, continuing_subword_prefix='', end_of_word_suffix=''
    )
  )
  blank = files.switch('add_prefix_space')
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=blank)
  said = {'add_prefix_space': 'add_prefix_space'}
  tokenizer_checks.check_parts(files, tokenizer, said)
  return tokenizer


def _enclose_roberta(files: Files, named: Named, tokenizer: Tokenizer) -> Any:
  return processors.RobertaProcessing(
    _numbered(named['sep_token'], tokenizer),
    _numbered(named['cls_token'], tokenizer),
    files.switch('trim_offsets', True),
    files.switch('add_prefix_space'),
  )


def _llama(files: Files, named: Named) -> Tokenizer:
  """Llama's, of SentencePiece (arXiv 2302.13971)."""
  del named
  if files.built is None:
    raise FileNotFoundError(
      f'{files.built_path} is missing; LlamaTokenizer is read from that file '
      'alone, not from tokenizer.model.'
    )
  vocab = tokenizer_vocab.built(files, 'BPE')
  merges = tokenizer_vocab.merges(files)
  tokenizer = Tokenizer(
    models.BPE(vocab, merges, fuse_unk=True, byte_fallback=True)
  )
  says = {key for key, value in files.settings.items() if value is not None}
  scheme = 'first'
  if 'legacy' in says and files.switch('legacy'):
    scheme = 'always'
  if 'add_prefix_space' in says and not files.switch('add_prefix_space'):
    scheme = 'never'
  tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
    tokenizer_checks.BLANK, scheme, split=False
  )
  tokenizer_checks.check_llama(files, tokenizer, scheme)
  tokenizer.post_processor = files.build().post_processor
  return tokenizer


def _numbered(token: str | AddedToken, tokenizer: Tokenizer) -> tuple[str, int]:
  number = tokenizer.token_to_id(str(token))
  assert number is not None, token  # It is one of `needed`.
  return str(token), number


_AS_IS = 'PreTrainedTokenizer'
_FAMILIES = {
  'bert': 'BertTokenizer',
  'distilbert': 'BertTokenizer',
  'roberta': 'RobertaTokenizer',
}
_BERT = Class(
  _bert,
  _enclose_bert,
  {
    'unk_token': '[UNK]',
    'sep_token': '[SEP]',
    'pad_token': '[PAD]',
    'cls_token': '[CLS]',
    'mask_token': '[MASK]',
  },
  ('unk_token', 'cls_token', 'sep_token'),
  types=True,
)
_ROBERTA = Class(
  _roberta,
  _enclose_roberta,
  {
    'bos_token': '<s>',
    'eos_token': '</s>',
    'sep_token': '</s>',
    'cls_token': '<s>',
    'unk_token': '<unk>',
    'pad_token': '<pad>',
    'mask_token': '<mask>',
  },
  ('cls_token', 'sep_token'),
)
_LLAMA = Class(
  _llama,
  None,
  {'unk_token': '<unk>', 'bos_token': '<s>', 'eos_token': '</s>'},
  (),
)
# Without the 'Fast' that some files put behind the name.
_CLASSES = {
  'BertTokenizer': _BERT,
  'DistilBertTokenizer': _BERT._replace(types=False),
  'RobertaTokenizer': _ROBERTA,
  'LlamaTokenizer': _LLAMA,
  _AS_IS: Class(_as_is, None, {}, ()),
  'TokenizersBackend': Class(_as_is, None, {}, ()),
}

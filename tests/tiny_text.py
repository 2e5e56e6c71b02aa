"""Tokenizers of a few dozen tokens, in Hugging Face folders."""

import json
import pathlib
import string

import tokenizers
from tokenizers import (
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  processors,
)

BERT_PAD, ROBERTA_PAD = 0, 1
_SPECIAL = ('<s>', '<pad>', '</s>', '<unk>')
_WORDS = ('who', 'wrote', 'the', 'book', 'was', 'written', 'by', 'ann', 'lee')


def write_bert(folder: pathlib.Path) -> pathlib.Path:
  """Writes tokenizer.json of a word piece tokenizer; returns the folder."""
  vocab = _bert_vocab()
  tokenizer = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token='[UNK]'))
  tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
  tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  tokenizer.post_processor = processors.BertProcessing(
    ('[SEP]', vocab['[SEP]']), ('[CLS]', vocab['[CLS]'])
  )
  # As in packaged files, which come with a padding and a truncation.
  tokenizer.enable_padding(length=8)
  tokenizer.enable_truncation(8)
  return _save(folder, tokenizer, '[PAD]', ('[PAD]', '[UNK]', '[CLS]', '[SEP]'))


def write_vocab(folder: pathlib.Path) -> pathlib.Path:
  """Writes vocab.txt of the same tokenizer; returns the folder."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'vocab.txt').write_text('\n'.join(_bert_vocab()))
  return folder


def write_letters(folder: pathlib.Path) -> pathlib.Path:
  """Writes tokenizer.json of bytes, one token each; returns the folder."""
  return _save(folder, _letters(), '<pad>', _SPECIAL)


def write_roberta(folder: pathlib.Path) -> pathlib.Path:
  """Writes the same, with a token before and behind each text."""
  tokenizer = _letters()
  tokenizer.post_processor = processors.RobertaProcessing(
    ('</s>', 2), ('<s>', 0), trim_offsets=True, add_prefix_space=False
  )
  return _save(folder, tokenizer, '<pad>', _SPECIAL)


def _letters() -> tokenizers.Tokenizer:
  letters = sorted(pre_tokenizers.ByteLevel.alphabet())
  vocab = {token: i for i, token in enumerate((*_SPECIAL, *letters))}
  tokenizer = tokenizers.Tokenizer(models.BPE(vocab, []))
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  return tokenizer


def _bert_vocab() -> dict[str, int]:
  letters = string.ascii_lowercase + string.digits + '?.!,\'"-[]'
  pieces = [f'##{c}' for c in letters]
  special = ('[PAD]', '[UNK]', '[CLS]', '[SEP]')
  return {t: i for i, t in enumerate((*special, *letters, *pieces, *_WORDS))}


def _save(folder, tokenizer, pad, special):
  folder.mkdir(parents=True, exist_ok=True)
  tokenizer.add_special_tokens(list(special))
  tokenizer.save(str(folder / 'tokenizer.json'))
  settings = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'pad_token': pad,
    'model_max_length': 512,
    'model_input_names': ['input_ids', 'token_type_ids', 'attention_mask'],
  }
  (folder / 'tokenizer_config.json').write_text(json.dumps(settings))
  return folder

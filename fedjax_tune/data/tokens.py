"""Texts as token numbers, by the tokenizer of a local Hugging Face folder."""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import json
import os
import pathlib
from typing import Any

import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

# Texts at a time; what the library returns for one is large.
_CHUNK = 4096


@dataclasses.dataclass(frozen=True)
class Encoded:
  """Token numbers of N texts or pairs, padded to T.

  Attributes:
    ids: int32[N, T].
    types: 0 in a text or the first part of a pair, 1 in the second, unless the
      tokenizer knows no types (RoBERTa's); int32[N, T].
    lengths: Tokens before the padding, int32[N].
  """

  ids: np.ndarray
  types: np.ndarray
  lengths: np.ndarray


def load(folder: str | os.PathLike) -> tokenizers.Tokenizer:
  """Returns the tokenizer of a folder: tokenizer.json, or BERT's vocab.txt.

  Special tokens that are spelled out in a text are text to it, so that no text
  can hold padding.

  Raises:
    FileNotFoundError: The folder has neither file.
    ValueError: The file is not a tokenizer's.
  """
  folder = pathlib.Path(folder)
  file, vocab = folder / 'tokenizer.json', folder / 'vocab.txt'
  if not file.exists() and not vocab.exists():
    raise FileNotFoundError(
      f'{folder} has no tokenizer: neither {file.name} nor {vocab.name} is there'
    )
  if not file.exists():
    tokenizer = _from_vocab(vocab)
  else:
    try:
      tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # The library has no class for it.
      raise ValueError(f'{file} is not a tokenizer: {error}') from error
  tokenizer.no_padding()
  tokenizer.no_truncation()
  tokenizer.encode_special_tokens = True
  return tokenizer


def encode(
  tokenizer: tokenizers.Tokenizer,
  first: Sequence[str],
  second: Sequence[str] | None,
  max_length: int,
  pad: int,
) -> Encoded:
  """Encodes texts, or pairs, with the special tokens of the model.

  Args:
    tokenizer: From `load`.
    first: N texts.
    second: The pairs' second parts, or None.
    max_length: T; the longer part of a pair is cut first.
    pad: The model's padding token.

  Raises:
    ValueError: `max_length` leaves no room, or `pad` is a token of a text.
  """
  reserved = tokenizer.num_special_tokens_to_add(second is not None)
  _check_length(max_length, reserved + 1 + (second is not None))
  tokenizer.enable_truncation(max_length, strategy='longest_first')
  texts = first if second is None else list(zip(first, second, strict=True))
  # Without offsets, which is faster.
  encodings = batched(tokenizer.encode_batch_fast, texts)
  return pack([to_array(e) for e in encodings], max_length, pad)


def batched(
  encoder: Callable[[Any], list[tokenizers.Encoding]], texts: Sequence[Any]
) -> Iterator[tokenizers.Encoding]:
  """Yields the encoding of each text, made a chunk at a time."""
  for begin in range(0, len(texts), _CHUNK):
    yield from encoder(texts[begin : begin + _CHUNK])


def to_array(encoding: tokenizers.Encoding) -> np.ndarray:
  """Returns the ids and types of one text, int32[2, n]."""
  return np.array([encoding.ids, encoding.type_ids], np.int32)


def pack(rows: Sequence[np.ndarray], max_length: int, pad: int) -> Encoded:
  """Pads arrays from `to_array` to `max_length` tokens; see `encode`."""
  ids = np.full((len(rows), max_length), pad, np.int32)
  types = np.zeros_like(ids)
  lengths = np.array([row.shape[1] for row in rows], np.int32)
  for number, row in enumerate(rows):
    ids[number, : row.shape[1]], types[number, : row.shape[1]] = row
  if (np.sum(ids != pad, axis=1) != lengths).any():
    raise ValueError(
      f'pad={pad}: this token is in the texts, so it must be another; are the'
      ' weights and the tokenizer those of one model?'
    )
  return Encoded(ids, types, lengths)


def _check_length(max_length: int, least: int) -> None:
  if max_length < least:
    raise ValueError(
      f'max_length={max_length}: must be at least {least} tokens'
    )


def _from_vocab(file: pathlib.Path) -> tokenizers.Tokenizer:
  """Returns BERT's tokenizer (arXiv 1810.04805) of a vocabulary."""
  settings = {}
  config = file.with_name('tokenizer_config.json')
  if config.exists():
    settings = json.loads(config.read_text())
  vocab = models.WordPiece.read_file(str(file))
  special = {name: vocab.get(name) for name in ('[UNK]', '[CLS]', '[SEP]')}
  missing = [name for name, number in special.items() if number is None]
  if missing:
    raise ValueError(f"{file} is not BERT's: it has no {', '.join(missing)}")
  tokenizer = tokenizers.Tokenizer(
    models.WordPiece(vocab, unk_token='[UNK]', max_input_chars_per_word=100)
  )
  tokenizer.normalizer = normalizers.BertNormalizer(
    lowercase=settings.get('do_lower_case', True),
    strip_accents=settings.get('strip_accents'),
    handle_chinese_chars=settings.get('tokenize_chinese_chars', True),
  )
  tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  tokenizer.post_processor = processors.BertProcessing(
    ('[SEP]', vocab['[SEP]']), ('[CLS]', vocab['[CLS]'])
  )
  return tokenizer

"""Turns texts into token numbers, with a local Hugging Face tokenizer."""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import os
import pathlib
import sys
from typing import Any

import numpy as np
import tokenizers
from tokenizers import processors

from fedjax_tune.data import (
  array_cache,
  token_types,
  tokenizer_checks,
  tokenizer_classes,
  tokenizer_files,
)

# Texts at a time, as the library returns a lot for each.
_CHUNK = 4096
# Characters that are tokenised in a fraction of a second.
_FEW = 1_000_000
_FILES = ('tokenizer.json', 'vocab.txt', 'vocab.json')
_PIECES = 'tokenizer.model'  # Of SentencePiece.


@dataclasses.dataclass(frozen=True)
class Encoded:
  """Token numbers of N texts or pairs, padded to T.

  Attributes:
    ids: int32[N, T].
    types: 0 in a text or the first part of a pair, 1 in the second, unless the
      tokenizer gives no types (`token_types`); int32[N, T].
    lengths: Tokens before the padding, int32[N].
  """

  ids: np.ndarray
  types: np.ndarray
  lengths: np.ndarray


def load(
  folder: str | os.PathLike, vocab: int | None = None
) -> tokenizers.Tokenizer:
  """Returns the tokenizer of a folder; see `read`."""
  return read(folder, vocab)[0]


def read(
  folder: str | os.PathLike, vocab: int | None = None
) -> tuple[tokenizers.Tokenizer, tokenizer_classes.Named]:
  """Reads the tokenizer of a folder, as `transformers` 5 does.

  Its files are tokenizer.json, or BERT's vocab.txt, or RoBERTa's vocab.json
  and merges.txt; tokenizer_config.json, special_tokens_map.json and
  added_tokens.json say more. Padding and truncation are ours
  (`config.Data.lengths`), not those of the files. Special tokens that are
  spelled out in a text are tokens, unless `split_special_tokens` says that
  they are text.

  Args:
    folder: The folder.
    vocab: Number of tokens that the model knows; None for any number.

  Returns:
    The tokenizer, and its named tokens: 'pad_token' and so on.

  Raises:
    FileNotFoundError: The folder lacks a file.
    ValueError: The files are corrupt, disagree, ask for something that is not
      supported, or have a token that the model does not know.
  """
  folder = pathlib.Path(folder)
  if not any((folder / name).exists() for name in _FILES):
    message = f'{folder} has no tokenizer: none of {", ".join(_FILES)} is there'
    if (folder / _PIECES).exists():
      message += (
        f'; {_PIECES} is not read, from which save_pretrained of a tokenizer of '
        'transformers makes tokenizer.json'
      )
    raise FileNotFoundError(message)
  files = tokenizer_files.read(folder)
  kind = tokenizer_classes.find(files)
  named = tokenizer_classes.find_named(files, kind)
  tokenizer = kind.build(files, named)
  known = tokenizer.get_vocab() | {
    token.content: number for number, token in files.added.items()
  }
  wanted = [str(named[name]) for name in kind.needed]
  if missing := [token for token in wanted if token not in known]:
    raise ValueError(
      f'{folder}: the vocabulary has no {", ".join(missing)}, as its tokenizer'
      ' must.'
    )
  last = max(known, key=known.__getitem__, default='')
  if vocab is not None and known and known[last] >= vocab:
    raise ValueError(
      f'{folder}: the tokenizer has token {last!r} of number {known[last]}, but'
      f' the model has vectors for {vocab} tokens.'
    )
  _add_tokens(files, named, tokenizer)
  if kind.enclose:
    tokenizer.post_processor = kind.enclose(files, named, tokenizer)
    tokenizer_checks.check_enclosed(files, tokenizer)
  elif tokenizer.post_processor is None:
    tokenizer.post_processor = processors.TemplateProcessing(
      single='$A:0', pair='$A:0 $B:1', special_tokens=[]
    )
  tokenizer_checks.check_ends(files, named, tokenizer)
  tokenizer_checks.check_padding(files, named, tokenizer)
  if not token_types.given(files, kind.types):
    tokenizer.post_processor = token_types.drop(tokenizer.post_processor)
  tokenizer.encode_special_tokens = files.switch('split_special_tokens')
  return tokenizer, named


def _add_tokens(
  files: tokenizer_files.Files,
  named: tokenizer_classes.Named,
  tokenizer: tokenizers.Tokenizer,
) -> None:
  """Adds tokens that the files declare, and missing named tokens.

  Raises:
    ValueError: A token would have another number than the files give it.
  """
  there = tokenizer.get_added_tokens_decoder().values()
  same = {repr(token) for token in there}
  added: list[Any] = [
    token for _, token in sorted(files.added.items()) if repr(token) not in same
  ]
  known = {token.content for token in (*there, *added)}
  for token in (*named.values(), *files.extra):
    # A token given as text and as a description is added twice; the last wins.
    if str(token) not in known and token not in added:
      added.append(token)
  names = {str(token) for token in named.values()}
  for place, token in enumerate(added):
    if isinstance(token, str):
      added[place] = tokenizers.AddedToken(token, special=True)
    elif str(token) in names:
      token.special = True
  tokenizer.add_tokens(added)
  for number, token in files.added.items():
    got = tokenizer.token_to_id(token.content)
    if got != number:
      raise ValueError(
        f'{files.folder}: token {token.content!r} is number {number} in the '
        f'files of added tokens, but would be number {got} of the vocabulary.'
      )


def encode(
  tokenizer: tokenizers.Tokenizer,
  first: Sequence[str],
  second: Sequence[str] | None,
  max_length: int,
  pad: int,
  cache: array_cache.Cache | None = None,
) -> Encoded:
  """Encodes texts, or pairs, with the special tokens of the model.

  Args:
    tokenizer: From `load`.
    first: N texts.
    second: The pairs' second parts, or None.
    max_length: T; the longer part of a pair is cut first.
    pad: The model's padding token.
    cache: Keeps the tokens of many texts for the next run; None keeps none.

  Raises:
    ValueError: `max_length` leaves no room, or `pad` is a token of a text.
  """
  reserved = tokenizer.num_special_tokens_to_add(second is not None)
  _check_length(max_length, reserved + 1 + (second is not None))

  def make() -> Encoded:
    tokenizer.enable_truncation(max_length, strategy='longest_first')
    texts = first if second is None else list(zip(first, second, strict=True))
    # Without offsets, which is faster.
    encodings = batched(tokenizer.encode_batch_fast, texts)
    return pack([to_array(e) for e in encodings], max_length, pad)

  if cache is None or sum(map(len, (*first, *(second or ())))) < _FEW:
    return make()
  # What an earlier call set is no part of what the tokenizer's files say.
  tokenizer.no_truncation()
  made_of = (
    'tokens',
    tokenizers.__version__,
    tokenizer.to_str(),
    tokenizer.encode_special_tokens,
    max_length,
    pad,
    first,
    second,
  )
  code = (sys.modules[__name__],)
  return Encoded(**cache.get(made_of, code, lambda: dataclasses.asdict(make())))


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
  holds = np.sum(ids != pad, axis=1) != lengths
  if holds.any():
    raise ValueError(
      f'pad={pad}: text {int(np.argmax(holds))} (counted from 0) has this token'
      ' in it, to which nothing would attend. Either the text spells the padding'
      " token, which split_special_tokens in the tokenizer's configuration makes"
      ' ordinary text; or the tokenizer ends all texts with it, and config.json must'
      ' name another as pad_token_id; or weights and tokenizer are not those of one'
      ' model.'
    )
  return Encoded(ids, types, lengths)


def _check_length(max_length: int, least: int) -> None:
  if max_length < least:
    raise ValueError(
      f'max_length={max_length}: must be at least {least} tokens'
    )

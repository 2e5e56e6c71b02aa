"""The tokenizer in a GGUF file: the byte-level BPE of SmolLM."""

import json
import pathlib

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from fedjax_tune.files import whole
from fedjax_tune.typing import Record

_TOKENS, _MERGES, _KINDS = REQUIRED = (
  'tokenizer.ggml.tokens',
  'tokenizer.ggml.merges',
  'tokenizer.ggml.token_type',
)
# Without these a reader would have to guess how words are cut.
REQUIRED += ('tokenizer.ggml.model', 'tokenizer.ggml.pre')
# gguf's TokenType: tokens that are not text, and whole words that are.
_CONTROL, _USER_DEFINED = 3, 4


def check(found: Record, path: pathlib.Path) -> None:
  """Checks the fields in `REQUIRED`, which all exist, against each other.

  Raises:
    ValueError: A token is there twice or has no type, a merge does not consist
      of tokens, or a named token does not exist.
  """
  names = found[_TOKENS]
  known = {token: number for number, token in enumerate(names)}
  if len(known) < len(names):
    twice = next(t for n, t in enumerate(names) if known[t] != n)
    raise ValueError(f'{path}: {_TOKENS} has {twice!r} twice.')
  if len(found[_KINDS]) != len(names):
    raise ValueError(
      f'{path}: {_KINDS} has {len(found[_KINDS])} entries; must have one for '
      f'each of {len(names)} tokens.'
    )
  for merge in found[_MERGES]:
    first, blank, second = merge.partition(' ')
    if not blank or not {first, second, first + second} <= known.keys():
      raise ValueError(
        f'{path}: {_MERGES} has {merge!r}; must be two tokens that make a third.'
      )
  for name in ('eos', 'padding'):
    field = f'tokenizer.ggml.{name}_token_id'
    if not 0 <= found.get(field, 0) < len(names):
      raise ValueError(
        f'{path}: {field}={found[field]} must be below {len(names)}, the number '
        'of tokens.'
      )


def write(found: Record, folder: pathlib.Path) -> None:
  """Writes the tokenizer as tokenizer.json; each digit is a word of its own."""
  tokens = found[_TOKENS]
  merges = [tuple(m.split(' ', 1)) for m in found[_MERGES]]
  vocab = {token: number for number, token in enumerate(tokens)}
  tokenizer = tokenizers.Tokenizer(models.BPE(vocab, merges))
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Digits(individual_digits=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  tokenizer.decoder = decoders.ByteLevel()
  kinds = zip(tokens, found[_KINDS], strict=True)
  tokenizer.add_tokens(
    [
      tokenizers.AddedToken(token, special=kind == _CONTROL, normalized=False)
      for token, kind in kinds
      if kind in (_CONTROL, _USER_DEFINED)
    ]
  )
  settings = {'tokenizer_class': 'PreTrainedTokenizerFast'}
  for name, ours in (('eos', 'eos'), ('padding', 'pad')):
    number = found.get(f'tokenizer.ggml.{name}_token_id')
    if number is not None:
      settings[f'{ours}_token'] = tokens[number]
  # The tokenizer comes last and in one piece: if it is there, all of it is.
  (folder / 'tokenizer_config.json').write_text(json.dumps(settings))
  with whole.file(folder / 'tokenizer.json') as part:
    tokenizer.save(str(part))

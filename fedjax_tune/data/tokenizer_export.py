"""Writes a tokenizer for both `transformers` 4 and 5."""

import json
import os
import pathlib

from fedjax_tune.data import tokenizer_files, tokens
from fedjax_tune.typing import Json

_CHAT = 'chat_template'
_OLD = ('special_tokens_map.json', 'added_tokens.json')


def write(
  source: str | os.PathLike,
  folder: pathlib.Path,
  *,
  pad: int,
  max_length: int,
  has_types: bool,
) -> dict[str, int]:
  """Writes tokenizer.json and tokenizer_config.json.

  The single tokenizer.json contains everything that the source's files say
  together, and is read by a class that uses it as it is.

  Args:
    source: The folder that has the tokenizer.
    folder: Gets the two files.
    pad: The model's padding token.
    max_length: Tokens to which `truncation=True` cuts.
    has_types: Whether the model reads the types of tokens.

  Returns:
    The numbers of the named tokens: 'pad_token' and so on.
  """
  tokenizer, named = tokens.read(source)
  said = tokenizer_files.read_json(
    pathlib.Path(source) / tokenizer_files.CONFIG
  )
  names = {name: str(token) for name, token in named.items()}
  # A word that stands for padding would be cut out of longer ones if named.
  names.pop('pad_token', None)
  if pad in (special := tokenizer.get_added_tokens_decoder()):
    names['pad_token'] = special[pad].content
  types = ['token_type_ids'] if has_types else []
  settings: Json = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'model_max_length': max_length,
    'model_input_names': ['input_ids', *types, 'attention_mask'],
    'padding_side': 'right',
    'truncation_side': 'right',
    'clean_up_tokenization_spaces': False,
    'split_special_tokens': tokenizer.encode_special_tokens,
    **names,
  }
  if said and _CHAT in said:
    settings[_CHAT] = said[_CHAT]
  for name in _OLD:  # Of an earlier export, and read beside the two.
    (folder / name).unlink(missing_ok=True)
  tokenizer.save(str(folder / tokenizer_files.BUILT))
  (folder / tokenizer_files.CONFIG).write_text(
    json.dumps(settings, indent=2) + '\n'
  )
  found = {name: tokenizer.token_to_id(text) for name, text in names.items()}
  return {name: n for name, n in found.items() if n is not None}

"""Where a tokenizer's files must agree, though `transformers` does not check.

The classes of `transformers` for BERT, RoBERTa and Llama rebuild the parts of a
tokenizer and take only the vocabulary from tokenizer.json (Llama's class also
the special tokens around a text). The rest of that file is not read, so it must
say the same.
"""

from collections.abc import Mapping
import json
from typing import Any

from tokenizers import AddedToken, Tokenizer

from fedjax_tune.data.tokenizer_files import Files
from fedjax_tune.typing import Json, Record

HINT = (
  "; tokenizer_class='PreTrainedTokenizerFast' in tokenizer_config.json takes"
  ' tokenizer.json as it is.'
)
BLANK = '\u2581'
_BYTES = frozenset(f'<0x{byte:02X}>' for byte in range(256))
_REPLACE = {'type': 'Replace', 'pattern': {'String': ' '}, 'content': BLANK}
_PREPEND = {'type': 'Prepend', 'prepend': BLANK}


def check_parts(
  files: Files, tokenizer: Tokenizer, said: Mapping[str, str]
) -> None:
  """Refuses a tokenizer.json that differs where no setting says so.

  Args:
    files: The files.
    tokenizer: The tokenizer as its class builds it.
    said: Settings, and their names in tokenizer.json.
  """
  if files.built is None:
    return
  ours = json.loads(tokenizer.to_str())
  names = {theirs: name for name, theirs in said.items()}
  for part in ('normalizer', 'pre_tokenizer'):
    own, built = ours[part] or {}, files.built.get(part) or {}
    for field in ('type', *sorted((own.keys() | built.keys()) - {'type'})):
      have, want = built.get(field), own.get(field)
      name = names.get(field)
      if have == want or name in files.settings:
        continue
      hint = f'; say {name} in tokenizer_config.json.' if name else HINT
      raise ValueError(
        f'{files.built_path}: {part} has {field}={have!r}, but the class of '
        f'the tokenizer makes it {want!r}{hint}'
      )
  _check_model(files, ours['model'])


def check_llama(files: Files, tokenizer: Tokenizer, scheme: str) -> None:
  """Does the same for Llama, whose file can have either of two forms.

  Either it replaces blanks and puts one in front, or it has a pre-tokenizer
  that does so.
  """
  built: Any = files.built
  ours = json.loads(tokenizer.to_str())
  forms: list[tuple[object, object]] = [(None, ours['pre_tokenizer'])]
  if scheme == 'never':
    forms += [(_REPLACE, None), (_sequence(_REPLACE), None)]
  else:
    forms += [(_sequence(_PREPEND, _REPLACE), None)]
  found = built.get('normalizer'), built.get('pre_tokenizer')
  if found not in forms:
    raise ValueError(
      f'{files.built_path}: normalizer={found[0]} and pre_tokenizer={found[1]} '
      f'are not what LlamaTokenizer does with prepend_scheme={scheme!r}, which '
      f'add_prefix_space and legacy give{HINT}'
    )
  # Nothing is unknown where every byte is a token.
  covered = built['model']['vocab'].keys() >= _BYTES
  _check_model(
    files, ours['model'], ('fuse_unk', 'unk_token') if covered else ()
  )


def _sequence(*parts: object) -> Json:
  return {'type': 'Sequence', 'normalizers': list(parts)}


def _check_model(
  files: Files, ours: Record, free: tuple[str, ...] = ()
) -> None:
  built: Any = files.built
  for field, want in ours.items():
    have = built['model'].get(field, want)
    if field in ('vocab', 'merges', *free) or (have or None) == (want or None):
      continue
    raise ValueError(
      f'{files.built_path}: its model has {field}={have!r}, but the class of '
      f'the tokenizer makes it {want!r}{HINT}'
    )


def check_as_is(files: Files) -> None:
  """Refuses settings that contradict a tokenizer.json that is used as it is."""
  built: Any = files.built
  for setting, part, field in (
    ('add_prefix_space', 'pre_tokenizer', 'add_prefix_space'),
    ('do_lower_case', 'normalizer', 'lowercase'),
    ('strip_accents', 'normalizer', 'strip_accents'),
    ('tokenize_chinese_chars', 'normalizer', 'handle_chinese_chars'),
  ):
    whole = built.get(part) or {}
    parts = [whole, *(whole.get('pretokenizers') or [])]
    parts += whole.get('normalizers') or []
    for says in (p[field] for p in parts if field in p):
      if setting in files.settings and says != files.settings[setting]:
        raise ValueError(
          f'{files.config}: {setting}={files.settings[setting]!r}, but '
          f'{files.built_path.name}, which is taken as it is, has '
          f'{field}={says!r}; make the two agree.'
        )


def check_enclosed(files: Files, tokenizer: Tokenizer) -> None:
  """Compares the special tokens around texts with those of tokenizer.json."""
  if not (files.built or {}).get('post_processor'):
    return
  own = files.build()
  for pair in (None, ''):
    ours, theirs = (t.encode('', pair) for t in (tokenizer, own))
    if (ours.tokens, ours.type_ids) != (theirs.tokens, theirs.type_ids):
      raise ValueError(
        f'{files.built_path} puts {theirs.tokens} around texts, of types '
        f'{theirs.type_ids}, but the class of the tokenizer {ours.tokens}, of '
        f'types {ours.type_ids}{HINT}'
      )


def check_ends(
  files: Files, named: Mapping[str, str | AddedToken], tokenizer: Tokenizer
) -> None:
  """Refuses an add_bos_token or add_eos_token that has no effect."""
  number = lambda name: tokenizer.token_to_id(str(named.get(name)))
  around = tokenizer.encode('')
  begins = around.ids[:1] == [number('bos_token')]
  ends = around.ids[begins:][-1:] == [number('eos_token')]
  for name, does in (('bos_token', begins), ('eos_token', ends)):
    field = f'add_{name}'
    wanted = files.settings.get(field)
    if name in named and wanted is not None and wanted != does:
      raise ValueError(
        f'{files.config}: {field}={wanted!r}, but {files.built_path.name} puts '
        f'{around.tokens} around texts; make the two agree.'
      )


def check_padding(
  files: Files, named: Mapping[str, str | AddedToken], tokenizer: Tokenizer
) -> None:
  """Refuses a config.json with another padding token."""
  token = named.get('pad_token')
  if token is None or files.pad is None:
    return
  number = tokenizer.token_to_id(str(token))
  if number != files.pad:
    raise ValueError(
      f'{files.folder / "config.json"}: pad_token_id={files.pad} must be '
      f"{number}, the tokenizer's pad_token {str(token)!r}."
    )

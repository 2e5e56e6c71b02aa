"""Reads a tokenizer's files in a Hugging Face folder.

What each file means, and which of two wins, is as in `transformers` 5
(`PreTrainedTokenizerBase._from_pretrained`); settings that `transformers` would
silently ignore are refused.
"""

from collections.abc import Mapping
import dataclasses
import json
import pathlib

from tokenizers import AddedToken, Tokenizer

from fedjax_tune.data import json_files
from fedjax_tune.typing import Json, Record

# Named tokens, in the order in which missing ones are added.
NAMED = (
  'bos_token',
  'eos_token',
  'unk_token',
  'sep_token',
  'pad_token',
  'cls_token',
  'mask_token',
)
CONFIG, BUILT = 'tokenizer_config.json', 'tokenizer.json'
_FLAGS = ('single_word', 'lstrip', 'rstrip', 'normalized', 'special')
_SPELLED = (str, dict, AddedToken)
_EXTRA = 'extra_special_tokens'
_OLD_EXTRA = 'additional_special_tokens'
# Other values would run, but not mean what they say. Leaving one of these out
# is the same as its value here.
_SUPPORTED = {
  'truncation_side': ('right',),
  'do_basic_tokenize': (True,),
  'never_split': (None, []),
  'init_inputs': ([],),
  'fast_tokenizer_files': (['tokenizer.json'],),
  'auto_map': (None,),
}


@dataclasses.dataclass(frozen=True)
class Files:
  """What the files of a tokenizer say.

  Attributes:
    folder: Where they are.
    name: Name of its class in `transformers`, without 'Fast'; '' if none is
      named.
    family: The model's family by config.json; '' if there is none.
    pad: The model's padding token by config.json, None if it names none.
    settings: tokenizer_config.json with special_tokens_map.json.
    built: tokenizer.json; None if it is missing.
    added: Tokens outside of the vocabulary, by id.
    extra: Special tokens without a name.
  """

  folder: pathlib.Path
  name: str
  family: str
  pad: int | None
  settings: Record
  built: Record | None
  added: Mapping[int, AddedToken]
  extra: tuple[str | AddedToken, ...]

  @property
  def config(self) -> pathlib.Path:
    """Path of tokenizer_config.json, for messages."""
    return self.folder / CONFIG

  @property
  def built_path(self) -> pathlib.Path:
    """Path of tokenizer.json, for messages."""
    return self.folder / BUILT

  def switch(self, field: str, default: bool = False) -> bool:
    """Returns a setting that is true or false."""
    value = self.settings.get(field, default)
    if not isinstance(value, bool):
      raise ValueError(
        f'{self.config}: {field}={value!r} must be true or false.'
      )
    return value

  def build(self) -> Tokenizer:
    """Returns tokenizer.json as it is, without its padding and truncation.

    Raises:
      FileNotFoundError: There is no tokenizer.json.
      ValueError: It does not describe a tokenizer.
    """
    if self.built is None:
      raise FileNotFoundError(f'{self.built_path} is missing.')
    try:
      tokenizer = Tokenizer.from_str(json.dumps(self.built))
    except Exception as error:  # The library has no class for it.
      raise ValueError(
        f'{self.built_path} is not a tokenizer: {error}'
      ) from error
    if self.built['model'].get('dropout'):
      raise ValueError(
        f'{self.built_path}: its model has dropout='
        f'{self.built["model"]["dropout"]!r}, which must be null: a text would '
        'have other tokens each time.'
      )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def read(folder: pathlib.Path) -> Files:
  """Reads a folder's files.

  Raises:
    ValueError: A file is corrupt, or asks for something that is not supported.
  """
  settings = read_json(folder / CONFIG) or {}
  built = read_json(folder / BUILT)
  model = read_json(folder / 'config.json') or {}
  _check_supported(settings, folder / CONFIG)
  _check_extra(settings, folder / CONFIG)
  name = settings.get('tokenizer_class') or model.get('tokenizer_class') or ''
  if settings.get(_OLD_EXTRA) and not settings.get(_EXTRA):
    settings[_EXTRA] = settings.pop(_OLD_EXTRA)
  if 'added_tokens_decoder' in settings:
    added = _read_decoder(settings, folder / CONFIG)
  else:
    _merge_map(settings, folder / 'special_tokens_map.json')
    added = _read_added(settings, folder / 'added_tokens.json')
    added |= _read_built(built or {}, folder / BUILT)
  if isinstance(named := settings.get(_EXTRA), dict):
    settings |= {f'{key}_token': value for key, value in named.items()}
    del settings[_EXTRA]
  by_text = {token.content: token for token in added.values()}
  for key, value in settings.items():
    custom = key.endswith('_token') and isinstance(value, _SPELLED)
    if custom or (key in NAMED and value is not None):
      token = _token(value, folder / CONFIG, key)
      settings[key] = by_text.get(str(token), token)
  extra = settings.get(_EXTRA) or settings.get(_OLD_EXTRA) or []
  pad = model.get('pad_token_id')
  return Files(
    folder,
    str(name).removesuffix('Fast'),
    str(model.get('model_type', '')),
    pad if isinstance(pad, int) else None,
    settings,
    built,
    added,
    tuple(_token(value, folder / CONFIG, _EXTRA) for value in extra),
  )


def read_json(path: pathlib.Path) -> Json | None:
  """Returns the content of a file, or None if there is none.

  Raises:
    ValueError: It is not a JSON object in UTF-8, or exceeds the bounds of
      `json_files`.
  """
  if not path.exists():
    return None
  return json_files.read_object(path)


def _check_supported(settings: Json, path: pathlib.Path) -> None:
  for field, values in _SUPPORTED.items():
    if field in settings and settings[field] not in values:
      raise ValueError(
        f'{path}: {field}={settings[field]!r} is not supported, only '
        f'{values[-1]!r}.'
      )


def _check_extra(said: Json, path: pathlib.Path) -> None:
  for field, kinds in ((_EXTRA, list | dict), (_OLD_EXTRA, list)):
    value = said.get(field)
    if value is not None and not isinstance(value, kinds):
      raise ValueError(f'{path}: {field}={value!r} must be a list of tokens.')


def _read_decoder(settings: Json, path: pathlib.Path) -> dict[int, AddedToken]:
  field = 'added_tokens_decoder'
  found = settings[field]
  if not isinstance(found, dict) or not all(map(str.isdecimal, found)):
    raise ValueError(f'{path}: {field} must have tokens by their ids.')
  return {
    int(number): _added(value, path, field) for number, value in found.items()
  }


def _merge_map(settings: Json, path: pathlib.Path) -> None:
  """Overrides the settings with those of special_tokens_map.json."""
  said = read_json(path) or {}
  _check_extra(said, path)
  for key, value in said.items():
    if isinstance(value, dict) and key != _EXTRA:
      value = _added(value | {'special': True}, path, key)
    elif key == _EXTRA and isinstance(value, list):
      known = list(settings.get(_EXTRA) or [])
      value = known + [token for token in value if token not in known]
    settings[key] = value


def _read_added(settings: Json, path: pathlib.Path) -> dict[int, AddedToken]:
  """Reads added_tokens.json, ids by their text."""
  # `transformers` does not look into dicts here either.
  named = [settings[k] for k in NAMED if settings.get(k)]
  named += settings.get(_EXTRA) or []
  special = {str(token) for token in named if not isinstance(token, dict)}
  found = {}
  for text, number in (read_json(path) or {}).items():
    if type(number) is not int or number in found:
      raise ValueError(f'{path}: {text!r} must have a number of its own.')
    found[number] = AddedToken(
      text, normalized=text not in special, special=text in special
    )
  return found


def _read_built(built: Record, path: pathlib.Path) -> dict[int, AddedToken]:
  found = {}
  for value in built.get('added_tokens') or []:
    if not isinstance(value, dict) or type(value.get('id')) is not int:
      raise ValueError(f'{path}: added_tokens must each have a number, id.')
    rest = {key: part for key, part in value.items() if key != 'id'}
    found[value['id']] = _added(rest, path, 'added_tokens')
  return found


def _token(value: object, path: pathlib.Path, field: str) -> str | AddedToken:
  """Returns a token given as a text or as a description."""
  if isinstance(value, str | AddedToken):
    return value
  return _added(value, path, field)


def _added(value: object, path: pathlib.Path, field: str) -> AddedToken:
  if not isinstance(value, dict) or not isinstance(value.get('content'), str):
    raise ValueError(f'{path}: {field} has {value!r}, which is not a token.')
  flags = {k: v for k, v in value.items() if k in _FLAGS}
  if not all(isinstance(flag, bool) for flag in flags.values()):
    raise ValueError(
      f'{path}: {field} has {value!r}, whose flags must be bool.'
    )
  return AddedToken(value['content'], **flags)

"""Finds the columns of the label, the input, the domain and the client."""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from fedjax_tune import config
from fedjax_tune.config.field_rules import one_of
from fedjax_tune.data.own.class_folders import PICTURES
from fedjax_tune.data.own.found import is_blank, split_name
from fedjax_tune.data.own.table import Table
from fedjax_tune.data.text_sets import TextSet

# What a column may be called for it to be guessed, whatever its case.
_GUESSED = {
  'label': (
    'label', 'labels', 'class', 'category', 'target', 'sentiment', 'intent',
    'fine_label', 'y',
  ),
  'text': (
    'text', 'texts', 'sentence', 'review', 'content', 'comment', 'message',
    'document', 'body', 'tweet', 'utterance', 'x',
  ),
  'image': (
    'image', 'images', 'img', 'picture', 'photo', 'file', 'file_name',
    'filename', 'filepath', 'path', 'image_path', 'image_file', 'pixels', 'x',
  ),
  'domain': ('domain',),
  'client': (
    'client', 'client_id', 'user', 'user_id', 'speaker', 'writer', 'author',
  ),
  'split': ('split',),
}  # fmt: skip
_PAIRS = (
  ('sentence1', 'sentence2'),
  ('question1', 'question2'),
  ('premise', 'hypothesis'),
)
# In place of a column's name: there is none, whatever columns are called.
NONE = '-'
_LOOKED_AT = 20  # Rows, to see what a column holds.
_MOST_DOMAINS = 64  # Of a column that was not named by the user.


@dataclasses.dataclass(frozen=True)
class Columns:
  """Names of the columns that are read; '' where there is none.

  Attributes:
    inputs: Columns of the texts, one or two (a pair), or of the picture.
    texts: Whether the inputs are texts.
    label: Column of the label.
    domain: Column of the domain.
    client: Column of the natural client.
    split: Column of the split.
  """

  inputs: tuple[str, ...]
  texts: bool
  label: str = ''
  domain: str = ''
  client: str = ''
  split: str = ''

  def __str__(self) -> str:
    roles = {
      'text' if self.texts else 'image': self.inputs,
      'label': (self.label,),
      'domain': (self.domain,),
      'client': (self.client,),
      'split': (self.split,),
    }
    quoted = lambda names: ' and '.join(map(repr, names))
    return ', '.join(f'{k}={quoted(v)}' for k, v in roles.items() if any(v))


def find(cfg: config.Data, table: Table) -> Columns:
  """Returns the columns that the configuration names, and guesses others.

  Raises:
    ValueError: A named column is missing, or a needed one cannot be guessed;
      the message lists the columns that are there.
  """
  label = _named(cfg, table, 'label') or _guess(table, 'label', _is_label)
  texts, image = _inputs(cfg, table, label)
  if not label and cfg.task != 'next_token':
    _check_label(cfg, table)
    hint = " or learn the texts themselves, data.task='next_token'"
    raise ValueError(
      f'{_there(cfg, table)}: none is called as labels ({_like("label")}) are;'
      f' name it by data.label_column{hint if texts else ""}'
    )
  domain = _of_names(cfg, table, 'domain')
  if not cfg.domain_column and domain:
    domain = domain if _count(table, domain) <= _MOST_DOMAINS else ''
  split = _guess(table, 'split', _is_split)
  if split and not all(map(_is_split, table.columns[split])):
    split = ''
  return Columns(
    texts or (image,),
    bool(texts),
    label if cfg.task != 'next_token' else '',
    domain,
    _of_names(cfg, table, 'client'),
    '' if any(table.splits) else split,
  )


def of_known(known: TextSet) -> Columns:
  """Returns the columns of a set whose layout is known."""
  return Columns(known.texts, texts=True, label=known.label)


def _inputs(
  cfg: config.Data, table: Table, label: str
) -> tuple[tuple[str, ...], str]:
  """Returns the columns of the text and that of the picture; one is empty."""
  texts, image = _named_texts(cfg, table), _named(cfg, table, 'image')
  if texts and image:
    raise ValueError(
      f'data.text_column={cfg.text_column!r} and data.image_column='
      f'{cfg.image_column!r}: must not both be given'
    )
  if texts or image:
    return texts, image
  for pair in _PAIRS:
    if all(name in table.columns for name in pair):
      return pair, ''
  # A column may be called as either.
  text = _guess(table, 'text', _is_text, label)
  image = _guess(table, 'image', _is_picture, label)
  if text and image:
    raise ValueError(
      f'{_there(cfg, table)}: {text!r} may be the text and {image!r} the'
      ' picture; name one of them by data.text_column or data.image_column'
    )
  if not text and not image and _is_of_arrays(cfg, table, label):
    raise ValueError(
      f'{_there(cfg, table)}: none is called as pictures'
      f' ({_like("image")}) are; name it by data.image_column'
    )
  if not text and not image:
    raise ValueError(
      f'{_there(cfg, table)}: none is called as texts ({_like("text")}) or'
      f' pictures ({_like("image")}) are; name it by data.text_column or'
      ' data.image_column'
    )
  return (text,) if text else (), image


def _of_names(cfg: config.Data, table: Table, role: str) -> str:
  """Returns the column of the domain or the client, or ''."""
  if getattr(cfg, f'{role}_column') == NONE:
    return ''
  return _named(cfg, table, role) or _guess(table, role, _is_name)


def _named(cfg: config.Data, table: Table, role: str) -> str:
  name = getattr(cfg, f'{role}_column')
  if name and name not in table.columns:
    rule = one_of(*table.columns).text(name)
    raise ValueError(f'data.{role}_column={name!r}: {rule}')
  return name


def _named_texts(cfg: config.Data, table: Table) -> tuple[str, ...]:
  """Returns the column of the text, or those of a pair: 'first,second'."""
  given = cfg.text_column
  if not given or given in table.columns:
    return (given,) if given else ()
  names = tuple(part.strip() for part in given.split(','))
  for name in names:
    if name not in table.columns:
      rule = one_of(*table.columns).text(name)
      raise ValueError(f'data.text_column={given!r}: {name!r} {rule}')
  if len(names) > 2:
    raise ValueError(f'data.text_column={given!r}: must be one column, or two')
  return names


def _check_label(cfg: config.Data, table: Table) -> None:
  """Refuses a column with a usual name of labels that holds something else."""
  names = {name.lower().replace(' ', '_'): name for name in table.columns}
  for known in _GUESSED['label']:
    if name := names.get(known):
      value = next((v for v in table.columns[name] if not is_blank(v)), None)
      kind = 'nothing' if value is None else type(value).__name__
      raise ValueError(
        f'{_there(cfg, table)}: {name!r} holds {kind}; must hold names or numbers'
        ' of classes, or data.label_column name another'
      )


def _guess(table: Table, role: str, fits: Any, taken: str = '') -> str:
  """Returns the column with a usual name and mostly fitting values, or ''."""
  names = {name.lower().replace(' ', '_'): name for name in table.columns}
  for known in _GUESSED[role]:
    name = names.get(known, '')
    if not name or name == taken:
      continue
    some = table.columns[name][:_LOOKED_AT]
    values = [v for v in some if not is_blank(v)]
    # Not all: one wrong row is reported as such.
    if sum(map(fits, values)) > len(values) / 2:
      return name
  return ''


def _is_of_arrays(cfg: config.Data, table: Table, label: str) -> bool:
  """Whether this is an `npz:` archive without texts, as most are."""
  others = (values for name, values in table.columns.items() if name != label)
  return cfg.name.startswith('npz:') and not any(
    isinstance(value, str) for values in others for value in values[:_LOOKED_AT]
  )


def _there(cfg: config.Data, table: Table) -> str:
  listed = ', '.join(map(repr, table.columns))
  return f'data.name={cfg.name!r}: the columns are {listed or "none"}'


def _like(role: str) -> str:
  return ', '.join(_GUESSED[role])


def _count(table: Table, name: str) -> int:
  return len({str(value) for value in table.columns[name]})


def _is_label(value: object) -> bool:
  return isinstance(value, str | int | float | np.number)


def _is_text(value: object) -> bool:
  return isinstance(value, str) and not _is_picture(value)


def _is_picture(value: object) -> bool:
  if isinstance(value, str):
    return pathlib.PurePath(value).suffix.lower() in PICTURES
  return isinstance(value, bytes | np.ndarray | dict)


def _is_name(value: object) -> bool:
  return isinstance(value, str | int | np.integer)


def _is_split(value: object) -> bool:
  return isinstance(value, str) and bool(split_name(value))

"""Reads a tokenizer's vocabulary, from tokenizer.json or a separate file."""

import pathlib
from typing import Any

from tokenizers import models

from fedjax_tune.data import tokenizer_checks
from fedjax_tune.data.tokenizer_files import Files

Vocab = dict[str, int]
Merges = list[tuple[str, str]]


def built(files: Files, kind: str) -> Vocab:
  """Returns the vocabulary of a tokenizer.json whose model is of some kind.

  Raises:
    FileNotFoundError, ValueError: See `Files.build`; or the model is of another
      kind.
  """
  files.build()  # Raises if it is not a tokenizer.
  found: Any = files.built
  model = found['model']
  if model.get('type', kind) != kind:
    raise ValueError(
      f'{files.built_path}: a model of type {model["type"]!r} is not that of '
      f"the tokenizer's class, {kind!r}{tokenizer_checks.HINT}"
    )
  return model['vocab']


def merges(files: Files) -> Merges:
  """Returns the merges of tokenizer.json for a vocabulary from `built`."""
  found: Any = files.built
  pairs = found['model']['merges']
  split = (m.split(' ', 1) if isinstance(m, str) else m for m in pairs)
  return [(first, second) for first, second in split]


def read_lines(path: pathlib.Path) -> Vocab:
  """Reads BERT's vocabulary, one token per line.

  Raises:
    FileNotFoundError: There is no such file.
    ValueError: It is not UTF-8, or has a token twice.
  """
  if not path.is_file():
    raise FileNotFoundError(f'{path} is missing.')
  try:
    text = path.read_bytes().decode()
  except UnicodeDecodeError as error:
    raise ValueError(f'{path} is not UTF-8: {error}') from error
  if text.startswith('\ufeff'):
    raise ValueError(f'{path} must not begin with a byte order mark.')
  lines: Vocab = {}
  for number, line in enumerate(text.split('\n')):
    token = line.rstrip()
    if token and token in lines:
      raise ValueError(
        f'{path}: lines {lines[token] + 1} and {number + 1} both say {token!r};'
        ' a token has one number.'
      )
    lines[token] = number
  return models.WordPiece.read_file(str(path))


def read_merges(folder: pathlib.Path) -> tuple[Vocab, Merges]:
  """Reads RoBERTa's vocab.json and merges.txt.

  Raises:
    FileNotFoundError: A file is missing.
    ValueError: A file is corrupt.
  """
  paths = folder / 'vocab.json', folder / 'merges.txt'
  for path in paths:
    if not path.is_file():
      raise FileNotFoundError(f'{path} is missing.')
  try:
    return models.BPE.read_file(*map(str, paths))
  except Exception as error:  # The library has no class for it.
    raise ValueError(
      f'{paths[0]} and {paths[1].name} are not a vocabulary and its merges: '
      f'{error}'
    ) from error

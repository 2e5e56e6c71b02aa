"""The examples of a split: pictures or texts, and what is learned from them."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses

import numpy as np
import PIL
from tokenizers import Tokenizer

from fedjax_tune import config
from fedjax_tune.data import (
  array_cache,
  digest,
  fetch,
  images,
  labels,
  notes,
  pictures,
  pixels,
  rows,
  text,
)
from fedjax_tune.data.images import Images, Stored
from fedjax_tune.data.metrics import Questions
from fedjax_tune.data.prepared import Builder
from fedjax_tune.data.text_sets import TextSet
from fedjax_tune.typing import Json, Record, Tokens

# Sets that take less than this when decoded are decoded once, into memory.
_IN_MEMORY_BYTES = 4 << 30
# Pictures that are decoded in a fraction of a second.
_FEW = 2000
# Pixels of a side, where decoding is all that matters.
_SMALL = 32
# What is kept of a row: label, group and hash.
Picture = tuple[int, str | None, str]


@dataclasses.dataclass(frozen=True)
class Examples:
  """N examples.

  Attributes:
    labels: See `corpus.Corpus`, also for `domains`, `groups`, `inputs`,
      `lengths` and `questions`.
    contents: A hash of each row's input, by the row's name.
    notes: What was converted or left out, a line each.
  """

  labels: np.ndarray
  domains: np.ndarray
  groups: np.ndarray | None
  inputs: Images | Tokens
  contents: Mapping[str, str]
  notes: tuple[str, ...]
  lengths: np.ndarray | None = None
  questions: Questions | None = None


def read_images(
  cfg: config.Data,
  builders: Mapping[str, Builder],
  split: str,
  classes: labels.Classes,
) -> Examples:
  """Reads the pictures of a split; if there are many, only their places.

  Raises:
    FileNotFoundError: The set is not prepared.
    ValueError: A picture or a label is wrong, or a file is corrupt.
  """
  kept, sources, lines = image_rows(cfg, builders, split, classes)
  label_N, group_N, contents = zip(*(row.values for row in kept), strict=True)
  names = [row.name for row in kept]
  stored = Stored(
    sources,
    np.array([(row.domain, row.record) for row in kept]),
    names,
    cfg.image_size,
    digest.of(contents),
    f'{cfg.name}, split {split}',
  )
  in_memory = len(kept) * cfg.image_size**2 * 3 < _IN_MEMORY_BYTES
  cache = _cache(cfg)
  return Examples(
    labels=np.array(label_N, np.int32),
    domains=np.array([row.domain for row in kept], np.int32),
    groups=None if group_N[0] is None else np.array(group_N),
    inputs=_decode(stored, cache) if in_memory else stored,
    contents=dict(zip(names, contents, strict=True)),
    notes=(*lines, *cache.notes),
  )


def _cache(cfg: config.Data) -> array_cache.Cache:
  return array_cache.Cache(fetch.data_dir(cfg.data_dir) / 'arrays')


def _decode(stored: Stored, cache: array_cache.Cache) -> np.ndarray:
  """Returns all pictures, from the cache unless there are few."""
  count = len(stored.where)
  decode = lambda: {'pixels': stored[np.arange(count)]}
  if count < _FEW:
    return decode()['pixels']
  made_of = ('pictures', PIL.__version__, stored.contents, stored.size)
  return cache.get(made_of, (images, pictures, pixels), decode)['pixels']


def image_rows(
  cfg: config.Data,
  builders: Mapping[str, Builder],
  split: str,
  classes: labels.Classes,
) -> tuple[list[rows.Row[Picture]], list[Sequence], tuple[str, ...]]:
  """Returns rows of (label, group, hash), their sources, and notes.

  Pictures are not decoded, but their headers are checked. For errors see
  `read_images`.
  """
  found = notes.Notes()
  keep = _keeper(cfg, classes, found)

  def take(domain: int, row: Record, name: str) -> Picture | None:
    label = keep(domain, row, name)
    if label is None:
      return None
    image = pictures.read(row['image'])
    if cfg.bad_rows == 'leave_out':
      pictures.to_rgb(image, _SMALL)  # Shows what a header does not.
    for change in pictures.inspect(image):
      found.add(f'pictures {change}', name)
    group = text.read_text(row['name'], 'name') if 'name' in row else None
    return label, group, digest.of(image)

  kept, sources = rows.read(cfg, builders, split, take, found, encoded='image')
  return kept, sources, found.lines()


@dataclasses.dataclass(frozen=True)
class TextReader:
  """How the rows of a text set become arrays."""

  entry: TextSet
  tokenizer: Tokenizer
  pad: int


def read_texts(
  cfg: config.Data,
  builders: Mapping[str, Builder],
  split: str,
  classes: labels.Classes | None,
  reader: TextReader,
) -> Examples:
  """Reads and tokenises the texts of a split.

  Raises:
    FileNotFoundError: The set is not prepared.
    ValueError: A text or a label is wrong, or a file is corrupt.
  """
  entry = reader.entry
  kept, lines = text_rows(cfg, builders, split, classes, entry)
  values, cache = [row.values for row in kept], _cache(cfg)
  made = text.encode(
    values,
    entry,
    reader.tokenizer,
    max(cfg.lengths),
    reader.pad,
    cache,
  )
  domain_N = np.array([row.domain for row in kept], np.int32)
  return Examples(
    labels=made.labels,
    domains=domain_N[made.rows],
    groups=made.groups,
    inputs=Tokens(made.encoded.ids, made.encoded.types),
    contents={
      row.name: digest.of([row.values[f] for f in entry.texts]) for row in kept
    },
    notes=(*lines, *cache.notes),
    lengths=made.encoded.lengths,
    questions=made.questions,
  )


def text_rows(
  cfg: config.Data,
  builders: Mapping[str, Builder],
  split: str,
  classes: labels.Classes | None,
  entry: TextSet,
) -> tuple[list[rows.Row[Json]], tuple[str, ...]]:
  """Returns checked rows, and notes; for errors see `read_texts`."""
  found = notes.Notes()
  keep = _keeper(cfg, classes, found) if classes else None

  def take(domain: int, row: Record, name: str) -> Json | None:
    values = text.read_row(row, entry)
    if keep:
      values[entry.label] = keep(domain, row, name)
      if values[entry.label] is None:
        return None
    if not any(values[f].strip() for f in entry.texts):
      found.add('texts are empty', name)
    if entry.kind == 'span':
      for note in text.inspect_answers(values[entry.second], row['answers']):
        found.add(note, name)
    return values

  kept, _ = rows.read(cfg, builders, split, take, found)
  if not any(row.values[f].strip() for row in kept for f in entry.texts):
    raise ValueError(f'{cfg.name}, split {split}: all texts are empty')
  return kept, found.lines()


def _keeper(
  cfg: config.Data, classes: labels.Classes, found: notes.Notes
) -> Callable[[int, Record, str], int | None]:
  """Returns a reader of a row's label; it gives None for classes left out."""

  def keep(domain: int, row: Record, name: str) -> int | None:
    label = classes.read(domain, row)
    if not cfg.num_classes or label < cfg.num_classes:
      return label
    found.add(f'rows left out: data.num_classes={cfg.num_classes}', name)
    return None

  return keep

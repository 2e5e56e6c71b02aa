"""The examples of a split: pictures or texts with what is learned of them."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import numpy as np

from fedjax_tune import config
from fedjax_tune.data import digest, labels, notes, pictures, rows, text
from fedjax_tune.data.images import Images, Stored
from fedjax_tune.data.text_sets import TextSet
from fedjax_tune.scores import Questions
from fedjax_tune.typing import Tokens

# Sets that take less than this when decoded are decoded once, into memory.
_IN_MEMORY_BYTES = 4 << 30


@dataclasses.dataclass(frozen=True)
class Examples:
  """N examples.

  Attributes:
    labels: As in `corpus.Corpus`, and so are `domains`, `groups`, `inputs`,
      `lengths` and `questions`.
    contents: For the name of each row, a hash of its input.
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
  builders: Mapping[str, Any],
  split: str,
  classes: labels.Classes,
) -> Examples:
  """Reads the pictures of a split, or only where they are if they are many.

  Raises:
    FileNotFoundError: The set is not prepared.
    ValueError: A picture or a label is wrong, or a file is corrupt.
  """
  found = notes.Notes()
  keep = _keeper(cfg, classes, found)

  def take(domain: int, row: Mapping[str, Any], name: str) -> Any:
    label = keep(domain, row, name)
    if label is None:
      return None
    for change in pictures.inspect(row['image']):
      found.add(f'pictures {change}', name)
    group = text.read_text(row['name'], 'name') if 'name' in row else None
    return label, group, digest.of(row['image'])

  kept, sources = rows.read(cfg, builders, split, take, encoded='image')
  label_N, group_N, contents = zip(*(row.values for row in kept), strict=True)
  domain_N = np.array([row.domain for row in kept], np.int32)
  row_names = [row.name for row in kept]
  stored = Stored(
    sources,
    np.array([(row.domain, row.record) for row in kept]),
    row_names,
    cfg.image_size,
    digest.of(contents),
    f'{cfg.name}, split {split}',
  )
  in_memory = len(kept) * cfg.image_size**2 * 3 < _IN_MEMORY_BYTES
  return Examples(
    labels=np.array(label_N, np.int32),
    domains=domain_N,
    groups=None if group_N[0] is None else np.array(group_N),
    inputs=stored[np.arange(len(kept))] if in_memory else stored,
    contents=dict(zip(row_names, contents, strict=True)),
    notes=found.lines(),
  )


def read_texts(
  cfg: config.Data,
  builders: Mapping[str, Any],
  split: str,
  classes: labels.Classes | None,
  reader: 'TextReader',
) -> Examples:
  """Reads and tokenises the texts of a split.

  Raises:
    FileNotFoundError: The set is not prepared.
    ValueError: A text or a label is wrong, or a file is corrupt.
  """
  found = notes.Notes()
  entry = reader.entry
  keep = _keeper(cfg, classes, found) if classes else None

  def take(domain: int, row: Mapping[str, Any], name: str) -> Any:
    values = text.read_row(row, entry)
    if keep:
      values[entry.label] = keep(domain, row, name)
      if values[entry.label] is None:
        return None
    if not any(values[f].strip() for f in entry.texts):
      found.add('texts are empty', name)
    return values

  kept, _ = rows.read(cfg, builders, split, take)
  if not any(row.values[f].strip() for row in kept for f in entry.texts):
    raise ValueError(f'{cfg.name}, split {split}: all texts are empty')
  values = [row.values for row in kept]
  made = text.encode(
    values, entry, reader.tokenizer, max(cfg.lengths), reader.pad
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
    notes=found.lines(),
    lengths=made.encoded.lengths,
    questions=made.questions,
  )


@dataclasses.dataclass(frozen=True)
class TextReader:
  """How the rows of a text set become arrays."""

  entry: TextSet
  tokenizer: Any
  pad: int


def _keeper(
  cfg: config.Data, classes: labels.Classes, found: notes.Notes
) -> Callable[[int, Mapping[str, Any], str], int | None]:
  """Returns what reads a row's label; None is for classes left out."""

  def keep(domain: int, row: Mapping[str, Any], name: str) -> int | None:
    label = classes.read(domain, row)
    if not cfg.num_classes or label < cfg.num_classes:
      return label
    found.add(f'rows left out: data.num_classes={cfg.num_classes}', name)
    return None

  return keep

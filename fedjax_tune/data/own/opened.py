"""The user's own set, as rows like those of all other sets."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import pathlib
from typing import Any

import numpy as np

from fedjax_tune.data.labels import Classes
from fedjax_tune.data.own.found import Example
from fedjax_tune.data.text_sets import TextSet
from fedjax_tune.typing import Json


@dataclasses.dataclass(frozen=True)
class Own:
  """The user's own set after its files were read.

  Attributes:
    name: The set's name in the configuration.
    texts: Whether it has texts.
    examples: Examples by domain and split, 'train' and 'test'.
    classes: The name of each label; () if there are no classes.
    metrics: Metrics that judge predictions; () takes the task's.
    faults: The places of rows that cannot be used, each with the reason.
    notes: What a user should be told, a line each.
  """

  name: str
  texts: bool
  examples: Mapping[str, Mapping[str, Sequence[Example]]]
  classes: tuple[str, ...]
  metrics: tuple[str, ...]
  faults: tuple[tuple[str, str], ...]
  notes: tuple[str, ...]

  @functools.cached_property
  def has_clients(self) -> bool:
    """Whether the set names the client of each example."""
    return any(
      e.client for part in self.examples.values() for e in part['train']
    )

  @functools.cached_property
  def labels(self) -> Mapping[str, int]:
    """The label of each class."""
    return {name: label for label, name in enumerate(self.classes)}

  def entry(self, task: str) -> TextSet | None:
    """Returns the layout of rows of texts; None for pictures."""
    if not self.texts:
      return None
    found = TextSet(
      ('text',),
      'second' if self._has_pairs else '',
      kind='classification' if self.classes else 'regression',
      metrics=self.metrics,
      group='group' if self.has_clients else '',
    )
    return found.as_language() if task == 'next_token' else found

  @property
  def _has_pairs(self) -> bool:
    first = next(iter(self.examples.values()))['train'][0]
    return isinstance(first.content, tuple)

  def parts(self, domains: Sequence[str]) -> dict[str, 'Part']:
    """Returns what `rows.read` opens, by domain."""
    return {domain: Part(self, domain) for domain in domains}

  def align(self, domains: Sequence[str]) -> Classes | None:
    """Returns the classes, which have one order in all domains."""
    if not self.classes:
      return None
    order = np.arange(len(self.classes))
    return Classes('label', self.classes, (order,) * len(domains))


@dataclasses.dataclass(frozen=True)
class _Info:
  full_name: str


@dataclasses.dataclass(frozen=True)
class Part:
  """A domain of a set, opened like a prepared one (`prepared.Builder`)."""

  own: Own
  domain: str

  @property
  def info(self) -> Any:
    """The domain's name; nothing else of it is used."""
    return _Info(self.own.name)

  @property
  def data_dir(self) -> str:
    """The path that the user gave."""
    return self.own.name.partition(':')[2]

  @property
  def data_path(self) -> pathlib.PurePath:
    """The path that the user gave."""
    return pathlib.PurePath(self.data_dir)

  def is_prepared(self) -> bool:
    """There is nothing to prepare."""
    return True

  def as_data_source(self, split: str, /) -> 'Rows':
    """Opens a split."""
    return Rows(self.own, self.own.examples[self.domain][split])


@dataclasses.dataclass(frozen=True)
class Rows(Sequence[Json]):
  """Examples as the rows of a data source; a picture may be a file's path."""

  own: Own
  examples: Sequence[Example]

  def __len__(self) -> int:
    return len(self.examples)

  def __getitem__(self, index: Any) -> Any:
    example = self.examples[index]
    row: Json = {'label': example.label}
    if isinstance(example.label, str):
      row['label'] = self.own.labels[example.label]
    if not self.own.texts:
      named = {'name': example.client} if self.own.has_clients else {}
      return {**row, **named, 'image': example.content}
    pair = example.content
    first, *rest = pair if isinstance(pair, tuple) else (pair,)
    row |= {'text': first, 'group': example.client}
    return row | dict(zip(('second',), rest, strict=False))

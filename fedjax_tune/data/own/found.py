"""Examples found in the user's own files, before names get numbers."""

import dataclasses
import pathlib

import numpy as np

# What people call a split.
_SPLITS = {
  'train': ('train', 'training'),
  'test': ('test', 'testing'),
  'validation': ('validation', 'valid', 'val', 'dev', 'eval'),
}
_BY_NAME = {name: split for split, own in _SPLITS.items() for name in own}

# A picture's file, its bytes or pixels; a text, or a pair of them.
Content = pathlib.Path | bytes | np.ndarray | str | tuple[str, str]


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
  """One example.

  Attributes:
    place: Where it is: a file, or a file and its line.
    content: What a model reads.
    label: The name of its class, or a number; None if it has none.
    domain: Its domain's name; '' if files name none.
    client: Its client's name; '' if files name none.
    split: 'train', 'test', 'validation'; '' if files name none.
    key: What identifies it for a seeded split, at any place: the path of a
      picture; '' takes a hash of the content.
  """

  place: str
  content: Content
  label: str | float | None = None
  domain: str = ''
  client: str = ''
  split: str = ''
  key: str = ''


@dataclasses.dataclass
class Found:
  """What was found in files.

  Attributes:
    texts: Whether the examples are texts.
    examples: The examples that can be used.
    faults: The places of the others, each with what is wrong there.
    notes: What a user should be told, a line each.
    class_names: The name of each label, if files list them; () takes the
      labels themselves.
    metrics: Metrics of a known set, the primary one first; () takes the task's.
  """

  texts: bool
  examples: list[Example] = dataclasses.field(default_factory=list)
  faults: list[tuple[str, str]] = dataclasses.field(default_factory=list)
  notes: list[str] = dataclasses.field(default_factory=list)
  class_names: tuple[str, ...] = ()
  metrics: tuple[str, ...] = ()

  def fault(self, place: str, reason: str) -> None:
    """Notes what is wrong with an example."""
    self.faults.append((place, reason))


def split_name(name: str) -> str:
  """Returns the split that a name of a folder or a column means, '' if none.

  >>> split_name('Val'), split_name('cats')
  ('validation', '')
  """
  return _BY_NAME.get(name.lower(), '')


def is_blank(value: object) -> bool:
  """Whether a cell of a table is empty."""
  return value is None or (isinstance(value, str) and not value.strip())

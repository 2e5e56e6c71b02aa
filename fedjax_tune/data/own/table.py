"""The rows of several of the user's own files."""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
import re
from typing import Any

from fedjax_tune.data.own.found import split_name


@dataclasses.dataclass
class Table:
  """Rows of several files.

  Attributes:
    columns: Values by column; None where a row has no value.
    places: Each row's file and line.
    splits: The split that each row's file, or part of an archive, names; '' if
      none.
    class_names: Names of classes, for columns for which a file lists them.
    faults: The places of lines that are no rows, each with what is wrong.
    folder: The folder to which paths in the table are relative.
    notes: What a user should be told, a line each.
  """

  folder: pathlib.Path
  columns: dict[str, list[Any]] = dataclasses.field(default_factory=dict)
  places: list[str] = dataclasses.field(default_factory=list)
  splits: list[str] = dataclasses.field(default_factory=list)
  class_names: dict[str, tuple[str, ...]] = dataclasses.field(
    default_factory=dict
  )
  faults: list[tuple[str, str]] = dataclasses.field(default_factory=list)
  notes: list[str] = dataclasses.field(default_factory=list)

  def add(
    self, columns: Mapping[str, Sequence[Any]], places: list[str], split: str
  ) -> None:
    """Adds rows, which may have other columns than those before."""
    before = len(self.places)
    for name in columns:
      self.columns.setdefault(name, [None] * before)
    for name, values in self.columns.items():
      values.extend(columns.get(name, [None] * len(places)))
    self.places += places
    self.splits += [split] * len(places)


def split_of(stem: str) -> str:
  """Returns the split that a file's name gives.

  >>> split_of('train-00000-of-00001'), split_of('reviews_test'), split_of('a')
  ('train', 'test', '')
  """
  found = [split_name(part) for part in re.split(r'[\W_]+', stem)]
  return next((split for split in found if split), '')

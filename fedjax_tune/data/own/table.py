"""Rows of several files of the user's own."""

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
    columns: Values by column; None where a row has none.
    places: Each row's file and line.
    splits: What its file, or part of an archive, is called; '' if not so.
    class_names: Of columns for which a file lists them.
    faults: The places of lines that are no rows, each with what is wrong.
    folder: Where paths in it begin.
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
    """Adds rows, whose columns may be others than those before."""
    before = len(self.places)
    for name in columns:
      self.columns.setdefault(name, [None] * before)
    for name, values in self.columns.items():
      values.extend(columns.get(name, [None] * len(places)))
    self.places += places
    self.splits += [split] * len(places)


def split_of(stem: str) -> str:
  """Returns the split that a file's name says.

  >>> split_of('train-00000-of-00001'), split_of('reviews_test'), split_of('a')
  ('train', 'test', '')
  """
  found = [split_name(part) for part in re.split(r'[\W_]+', stem)]
  return next((split for split in found if split), '')

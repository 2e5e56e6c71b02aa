"""The rows of a split, each checked; errors name the row."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
from typing import Generic, TypeVar

from fedjax_tune import config
from fedjax_tune.data import notes, sources
from fedjax_tune.data.own.opened import Rows
from fedjax_tune.data.prepared import Builder
from fedjax_tune.typing import Record

V = TypeVar('V')

# Features that tell what a row was made of, where a set has one.
_NAMES = ('file', 'filename', 'file_name', 'image/filename', 'id')


@dataclasses.dataclass(frozen=True)
class Row(Generic[V]):
  """A row that is kept.

  Attributes:
    domain: Index of its domain.
    record: The row's position in the split of its domain.
    name: Its name in messages.
    values: What was taken from it.
  """

  domain: int
  record: int
  name: str
  values: V


HINT = " data.bad_rows='leave_out' goes on without them."


class Faults:
  """Gathers the faults of many parts, to report all at once."""

  def __init__(self, whole: str, parts: str, hint: str = '') -> None:
    """Takes the name of the whole, that of its parts, 'rows', and a remedy."""
    self._whole, self._parts, self._hint = whole, parts, hint
    self._found: list[str] = []
    self._count = 0

  @contextlib.contextmanager
  def gather(
    self, name: str, left_out: notes.Notes | None = None
  ) -> Iterator[None]:
    """Keeps a ValueError about the part `name` for later, or counts it."""
    self._count += 1
    try:
      yield
    except ValueError as error:
      if left_out is not None:
        left_out.add(f'rows left out ({error})', name)
      else:
        self._found.append(f'{name}: {error}')

  def check(self) -> None:
    """Raises a ValueError if there was one, with the first few of them."""
    if self._found:
      raise ValueError(
        f'{self._whole}: {len(self._found)} of {self._count} {self._parts}'
        f" can't be used. {notes.join_first(self._found, '; ')}.{self._hint}"
      )


def read(
  cfg: config.Data,
  builders: Mapping[str, Builder],
  split: str,
  take: Callable[[int, Record, str], V | None],
  found: notes.Notes,
  encoded: str = '',
) -> tuple[list[Row[V]], list[Sequence]]:
  """Returns the rows of a split, domain by domain, and its data sources.

  Args:
    cfg: Names the set.
    builders: The builder of each domain.
    split: The name of the split.
    take: Returns what to keep of a row, given its domain, the row and its name;
      None leaves the row out. Raises a ValueError if something is wrong.
    found: Counts rows that are wrong, if `data.bad_rows` leaves them out.
    encoded: A feature to leave as it is stored.

  Raises:
    FileNotFoundError: The set is not prepared.
    ValueError: A row or a file is wrong, or no row of a domain was kept.
  """
  rows, opened = [], []
  leave_out = cfg.bad_rows == 'leave_out'
  for domain, (domain_name, builder) in enumerate(builders.items()):
    faults = Faults(f'{builder.info.full_name}, split {split}', 'rows', HINT)
    source = sources.open_split(cfg, builder, split, encoded)
    prefix = f'{domain_name} ' * (len(builders) > 1)
    kept = []
    for record, row in enumerate(sources.iterate(cfg, builder, source)):
      name = prefix + _name(record, row)
      if isinstance(source, Rows):
        name = source.examples[record].place
      with faults.gather(name, found if leave_out else None):
        values = take(domain, row, name)
        if values is not None:
          kept.append(Row(domain, record, name, values))
    faults.check()
    if not kept:
      raise ValueError(
        f'domain {domain_name!r} of {cfg.name} has no {split} example with'
        f' data.num_classes={cfg.num_classes} (0 keeps all)'
      )
    rows += kept if split == 'train' else spread(kept, cfg.test_examples)
    opened.append(source)
  return rows, opened


def spread(rows: list[V], count: int) -> list[V]:
  """Returns `count` rows, evenly spread over all; 0 is all."""
  if not 0 < count < len(rows):
    return rows
  return [rows[i * len(rows) // count] for i in range(count)]


def _name(record: int, row: Record) -> str:
  made_of = next((row[n] for n in _NAMES if isinstance(row.get(n), bytes)), b'')
  file = f' ({made_of.decode(errors="replace")})' * bool(made_of)
  return f'row {record}{file}'

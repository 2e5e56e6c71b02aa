"""Reports everything about the user's own set before it is used."""

from collections.abc import Iterator, Sequence
import concurrent.futures
import dataclasses

from fedjax_tune import config
from fedjax_tune.data import digest, pictures, splits
from fedjax_tune.data.notes import Notes
from fedjax_tune.data.own import sets
from fedjax_tune.data.own.found import Example
from fedjax_tune.data.own.opened import Own
from fedjax_tune.data.rows import spread

_THREADS = 8
_SIZE = 32  # Pixels; decoding is checked, what comes out is not kept.


@dataclasses.dataclass(frozen=True)
class Survey:
  """The report on a set.

  Attributes:
    own: The set as it was read.
    faults: The places of rows that cannot be used, each with the reason.
    notes: What else to tell the user, a line each.
  """

  own: Own
  faults: tuple[tuple[str, str], ...]
  notes: tuple[str, ...]

  def some(self, count: int) -> list[Example]:
    """Returns examples that can be used, spread over the classes."""
    bad = {place for place, _ in self.faults}
    every = [e for _, _, e in _all(self.own) if e.place not in bad]
    every.sort(key=lambda example: str(example.label))
    return spread(every, count)


def look(cfg: config.Data) -> Survey:
  """Reads every row, and decodes every picture.

  Raises:
    FileNotFoundError: There is nothing with that name.
    ValueError: The files cannot be understood at all.
  """
  own = sets.read(dataclasses.replace(cfg, bad_rows='leave_out'))
  found, faults = Notes(), list(own.faults)
  every = list(_all(own))
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    looked = pool.map(_inspect, (example for _, _, example in every))
    trained: set[str] = set()
    for (_, split, example), (content, fault, changes) in zip(
      every, looked, strict=True
    ):
      if fault:
        faults.append((example.place, fault))
      for change in changes:
        found.add(f'pictures {change}', example.place)
      if split == 'train':
        trained.add(content)
      elif content in trained:
        found.add('test examples are in train, too', example.place)
  return Survey(own, tuple(faults), (*own.notes, *found.lines()))


def _all(own: Own) -> Iterator[tuple[str, str, Example]]:
  """Yields all examples with domain and split, training examples first."""
  for split in splits.NAMES:
    for domain, parts in own.examples.items():
      for example in parts[split]:
        yield domain, split, example


def _inspect(example: Example) -> tuple[str, str, Sequence[str]]:
  """Returns a hash of the content, its fault if any, and its conversions."""
  if isinstance(example.content, str | tuple):
    return digest.of(example.content), '', ()
  try:
    data = pictures.read(example.content)
    pictures.to_rgb(data, _SIZE)
    return digest.of(data), '', pictures.inspect(data)
  except pictures.PictureError as error:
    return '', str(error), ()

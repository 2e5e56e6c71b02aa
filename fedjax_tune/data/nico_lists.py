"""NICO++'s lists of pictures and their classes."""

from collections.abc import Iterable
import concurrent.futures
import os
import pathlib
from typing import NamedTuple

from fedjax_tune.data import digest, pictures, rows

DOMAINS = ('autumn', 'dim', 'grass', 'outdoor', 'rock', 'water')
SPLITS = ('train', 'test')
FOLDER = 'NICO_DG_official'
NUM_CLASSES = 60
LAYOUT = (
  f'Wanted is the folder of NICO++ that holds {FOLDER}/DOMAIN_train.txt and'
  ' DOMAIN_test.txt and the images that they list.'
)

_THREADS = 8
_SURVEY_SIZE = 32  # Pixels; decoding is checked, what comes out is not kept.


class Entry(NamedTuple):
  """A line of a list: a picture, its label, and the place of the line."""

  name: str
  label: int
  place: str


def read(folder: str | os.PathLike, domain: str, split: str) -> list[Entry]:
  """Returns the lines of one list, and checks that each image exists.

  Raises:
    FileNotFoundError: The folder, the list or an image is missing.
    ValueError: A line is not a path inside the folder and a label below 60, or
      there are no lines.
  """
  folder = pathlib.Path(folder)
  entries, root = parse(folder, domain, split), folder.resolve()
  for name, _, place in entries:
    if not _is_inside(root, name):
      raise ValueError(f'{place}: {name!r} must be a path inside {folder}')
    if not (folder / name).is_file():
      raise FileNotFoundError(f'{place}: no image {folder / name}')
  return entries


def parse(folder: pathlib.Path, domain: str, split: str) -> list[Entry]:
  """Returns the lines of one list; does not look at images; see `read`."""
  file = folder / FOLDER / f'{domain}_{split}.txt'
  for path in (folder, file.parent, file):
    if not path.exists():
      raise FileNotFoundError(f'{path} does not exist. {LAYOUT}')
  try:
    lines = file.read_bytes().decode().splitlines()
  except UnicodeDecodeError as error:
    raise ValueError(f'{file} must be UTF-8: {error}') from error
  if not lines:
    raise ValueError(f'{file} is empty; must have a line for each image')
  entries = []
  for number, line in enumerate(lines, start=1):
    name, _, label = line.strip().rpartition(' ')
    if not name or not label.isdecimal() or int(label) >= NUM_CLASSES:
      raise ValueError(
        f'{file}:{number}: {line!r} must be a path and a label from 0 to'
        f' {NUM_CLASSES - 1}'
      )
    entries.append(Entry(name, int(label), f'{file}:{number}'))
  return entries


def _is_inside(root: pathlib.Path, name: str) -> bool:
  """Whether a path stays in a resolved folder, also through links."""
  path = pathlib.PurePath(name)
  if path.is_absolute() or '..' in path.parts or '\0' in name:
    return False
  # Links are followed: a list must not name files outside its folder.
  return (root / path).resolve().is_relative_to(root)


def check(folder: str | os.PathLike) -> None:
  """Checks all lists of all domains; for errors see `read`, `class_names`."""
  class_names([read(folder, d, split) for d in DOMAINS for split in SPLITS])


def class_names(lists: Iterable[list[Entry]]) -> list[str]:
  """Returns the name of each class: the folder that holds its pictures.

  If a list has a folder with pictures of several classes, folders are not
  classes, and classes are named by their numbers.

  Args:
    lists: The lists of all domains.

  Raises:
    ValueError: A folder, or a picture, has another label in another list.
  """
  lists = list(lists)
  _agree((entry.name, entry) for entries in lists for entry in entries)
  names = [str(label) for label in range(NUM_CLASSES)]
  for entries in lists:
    if len({(_folder(e), e.label) for e in entries}) > len(
      {_folder(e) for e in entries}
    ):
      return names
  _agree((_folder(entry), entry) for entries in lists for entry in entries)
  labels = {_folder(e): e.label for entries in lists for e in entries}
  if len(set(labels.values())) == len(labels):
    for name, label in labels.items():
      names[label] = name
  return names


def _folder(entry: Entry) -> str:
  return pathlib.PurePosixPath(entry.name).parent.name


def _agree(entries: Iterable[tuple[str, Entry]]) -> None:
  """Raises a ValueError if a name has two labels."""
  first: dict[str, Entry] = {}
  for name, entry in entries:
    other = first.setdefault(name, entry)
    if other.label != entry.label:
      raise ValueError(
        f'{entry.place}: {name!r} has the label {entry.label}, and'
        f' {other.label} in {other.place}; a class must mean the same'
        ' everywhere'
      )


def identify(
  folder: str | os.PathLike, domain: str
) -> dict[str, str | list[str]]:
  """Returns what a copy of a domain is made of.

  Lists are identified by their content, pictures by name, size and time of
  change (to the nanosecond), because reading all pictures would take as long as
  preparing. Other domains' lists, if they exist, are included for the names of
  the classes.

  Raises:
    FileNotFoundError, ValueError: See `read`.
  """
  folder = pathlib.Path(folder)
  lists = {
    (other, split): parse(folder, other, split)
    for other in DOMAINS
    for split in SPLITS
    if other == domain or (folder / FOLDER / f'{other}_{split}.txt').exists()
  }
  own = [lists[domain, split] for split in SPLITS]
  stats = [_stat(folder, entry) for entries in own for entry in entries]
  return {
    'folder': os.path.abspath(folder),
    'lists': digest.of([[e[:2] for e in entries] for entries in own]),
    'pictures': digest.of([[s.st_size, s.st_mtime_ns] for s in stats]),
    'classes': class_names(lists.values()),
  }


def _stat(folder: pathlib.Path, entry: Entry) -> os.stat_result:
  try:
    return os.stat(folder / entry.name)
  except FileNotFoundError as error:
    raise FileNotFoundError(
      f'{entry.place}: no image {folder / entry.name}'
    ) from error


def check_pictures(folder: str | os.PathLike, entries: list[Entry]) -> None:
  """Decodes pictures, to find those that can't be.

  Raises:
    ValueError: There are some; the message names the first few.
  """

  def decode(entry: Entry) -> ValueError | None:
    try:
      data = pathlib.Path(folder, entry.name).read_bytes()
      pictures.to_rgb(data, _SURVEY_SIZE)
    except pictures.PictureError as error:
      return error

  faults = rows.Faults(f'{folder}', 'pictures')
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    found = pool.map(decode, entries)
    for entry, error in zip(entries, found, strict=True):
      with faults.gather(entry.name):
        if error:
          raise error
  faults.check()

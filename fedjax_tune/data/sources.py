"""Prepared sets on disk: where they are, and how they are opened."""

from collections.abc import Iterator, Sequence
import os

from fedjax_tune import config
from fedjax_tune.data import fetch, metadata, nico_lists
from fedjax_tune.data.own import sets as own
from fedjax_tune.data.own.opened import Part
from fedjax_tune.data.prepared import Builder
from fedjax_tune.typing import Record


def check(cfg: config.Data) -> None:
  """Checks name, numbers and folder, before any data are read.

  Raises:
    ValueError: No set has this name, or a number is impossible.
    NotADirectoryError, PermissionError: The folder can't be read.
  """
  if own.is_own(cfg.name):
    own.check(cfg)
  else:
    try:
      metadata.check_name(cfg.name)
    except ValueError as error:
      raise ValueError(f'{error}{own.suggest(cfg.name)}') from error
  if cfg.num_classes < 0:
    raise ValueError(
      f'data.num_classes={cfg.num_classes}: must not be negative'
    )
  folder = fetch.data_dir(cfg.data_dir)
  if not folder.exists():
    return  # `launch.prepare` makes it.
  place = cfg.data_dir or str(folder)
  if not folder.is_dir():
    raise NotADirectoryError(f'data.data_dir={place!r} is not a folder')
  if not os.access(folder, os.R_OK | os.X_OK):
    raise PermissionError(f'data.data_dir={place!r} is not readable')


def make_builder(cfg: config.Data, domain: str) -> Builder:
  """Returns the TFDS builder of one domain, which fetches nothing.

  The set nico is prepared here if the data folder is NICO++'s own.
  """
  from fedjax_tune.data import builders

  folder = fetch.data_dir(cfg.data_dir)
  builder = builders.make_builder(cfg.name, domain, cfg.image_size, folder)
  if _is_source(cfg):
    builders.build(builder, source=folder)
  check_copy(cfg, builder)
  return builder


def check_copy(cfg: config.Data, builder: Builder) -> None:
  """Checks the copy of a domain, if there is one.

  Raises:
    ValueError: The copy is incomplete or out of date; the message has the
      command that rebuilds it.
  """
  from fedjax_tune.data import builders

  if os.path.exists(builder.data_path) and (
    fault := builders.find_fault(builder)
  ):
    own = hasattr(builder, 'made_of')
    delete = '' if own else ' Delete that folder.'
    raise ValueError(
      f'{builder.data_dir} is incomplete, corrupt or out of date: {fault}.'
      f'{delete} Prepare it with `{command(cfg)}`.'
    )


def _is_source(cfg: config.Data) -> bool:
  """Whether the data folder is that of NICO++ itself."""
  folder = fetch.data_dir(cfg.data_dir)
  return cfg.name == 'nico' and (folder / nico_lists.FOLDER).is_dir()


def is_prepared(cfg: config.Data, domains: Sequence[str]) -> bool:
  """Whether each domain of a set is there, or the files to make it from.

  Raises:
    ValueError: See `builders.make_builder` and `check_copy`.
  """
  from fedjax_tune.data import builders

  folder = fetch.data_dir(cfg.data_dir)
  if own.is_own(cfg.name) or _is_source(cfg):
    return True
  with builders.quiet():
    return all(
      _opens(
        cfg, builders.make_builder(cfg.name, domain, cfg.image_size, folder)
      )
      for domain in domains
    )


def _opens(cfg: config.Data, builder: Builder) -> bool:
  check_copy(cfg, builder)
  if builder.is_prepared():
    return True
  try:
    open_split(cfg, builder, 'train')
  except FileNotFoundError:
    return False
  return True


def find_test(
  cfg: config.Data, builders: Sequence[Builder], wanted: str = 'test'
) -> str:
  """Returns the split to evaluate on: `wanted`, or else 'validation'.

  Raises:
    ValueError: A domain has no such split, or no train split.
  """
  split = wanted
  for builder in builders:
    # mock_data knows no splits before they are read.
    sizes = {k: v.num_examples for k, v in builder.info.splits.items()}
    if sizes and split not in sizes:
      split = 'validation'
    for needed in ('train', split):
      if sizes and not sizes.get(needed):
        has = ', '.join(f'{k} ({v})' for k, v in sizes.items())
        raise ValueError(
          f'data.name={cfg.name!r}: {builder.info.full_name} must have examples'
          f' in a split train and in one called {wanted} or validation; it has'
          f' {has}'
        )
  return split


def open_split(
  cfg: config.Data, builder: Builder, split: str, encoded: str = ''
) -> Sequence:
  """Returns the data source of a split.

  Args:
    cfg: Names the set.
    builder: The builder of the domain.
    split: The name of the split.
    encoded: A feature to leave as it is stored.

  Raises:
    FileNotFoundError: The set is not prepared; the message has the command.
  """
  if isinstance(builder, Part):
    return builder.as_data_source(split)
  import tensorflow_datasets as tfds

  try:
    source = builder.as_data_source(split)
    if encoded:
      source.decoders = {encoded: tfds.decode.SkipDecoding()}
    return source
  except (KeyError, NotImplementedError, OSError, ValueError) as error:
    raise FileNotFoundError(
      f'{builder.info.full_name} is not prepared, or not as array_record, in'
      f' {builder.data_dir}. Prepare it with `{command(cfg)}`.'
    ) from error


def iterate(
  cfg: config.Data, builder: Builder, source: Sequence
) -> Iterator[Record]:
  """Yields the rows of a source of `builder`.

  Raises:
    ValueError: The files are corrupt.
  """
  try:
    yield from (source[i] for i in range(len(source)))
  except RuntimeError as error:  # Of the record reader.
    raise ValueError(
      f'{builder.data_dir} is incomplete or corrupt ({error}). Delete that'
      f' folder. Prepare it with `{command(cfg)}`.'
    ) from error


def command(cfg: config.Data, **options: str) -> str:
  """Returns the command that prepares a set; `options` are more of its flags."""
  return fetch.command(
    cfg.data_dir,
    dataset=cfg.name,
    image_size=cfg.image_size if cfg.name == 'emoji_styles' else '',
    source='FOLDER' if cfg.name == 'nico' else '',
    **options,
  )

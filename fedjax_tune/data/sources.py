"""Prepared sets on disk: where they are, how they are opened and made."""

from collections.abc import Iterator, Mapping, Sequence
import os
import pathlib
from typing import Any

from fedjax_tune import config
from fedjax_tune.data import fetch


def check(cfg: config.Data) -> None:
  """Checks the numbers and the folder, before any data are read.

  Raises:
    ValueError: A number is impossible.
    FileNotFoundError, NotADirectoryError, PermissionError: The folder can't be
      read.
  """
  if cfg.image_size < 1:
    raise ValueError(f'data.image_size={cfg.image_size}: must be at least 1')
  if cfg.num_classes < 0:
    raise ValueError(
      f'data.num_classes={cfg.num_classes}: must not be negative'
    )
  folder = _folder(cfg)
  if not folder.exists():
    if not cfg.data_dir:
      return  # The cache, which is made when there is something to keep.
    raise FileNotFoundError(
      f'data.data_dir={cfg.data_dir!r} does not exist.{_how_to(cfg, folder)}'
    )
  place = cfg.data_dir or str(folder)
  if not folder.is_dir():
    raise NotADirectoryError(f'data.data_dir={place!r} is not a folder')
  if not os.access(folder, os.R_OK | os.X_OK):
    raise PermissionError(f'data.data_dir={place!r} is not readable')


def make_builder(cfg: config.Data, domain: str) -> Any:
  """Returns the TFDS builder of one domain, prepared here where that is easy.

  That is a set out of packages, and nico where the data folder is that of
  NICO++.
  """
  from fedjax_tune.data import builders, nico

  folder = _folder(cfg)
  builder = builders.make_builder(cfg.name, domain, cfg.image_size, folder)
  if cfg.name in builders.PACKAGED:
    builders.build(builder)
  if cfg.name == 'nico' and (folder / nico.LISTS).is_dir():
    builders.build(builder, source=folder)
  return builder


def open_split(cfg: config.Data, builder: Any, split: str) -> Any:
  """Returns the data source of a split.

  Raises:
    FileNotFoundError: The set is not prepared; the message has the command.
  """
  try:
    return builder.as_data_source(split)
  except (KeyError, NotImplementedError, OSError, ValueError) as error:
    raise FileNotFoundError(
      f'{builder.info.full_name} is not prepared, or not as array_record, in'
      f' {builder.data_dir}.{_how_to(cfg, _folder(cfg))}'
    ) from error


def iterate(
  cfg: config.Data, builder: Any, source: Sequence
) -> Iterator[Mapping[str, Any]]:
  """Yields the rows of a source of `builder`.

  Raises:
    ValueError: The files are corrupt.
  """
  try:
    yield from (source[i] for i in range(len(source)))
  except RuntimeError as error:  # Of the record reader.
    raise ValueError(
      f'{builder.data_dir} is incomplete or corrupt ({error}). Delete that'
      f' folder.{_how_to(cfg, _folder(cfg))}'
    ) from error


def _folder(cfg: config.Data) -> pathlib.Path:
  if cfg.data_dir:
    return pathlib.Path(cfg.data_dir).expanduser()
  return fetch.default_data_dir()


def _how_to(cfg: config.Data, folder: pathlib.Path) -> str:
  size = f' --image_size={cfg.image_size}' * (cfg.name == 'emoji_styles')
  source = ' --source=FOLDER' * (cfg.name == 'nico')
  return (
    f' Prepare it with `python -m launch.prepare --dataset={cfg.name}'
    f' --data_dir={folder}{size}{source}`.'
  )

"""The TFDS builders behind the names of data sets, and how they are run."""

import contextlib
import io
import os
from typing import Any

import tensorflow_datasets as tfds

from fedjax_tune.data import (
  emoji_styles,
  friends,
  movie_reviews,
  newsgroups,
  nico,
  text_sets,
)

# Sets that have a TFDS config for each domain. The order is that of budgets;
# DomainNet's is that of FedRA's authors.
DOMAINS = {
  'emoji_styles': tuple(emoji_styles.STYLES),
  'nico': nico.DOMAINS,
  'movie_reviews': movie_reviews.DOMAINS,
  'domainnet': (
    'clipart',
    'infograph',
    'painting',
    'quickdraw',
    'real',
    'sketch',
  ),
}

# Sets that the package builds itself, from packages on npm or PyPI.
PACKAGED = ('emoji_styles', 'movie_reviews', 'newsgroups', 'friends')


def list_domains(name: str) -> tuple[str, ...]:
  """Returns all domains of a set; one without domains is its own only one."""
  return DOMAINS.get(name, (name,))


def make_builder(
  name: str, domain: str, image_size: int, data_dir: str | os.PathLike
) -> Any:
  """Returns the TFDS builder of one domain.

  Args:
    name: Of the set.
    domain: One of `list_domains(name)`.
    image_size: Pixels of a side, for sets that are drawn to measure.
    data_dir: The root folder of prepared sets.

  Raises:
    ValueError: An unknown set, one that has neither images with labels nor
      text of a known layout, or one that is prepared in another format than
      array_record.
  """
  if name == 'emoji_styles':
    return emoji_styles.make_builder(domain, image_size, data_dir)
  if name == 'nico':
    return nico.make_builder(domain, data_dir)
  if name == 'movie_reviews':
    return movie_reviews.make_builder(domain, data_dir)
  if name == 'newsgroups':
    return newsgroups.make_builder(data_dir)
  if name == 'friends':
    return friends.make_builder(data_dir)
  full_name = f'{name}/{domain}' if name in DOMAINS else name
  try:
    builder = tfds.builder(
      full_name, data_dir=data_dir, file_format='array_record'
    )
  except tfds.core.DatasetNotFoundError as error:
    raise ValueError(
      f'data.name={name!r}: must be one of'
      f' {", ".join(dict.fromkeys((*DOMAINS, *PACKAGED)))}, a set of the TFDS'
      f' catalogue, or one prepared in {data_dir}'
    ) from error
  except ValueError as error:
    raise ValueError(
      f'data.name={name!r} in {data_dir}: TFDS refuses it ({error}); wanted is'
      ' a set prepared with file_format array_record'
    ) from error
  features: Any = builder.info.features
  if not {'image', 'label'} <= set(features) and not text_sets.find(
    name, features, 'next_token'
  ):
    raise ValueError(
      f'data.name={name!r}: has the features {", ".join(features)}; must have'
      ' image and label, or text'
    )
  return builder


def build(builder: Any, source: str | os.PathLike | None = None) -> bool:
  """Prepares the set of `builder`, unless it is there already.

  Args:
    builder: From `make_builder`.
    source: A folder with the original files, for sets that need one.

  Returns:
    Whether there was anything to do.
  """
  if builder.is_prepared():
    return False
  tfds.disable_progress_bar()
  download_config = tfds.download.DownloadConfig(manual_dir=source)
  with contextlib.redirect_stdout(io.StringIO()):
    builder.download_and_prepare(download_config=download_config)
  return True

"""NICO++ from a local folder, one config a domain.

NICO++ (arXiv 2204.08040) can't be fetched automatically. The folder is laid
out as FedRA's authors read it (github.com/leondada/FedRA, datasets/NICOPP.py):

  FOLDER/NICO_DG_official/autumn_train.txt   lines of 'relative/path.jpg 17'
  FOLDER/NICO_DG_official/autumn_test.txt    and so for each domain
  FOLDER/relative/path.jpg
"""

from collections.abc import Iterable, Iterator
import os
import pathlib
from typing import Any, ClassVar, cast

from PIL import Image, UnidentifiedImageError
import tensorflow_datasets as tfds

DOMAINS = ('autumn', 'dim', 'grass', 'outdoor', 'rock', 'water')
LISTS = 'NICO_DG_official'
NUM_CLASSES = 60

_LAYOUT = (
  f'Wanted is the folder of NICO++ that holds {LISTS}/DOMAIN_train.txt and'
  ' DOMAIN_test.txt and the images that they list.'
)


class Nico(tfds.core.GeneratorBasedBuilder):
  """NICO++ with the official domain generalisation lists; see the module."""

  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS: ClassVar = [
    tfds.core.BuilderConfig(name=d, description=f'Domain {d}.') for d in DOMAINS
  ]
  MANUAL_DOWNLOAD_INSTRUCTIONS = _LAYOUT

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=__doc__,
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Image(
            shape=(None, None, 3), encoding_format='jpeg'
          ),
          'label': tfds.features.ClassLabel(num_classes=NUM_CLASSES),
        }
      ),
      supervised_keys=('image', 'label'),
      homepage='https://github.com/xxgege/NICO-plus',
      citation='@article{zhang2022nico, title={NICO++: Towards Better'
      ' Benchmarking for Domain Generalization}, author={Zhang, Xingxuan and'
      ' others}, journal={arXiv:2204.08040}, year={2022}}',
    )

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
    config = cast(tfds.core.BuilderConfig, self.builder_config)
    folder = dl_manager.manual_dir
    return {
      split: self._generate_examples(read_list(folder, config.name, split))
      for split in ('train', 'test')
    }

  def _generate_examples(
    self, rows: Iterable[tuple[pathlib.Path, int]]
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    for key, (path, label) in enumerate(rows):
      yield key, {'image': _read_image(path), 'label': label}


def make_builder(domain: str, data_dir: str | os.PathLike) -> Nico:
  """Returns the builder of one domain."""
  return Nico(config=domain, data_dir=data_dir, file_format='array_record')


def check_source(folder: str | os.PathLike) -> None:
  """Raises a FileNotFoundError or ValueError unless all lists are good."""
  for domain in DOMAINS:
    for split in ('train', 'test'):
      read_list(folder, domain, split)


def read_list(
  folder: str | os.PathLike, domain: str, split: str
) -> list[tuple[pathlib.Path, int]]:
  """Returns the image paths and labels of one list.

  Raises:
    FileNotFoundError: The folder, the list or an image is missing.
    ValueError: A line is not a path and a label below 60, or the path leaves
      the folder.
  """
  folder = pathlib.Path(folder)
  file = folder / LISTS / f'{domain}_{split}.txt'
  for path in (folder, file.parent, file):
    if not path.exists():
      raise FileNotFoundError(f'{path} does not exist. {_LAYOUT}')
  rows, root = [], folder.resolve()
  for number, line in enumerate(file.read_text().splitlines(), start=1):
    name, _, label = line.strip().rpartition(' ')
    if not name or not label.isdecimal() or int(label) >= NUM_CLASSES:
      raise ValueError(
        f'{file}:{number}: {line!r} must be a path and a label from 0 to'
        f' {NUM_CLASSES - 1}'
      )
    if not _is_inside(root, name):
      raise ValueError(
        f'{file}:{number}: {name!r} must be a path inside {folder}'
      )
    if not (folder / name).is_file():
      raise FileNotFoundError(f'{file}:{number}: no image {folder / name}')
    rows.append((folder / name, int(label)))
  return rows


def _is_inside(root: pathlib.Path, name: str) -> bool:
  """Whether a path stays in a resolved folder, also through links."""
  path = pathlib.PurePath(name)
  if path.is_absolute() or '..' in path.parts or '\0' in name:
    return False
  # Links are followed; a list is not to name what its folder does not hold.
  return (root / path).resolve().is_relative_to(root)


def _read_image(path: pathlib.Path) -> str | Image.Image:
  """Keeps the bytes of an RGB JPEG; decodes and converts anything else."""
  try:
    with Image.open(path) as image:
      if image.format == 'JPEG' and image.mode == 'RGB':
        return str(path)
      return image.convert('RGB')
  except UnidentifiedImageError as error:
    raise ValueError(f'{path} is not an image that can be read') from error

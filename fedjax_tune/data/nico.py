"""NICO++ from a local folder, one config per domain.

NICO++ (arXiv 2204.08040) can't be fetched automatically. The folder is laid
out as FedRA's authors read it (github.com/leondada/FedRA, datasets/NICOPP.py):

  FOLDER/NICO_DG_official/autumn_train.txt   lines of 'relative/path.jpg 17'
  FOLDER/NICO_DG_official/autumn_test.txt    and so for each domain
  FOLDER/relative/path.jpg
"""

from collections.abc import Iterator
import os
import pathlib
from typing import Any, ClassVar, cast

import tensorflow_datasets as tfds

from fedjax_tune.data import nico_lists
from fedjax_tune.data.nico_lists import DOMAINS, NUM_CLASSES
from fedjax_tune.typing import Json


class Nico(tfds.core.GeneratorBasedBuilder):
  """NICO++ with the official domain generalisation lists; see the module."""

  VERSION = tfds.core.Version('2.0.0')
  RELEASE_NOTES: ClassVar = {
    '2.0.0': 'Pictures as their files have them, with name and class names.'
  }
  BUILDER_CONFIGS: ClassVar = [
    tfds.core.BuilderConfig(name=d, description=f'Domain {d}.') for d in DOMAINS
  ]
  MANUAL_DOWNLOAD_INSTRUCTIONS = nico_lists.LAYOUT

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=__doc__,
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Image(shape=(None, None, 3)),
          'label': tfds.features.ClassLabel(num_classes=NUM_CLASSES),
          'file': tfds.features.Text(),
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
  ) -> dict[str, Iterator[tuple[int, dict[str, object]]]]:
    folder = dl_manager.manual_dir
    features = cast(Any, self.info.features)
    features['label'].names = self.made_of(folder)['classes']
    lists = {
      split: nico_lists.read(folder, self._domain, split)
      for split in nico_lists.SPLITS
    }
    for entries in lists.values():
      nico_lists.check_pictures(folder, entries)
    return {
      split: self._generate_examples(folder, entries)
      for split, entries in lists.items()
    }

  def _generate_examples(
    self, folder: os.PathLike, entries: list[nico_lists.Entry]
  ) -> Iterator[tuple[int, dict[str, object]]]:
    for key, (name, label, _) in enumerate(entries):
      image = pathlib.Path(folder, name).read_bytes()
      yield key, {'image': image, 'label': label, 'file': name}

  def made_of(self, source: str | os.PathLike) -> Json:
    """Returns what a copy of the files in `source` is made of."""
    return nico_lists.identify(source, self._domain)

  @property
  def _domain(self) -> str:
    return cast(tfds.core.BuilderConfig, self.builder_config).name


def make_builder(domain: str, data_dir: str | os.PathLike) -> Nico:
  """Returns the builder of one domain."""
  return Nico(config=domain, data_dir=data_dir, file_format='array_record')

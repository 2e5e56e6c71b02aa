"""Rows of a text set as the arrays that a model and its task read."""

from collections.abc import Sequence
import dataclasses

import numpy as np
import tokenizers

from fedjax_tune.data import array_cache, spans, tokens
from fedjax_tune.data.metrics import Questions
from fedjax_tune.data.tasks import Task
from fedjax_tune.data.text_sets import TextSet
from fedjax_tune.typing import Json, Record


@dataclasses.dataclass(frozen=True)
class TextExamples:
  """N examples; for a set with spans, the windows of its questions.

  Attributes:
    encoded: Tokens of the examples.
    labels: int32[N], float32[N], int32[N, 4] or int32[N, T], see
      `tasks.Examples`.
    groups: The natural client of each, str[N], if the set names it.
    rows: The row that each was made from, int32[N].
    questions: What predicted spans are judged by, else None.
  """

  encoded: tokens.Encoded
  labels: np.ndarray
  groups: np.ndarray | None
  rows: np.ndarray
  questions: Questions | None


def make_task(entry: TextSet, num_classes: int) -> Task:
  """Returns the task of a set with some number of classes or tokens."""
  sizes = {'regression': 1, 'span': 2}
  return Task(entry.kind, sizes.get(entry.kind, num_classes), entry.metrics)


def encode(
  rows: Sequence[Record],
  entry: TextSet,
  tokenizer: tokenizers.Tokenizer,
  max_length: int,
  pad: int,
  cache: array_cache.Cache | None = None,
) -> TextExamples:
  """Encodes the rows of a set.

  Args:
    rows: Rows of a TFDS data source; text is bytes from disk, str from
      mock_data.
    entry: The layout of the rows.
    tokenizer: From `tokens.load`.
    max_length: The most tokens; longer texts are cut, contexts windowed.
    pad: The model's padding token.
    cache: See `tokens.encode`; the windows of spans are not kept.

  Raises:
    ValueError: `max_length` is too small, `pad` is a token of a text, or a
      text that gets a label has no token.
  """
  first, second = parts(rows, entry)
  groups = None
  if entry.group:
    groups = np.array([to_str(row[entry.group]) for row in rows])
  if second is not None and entry.kind == 'span':
    answers = [_read_answers(row['answers']) for row in rows]
    encoded, labels, questions = spans.encode(
      tokenizer, first, second, answers, max_length, pad
    )
    may_lack = entry.unanswerable or questions.unanswerable
    questions = dataclasses.replace(questions, unanswerable=may_lack)
    if groups is not None:
      groups = groups[questions.question]
    return TextExamples(encoded, labels, groups, questions.question, questions)
  encoded = tokens.encode(tokenizer, first, second, max_length, pad, cache)
  if entry.kind == 'next_token':
    labels = next_tokens(encoded)
  else:
    _check_tokens(first, encoded.lengths)
    dtype = np.float32 if entry.kind == 'regression' else np.int32
    labels = np.array([row[entry.label] for row in rows], dtype)
  rows_N = np.arange(len(rows), dtype=np.int32)
  return TextExamples(encoded, labels, groups, rows_N, None)


def parts(
  rows: Sequence[Record], entry: TextSet
) -> tuple[list[str], list[str] | None]:
  """Returns the texts of rows, and the second parts of pairs."""
  first = [' '.join(to_str(row[f]) for f in entry.first) for row in rows]
  if not entry.second:
    return first, None
  return first, [to_str(row[entry.second]) for row in rows]


def _check_tokens(texts: Sequence[str], lengths_N: np.ndarray) -> None:
  """Refuses texts of only padding, whose class would be arbitrary."""
  if not lengths_N.all():
    number = int(np.argmin(lengths_N))
    raise ValueError(
      f'example {number} (counted from 0) is {texts[number]!r}, which has no '
      'token, and this tokenizer adds none: there is nothing to classify.'
    )


def read_row(row: Record, entry: TextSet) -> Json:
  """Returns the fields of a row that are read: texts as str, and the label.

  Raises:
    ValueError: A text is no text or not UTF-8, or a number is not finite or out
      of the set's range.
  """
  values = dict(row)
  for feature in (*entry.texts, entry.group):
    if feature:
      values[feature] = read_text(row[feature], feature)
  if entry.kind == 'regression':
    low, high = entry.bounds
    value = np.asarray(row[entry.label])
    if value.shape or not low <= value <= high:
      raise ValueError(
        f'{entry.label}={row[entry.label]!s} must be a number from {low:g} to'
        f' {high:g}'
      )
  return values


def inspect_answers(context: str, answers: Record) -> tuple[str, ...]:
  """Returns the oddities of the answers to a question."""
  starts, texts = answers['answer_start'], answers['text']
  found = _read_answers(answers)
  beside = any(
    begin < 0 or not context.startswith(text, begin) for begin, text in found
  )
  notes = {
    'questions have answers that are not where answer_start says': beside,
    'questions have not as many starts as answers': len(starts) != len(texts),
  }
  return tuple(note for note, holds in notes.items() if holds)


def read_text(value: object, feature: str) -> str:
  """Returns a feature's text, or raises a ValueError if it is not text."""
  if not isinstance(value, bytes | str):
    raise ValueError(f'{feature} is {type(value).__name__}; must be a text')
  try:
    return to_str(value)
  except UnicodeDecodeError as error:
    raise ValueError(
      f'{feature}={value[:40]!r} is not UTF-8: {error.reason}, byte'
      f' {error.start}'
    ) from error


def next_tokens(encoded: tokens.Encoded) -> np.ndarray:
  """Returns the next token of each, int32[N, T]; -1 from a text's last on."""
  following = np.roll(encoded.ids, -1, axis=1)
  token_T = np.arange(following.shape[1])
  return np.where(token_T < encoded.lengths[:, None] - 1, following, -1)


def to_str(text: object) -> str:
  """Returns a feature's text, be it bytes or str."""
  return text.decode() if isinstance(text, bytes) else str(text)


def _read_answers(answers: Record) -> list[spans.Answer]:
  # mock_data gives the two lists different lengths; `inspect_answers` tells.
  pairs = zip(answers['answer_start'], answers['text'], strict=False)
  return [(int(start), to_str(text)) for start, text in pairs]

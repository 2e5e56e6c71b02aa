"""Judges answers in words as SQuAD's two official scripts do."""

import collections
from collections.abc import Iterable
import re
import string

_ARTICLES = re.compile(r'\b(a|an|the)\b')
_PUNCTUATION = frozenset(string.punctuation)


def normalize_answer(text: str) -> str:
  """Drops case, punctuation, articles and extra blanks (SQuAD's rule)."""
  text = ''.join(c for c in text.lower() if c not in _PUNCTUATION)
  return ' '.join(_ARTICLES.sub(' ', text).split())


def exact_match(
  answer: str, references: Iterable[str], *, unanswerable: bool | None = None
) -> float:
  """Returns 1 if the answer equals a reference once normalised, else 0.

  Args:
    answer: The predicted answer; '' declines to answer.
    references: The right answers; only '' for a question without one.
    unanswerable: Which of SQuAD's two scripts judges, see `answer_f1`.
  """
  _, references = _by_script(references, unanswerable)
  answer = normalize_answer(answer)
  return float(any(answer == normalize_answer(r) for r in references))


def answer_f1(
  answer: str, references: Iterable[str], *, unanswerable: bool | None = None
) -> float:
  """Returns the best F1 of the answer's words (arXiv 1606.05250, sec. 6.1).

  Args:
    answer: The predicted answer; '' declines to answer.
    references: The right answers; only '' for a question without one.
    unanswerable: Whether the set has questions without an answer. If so, as in
      evaluate-v2.0.py, references that normalise to nothing don't count, and if
      no other is left only an answer without words is right (arXiv 1806.03822).
      If not, as in evaluate-v1.1.py, no answer shares a word with such a
      reference, so all get 0. None decides by the question.
  """
  declines, references = _by_script(references, unanswerable)
  words = normalize_answer(answer).split()
  return max(
    _word_f1(words, normalize_answer(r).split(), declines=declines)
    for r in references
  )


def _by_script(
  references: Iterable[str], unanswerable: bool | None
) -> tuple[bool, list[str]]:
  """Returns whether v2.0's script judges, and the references it takes."""
  given = list(references) or ['']
  if unanswerable is None:
    unanswerable = given == ['']
  if not unanswerable:
    return False, given
  return True, [r for r in given if normalize_answer(r)] or ['']


def _word_f1(words: list[str], wanted: list[str], *, declines: bool) -> float:
  if not words or not wanted:
    return float(declines and words == wanted)
  both = collections.Counter(words) & collections.Counter(wanted)
  return 2 * both.total() / (len(words) + len(wanted))

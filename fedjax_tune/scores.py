"""Metrics of predictions, in NumPy.

More is better, and 1 the most, of all but perplexity.
"""

import collections
from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import re
import string

import numpy as np

_ARTICLES = re.compile(r'\b(a|an|the)\b')
_PUNCTUATION = frozenset(string.punctuation)


def accuracy(predicted: np.ndarray, label: np.ndarray) -> float:
  """Returns the share of equal entries of two int[N]."""
  return float(np.mean(predicted == label))


def f1(predicted: np.ndarray, label: np.ndarray) -> float:
  """Returns F1 of class 1; 0 where it is neither predicted nor there."""
  both = np.sum((predicted == 1) & (label == 1))
  each = np.sum(predicted == 1) + np.sum(label == 1)
  return float(2 * both / max(each, 1))


def matthews(predicted: np.ndarray, label: np.ndarray) -> float:
  """Returns Matthews' correlation of two classes, which is Pearson's phi."""
  return pearson(predicted == 1, label == 1)


def pearson(predicted: np.ndarray, label: np.ndarray) -> float:
  """Returns the linear correlation; 0 where one side does not vary."""
  x, y = (np.asarray(a, np.float64) for a in (predicted, label))
  if not len(x) or (x == x[0]).all() or (y == y[0]).all():
    return 0.0
  return float(np.corrcoef(x, y)[0, 1])


def spearman(predicted: np.ndarray, label: np.ndarray) -> float:
  """Returns the correlation of ranks; equal values share their mean rank."""
  return pearson(_rank(predicted), _rank(label))


def _rank(values: np.ndarray) -> np.ndarray:
  _, inverse, counts = np.unique(
    values, return_inverse=True, return_counts=True
  )
  return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def normalize_answer(text: str) -> str:
  """Drops case, punctuation, articles and extra blanks (SQuAD's rule)."""
  text = ''.join(c for c in text.lower() if c not in _PUNCTUATION)
  return ' '.join(_ARTICLES.sub(' ', text).split())


def exact_match(answer: str, references: Iterable[str]) -> float:
  """Returns 1 if the answer equals a reference once normalised, else 0.

  A question without an answer has the one reference ''.
  """
  answer = normalize_answer(answer)
  return float(any(answer == normalize_answer(r) for r in references))


def answer_f1(answer: str, references: Iterable[str]) -> float:
  """Returns the best F1 of the answer's words (arXiv 1606.05250, sec. 6.1).

  A question without an answer has the one reference '', which only an answer
  without words matches (arXiv 1806.03822).
  """
  return max(_word_f1(answer, r) for r in references)


def _word_f1(answer: str, reference: str) -> float:
  words, wanted = (normalize_answer(t).split() for t in (answer, reference))
  if not words or not wanted:
    return float(words == wanted)
  both = collections.Counter(words) & collections.Counter(wanted)
  return 2 * both.total() / (len(words) + len(wanted))


def token_accuracy(predicted: Mapping[str, np.ndarray]) -> float:
  """Returns the share of all tokens that were foreseen."""
  return float(predicted['correct'].sum() / max(predicted['count'].sum(), 1))


def perplexity(predicted: Mapping[str, np.ndarray]) -> float:
  """Returns exp of the mean cross entropy of all tokens; less is better."""
  total = np.sum(predicted['loss'], dtype=np.float64)
  return float(np.exp(total / max(predicted['count'].sum(), 1)))


# By kind of task; spans are judged as the mean over questions, next tokens by
# their sums over texts.
METRICS: Mapping[str, Mapping[str, Callable[..., float]]] = {
  'classification': {'accuracy': accuracy, 'f1': f1, 'matthews': matthews},
  'regression': {'pearson': pearson, 'spearman': spearman},
  'span': {'f1': answer_f1, 'exact_match': exact_match},
  'next_token': {'accuracy': token_accuracy, 'perplexity': perplexity},
}


@dataclasses.dataclass(frozen=True)
class Questions:
  """What turns predicted spans of windows into answers.

  Attributes:
    question: For each window the question it belongs to, int32[N].
    offsets: For each window and token the first character of the context and
      the one after the last, int32[N, T, 2].
    contexts: Of each question.
    references: Of each question, the right answers; ('',) where there is none.
    unanswerable: Whether the set has questions without an answer.
  """

  question: np.ndarray
  offsets: np.ndarray
  contexts: Sequence[str]
  references: Sequence[tuple[str, ...]]
  unanswerable: bool

  def answers(self, predicted: Mapping[str, np.ndarray]) -> list[str]:
    """Returns one answer a question, from the window that scores highest.

    No answer ('') where that is an option and the least score for it, over
    the windows, is above the best span's (as in BERT's run_squad.py).

    Args:
      predicted: Arrays [N] from `Task.predict`, in the order of the windows.
    """
    found = [''] * len(self.contexts)
    best = np.full(len(found), -np.inf)
    null = np.full(len(found), np.inf)
    np.minimum.at(null, self.question, predicted['null'])
    names = ('start', 'end', 'score')
    rows = zip(
      self.question, self.offsets, *(predicted[k] for k in names), strict=True
    )
    for question, place, start, end, score in rows:
      if score > best[question]:
        best[question] = score
        text = self.contexts[question]
        found[question] = text[place[start, 0] : place[end, 1]]
    if not self.unanswerable:
      return found
    return [
      '' if none > some else answer
      for answer, none, some in zip(found, null, best, strict=True)
    ]


def evaluate(
  kind: str,
  metrics: Iterable[str],
  predicted: Mapping[str, np.ndarray],
  label: np.ndarray | Questions,
) -> dict[str, float]:
  """Returns each metric by name, in the order given.

  Args:
    kind: Of the task.
    metrics: Names in `METRICS[kind]`.
    predicted: Arrays [N] from `Task.predict`, without padding rows.
    label: [N, ...]; for spans the questions. Next tokens were judged before.

  Raises:
    ValueError: There is no example, or a number of predictions that differs.
  """
  counts = {len(a) for a in predicted.values()}
  wanted = len(label.question if isinstance(label, Questions) else label)
  if counts != {wanted} or not wanted:
    raise ValueError(
      f'{sorted(counts)} predictions for {wanted} examples: there must be one'
      ' for each, and at least one'
    )
  functions = {name: METRICS[kind][name] for name in metrics}
  if isinstance(label, Questions):
    pairs = list(zip(label.answers(predicted), label.references, strict=True))
    return {
      name: float(np.mean([function(*pair) for pair in pairs]))
      for name, function in functions.items()
    }
  if kind == 'next_token':
    return {name: function(predicted) for name, function in functions.items()}
  (values,) = predicted.values()
  return {name: f(values, label) for name, f in functions.items()}

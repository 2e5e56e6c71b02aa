"""Metrics of predictions, in NumPy.

Higher is better, up to 1, except for perplexity. If any prediction or label is
NaN, every metric is NaN.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import math

import numpy as np

from fedjax_tune.data.squad import answer_f1, exact_match


def accuracy(predicted: np.ndarray, label: np.ndarray) -> float:
  """Returns the share of equal entries of two int[N]."""
  x, y = _pair(predicted, label)
  return math.nan if _has_nan(x, y) else float(np.mean(x == y))


def f1(predicted: np.ndarray, label: np.ndarray) -> float:
  """Returns F1 of class 1; 0 if it is neither predicted nor there."""
  x, y = _pair(predicted, label)
  if _has_nan(x, y):
    return math.nan
  both = np.sum((x == 1) & (y == 1))
  each = np.sum(x == 1) + np.sum(y == 1)
  return float(2 * both / max(each, 1))


def matthews(predicted: np.ndarray, label: np.ndarray) -> float:
  """Returns Matthews' correlation for class 1, which is Pearson's."""
  x, y = _pair(predicted, label)
  return math.nan if _has_nan(x, y) else pearson(x == 1, y == 1)


def pearson(predicted: np.ndarray, label: np.ndarray) -> float:
  """Returns the linear correlation; 0 if one side does not vary.

  In that case scipy returns NaN, and scikit-learn's Matthews 0. A constant
  answer says nothing about the label; NaN is reserved for inputs that are NaN.
  """
  x, y = (a.astype(np.float64) for a in _pair(predicted, label))
  if not np.isfinite([x, y]).all():
    return math.nan
  x, y = _centred(x), _centred(y)
  return float(np.clip(x @ y, -1, 1))


def _centred(x: np.ndarray) -> np.ndarray:
  """Returns x less its mean, of length 1; zeros if it does not vary."""
  if (x == x[0]).all():
    return np.zeros_like(x)
  x = x / np.abs(x).max()  # So that no square overflows.
  x = x - x.mean()
  norm = np.linalg.norm(x)
  return x / norm if norm else x


def spearman(predicted: np.ndarray, label: np.ndarray) -> float:
  """Returns the correlation of ranks; equal values share their mean rank."""
  x, y = _pair(predicted, label)
  return math.nan if _has_nan(x, y) else pearson(_rank(x), _rank(y))


def _rank(values: np.ndarray) -> np.ndarray:
  _, inverse, counts = np.unique(
    values, return_inverse=True, return_counts=True
  )
  return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _pair(
  predicted: np.ndarray, label: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns two arrays [N]; other shapes would broadcast."""
  x, y = np.asarray(predicted), np.asarray(label)
  if x.ndim != 1 or x.shape != y.shape or not x.size:
    raise ValueError(
      f'predictions of shape {x.shape} for labels of shape {y.shape}: both must'
      ' be [N], N at least 1'
    )
  return x, y


def _has_nan(*arrays: np.ndarray) -> bool:
  return any(np.isnan(a).any() for a in arrays)


def token_accuracy(predicted: Mapping[str, np.ndarray]) -> float:
  """Returns the share of all tokens that were predicted correctly."""
  count = _count_tokens(predicted)
  if _has_nan(predicted['loss']):
    return math.nan
  return float(predicted['correct'].sum() / count)


def perplexity(predicted: Mapping[str, np.ndarray]) -> float:
  """Returns exp of the mean cross entropy of all tokens; lower is better.

  It is inf for means of 710 and more.
  """
  count = _count_tokens(predicted)
  with np.errstate(over='ignore'):
    total = np.sum(predicted['loss'], dtype=np.float64)
    return float(np.exp(total / count))


def _count_tokens(predicted: Mapping[str, np.ndarray]) -> int:
  """Returns how many tokens there were to predict."""
  count = int(predicted['count'].sum())
  if not count:
    raise ValueError(
      'there must be a text of two tokens or more: of one alone, nothing'
      ' follows that could be foreseen'
    )
  return count


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
  """Turns predicted spans of windows into answers.

  Attributes:
    question: For each window the question it belongs to, int32[N].
    offsets: For each window and token the first character of the context and
      the one after the last, int32[N, T, 2].
    contexts: The context of each question.
    references: The right answers of each question; ('',) if there is none.
    unanswerable: Whether the set has questions without an answer, so that
      SQuAD's script for such sets judges.
  """

  question: np.ndarray
  offsets: np.ndarray
  contexts: Sequence[str]
  references: Sequence[tuple[str, ...]]
  unanswerable: bool

  def take(self, windows: np.ndarray) -> 'Questions':
    """Returns the questions of some windows only.

    Args:
      windows: Their positions, int [n].
    """
    asked, question = np.unique(self.question[windows], return_inverse=True)
    return dataclasses.replace(
      self,
      question=question.astype(self.question.dtype),
      offsets=self.offsets[windows],
      contexts=[self.contexts[q] for q in asked],
      references=[self.references[q] for q in asked],
    )

  def answers(self, predicted: Mapping[str, np.ndarray]) -> list[str]:
    """Returns one answer per question, from the window that scores highest.

    It is no answer ('') if the set allows that and the lowest score of no
    answer, over the windows, is above the best span's (as in BERT's
    run_squad.py).

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
    kind: Kind of the task.
    metrics: Names in `METRICS[kind]`.
    predicted: Arrays [N] from `Task.predict`, without padding rows. If one of
      them is NaN, or `finite` is given and false, every metric is NaN.
    label: [N, ...]; for spans the questions. Next tokens were judged before.

  Raises:
    ValueError: There is no example, or the number of predictions differs.
  """
  counts = {len(a) for a in predicted.values()}
  wanted = len(label.question if isinstance(label, Questions) else label)
  if counts != {wanted} or not wanted:
    raise ValueError(
      f'{sorted(counts)} predictions for {wanted} examples: there must be one'
      ' for each, and at least one'
    )
  functions = {name: METRICS[kind][name] for name in metrics}
  predicted = dict(predicted)
  finite = predicted.pop('finite', np.array(True))
  if not finite.all() or _has_nan(*predicted.values()):
    return dict.fromkeys(functions, math.nan)
  if isinstance(label, Questions):
    judged = [
      [
        f(answer, found, unanswerable=label.unanswerable)
        for f in functions.values()
      ]
      for answer, found in zip(
        label.answers(predicted), label.references, strict=True
      )
    ]
    means = np.mean(judged, 0).tolist()
    return dict(zip(functions, means, strict=True))
  if kind == 'next_token':
    return {name: function(predicted) for name, function in functions.items()}
  (values,) = predicted.values()
  return {name: f(values, label) for name, f in functions.items()}

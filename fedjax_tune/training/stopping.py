"""The best evaluation of a run so far, and whether the run ends early."""

from collections.abc import Iterable
from typing import NamedTuple

from fedjax_tune.typing import Record

VALIDATION = 'validation/accuracy'


class Standing(NamedTuple):
  """The best evaluation of a run so far.

  Attributes:
    rnd: The round of the best evaluation, the first of equals; -1 before any.
    score: Its score, see `score`.
    since: How many of the latest evaluations in a row were below the best.
  """

  rnd: int = -1
  score: float = 0.0
  since: int = 0

  def over(self, patience: int) -> bool:
    """Whether a run ends: the last `patience` evaluations were below the best.

    An evaluation that equals the best resets the count, as in the code of
    RaFFM's authors (fedlib, demo/RaFFM/utils/converge.py).
    """
    return 0 < patience <= self.since

  def after(self, rnd: int, score: float | None) -> 'Standing':
    """Returns the standing after a round; None if that had no evaluation."""
    if score is None:
      return self
    if self.rnd < 0 or score > self.score:
      return Standing(rnd, score)
    since = 0 if score == self.score else self.since + 1
    return self._replace(since=since)


def score(row: Record) -> float | None:
  """Returns the score of a round's evaluation; None if it had none.

  It is the headline metric on the validation split, or else on the test data.
  """
  return row.get(VALIDATION, row.get('eval/accuracy'))


def standing(rows: Iterable[Record]) -> Standing:
  """Computes the standing from the rounds that a run wrote.

  It depends on these alone, so a resumed run has the same standing.

  Args:
    rows: The rounds in order, from `metrics`.
  """
  now = Standing()
  for row in rows:
    now = now.after(row['round'], score(row))
  return now

"""How a run stands among its evaluations, and whether it ends early."""

from collections.abc import Iterable
from typing import NamedTuple

from fedjax_tune.typing import Record


class Standing(NamedTuple):
  """Where a run stands after its evaluations so far.

  Attributes:
    rnd: The round of the best one, the first of equals; -1 before any.
    score: Its score, the headline metric on test data.
    since: How many of the latest in a row have been below the best.
  """

  rnd: int = -1
  score: float = 0.0
  since: int = 0

  def over(self, patience: int) -> bool:
    """Says whether a run ends: `patience` evaluations were in vain.

    One that equals the best is not in vain, as in the code of RaFFM's authors
    (fedlib, demo/RaFFM/utils/converge.py).
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


def standing(rows: Iterable[Record]) -> Standing:
  """Reads the standing off the rounds that a run wrote.

  It depends on those alone, so a resumed run stands where it stood.

  Args:
    rows: The rounds in order, from `metrics`.
  """
  now = Standing()
  for row in rows:
    now = now.after(row['round'], row.get('eval/accuracy'))
  return now

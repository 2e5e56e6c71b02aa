"""Where a run stands among its evaluations, against RaFFM's authors' rule."""

import hypothesis
from hypothesis import strategies as st

from fedjax_tune.training import stopping


class _Authors:
  """EarlyStopping of fedlib, demo/RaFFM/utils/converge.py, in our words."""

  def __init__(self, patience):
    self.patience, self.counter, self.best, self.ended = (
      patience,
      0,
      None,
      False,
    )

  def hear(self, score):
    if self.best is not None and score < self.best:
      self.counter += 1
      self.ended |= self.counter >= self.patience
    else:
      self.best, self.counter = score, 0


@hypothesis.given(
  scores=st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4]), max_size=20),
  patience=st.integers(1, 4),
)
def test_a_run_ends_when_the_authors_end_theirs(scores, patience):
  now, theirs, kept = stopping.Standing(), _Authors(patience), None
  for rnd, score in enumerate(scores):
    # Their scripts keep a model that is above all before it.
    kept = score if kept is None or score > kept else kept
    now = now.after(rnd, score)
    theirs.hear(score)
    assert now.over(patience) == theirs.ended
    assert now.score == kept
    assert now.rnd == scores.index(kept)
    if theirs.ended:
      break


def test_rounds_without_an_evaluation_do_not_count():
  scores = {1: 0.5, 3: 0.6, 5: 0.6, 7: 0.2, 9: 0.1}
  rows = [
    {'round': n} | ({'eval/accuracy': scores[n]} if n in scores else {})
    for n in range(10)
  ]
  assert stopping.standing(rows) == stopping.Standing(3, 0.6, 2)
  assert stopping.standing(rows[:6]) == stopping.Standing(3, 0.6, 0)
  assert stopping.standing(rows[:1]) == stopping.Standing()
  assert stopping.standing(rows).over(2)
  assert not stopping.standing(rows).over(3)
  assert not stopping.standing(rows).over(0)


def test_a_validation_split_decides_where_there_is_one():
  scores = [(0.9, 0.1), (0.2, 0.5), (0.8, 0.4)]
  rows = [
    {'round': n, 'eval/accuracy': test, 'validation/accuracy': judged}
    for n, (test, judged) in enumerate(scores)
  ]
  assert stopping.standing(rows) == stopping.Standing(1, 0.5, 1)

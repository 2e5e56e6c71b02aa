import numpy as np
import pytest
import scipy.stats

from fedjax_tune import scores


def test_accuracy_and_f1_by_hand():
  predicted = np.array([1, 1, 0, 0, 1])
  label = np.array([1, 0, 0, 1, 1])
  assert scores.accuracy(predicted, label) == pytest.approx(3 / 5)
  # Two hits; three predicted, three there.
  assert scores.f1(predicted, label) == pytest.approx(2 / 3)
  assert scores.f1(np.zeros(3), np.zeros(3)) == 0


def test_matthews_by_hand():
  # 4 true and 1 false positive, 3 true and 2 false negatives.
  predicted = np.array([1] * 5 + [0] * 5)
  label = np.array([1] * 4 + [0] + [0] * 3 + [1] * 2)
  expected = (4 * 3 - 1 * 2) / np.sqrt(5 * 6 * 4 * 5)
  assert scores.matthews(predicted, label) == pytest.approx(expected)
  assert scores.matthews(1 - predicted, label) == pytest.approx(-expected)


@pytest.mark.parametrize('decimals', [0, 6])
def test_correlations_equal_scipy(decimals):
  rng = np.random.default_rng(0)
  x = rng.normal(size=50).round(decimals)
  y = (x + rng.normal(size=50)).round(decimals)
  assert scores.pearson(x, y) == pytest.approx(scipy.stats.pearsonr(x, y)[0])
  assert scores.spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y)[0])


@pytest.mark.parametrize(
  'score', [scores.pearson, scores.spearman, scores.matthews]
)
def test_what_does_not_vary_correlates_with_nothing(score):
  varied = np.array([0, 1, 1])
  assert score(np.ones(3), varied) == 0
  assert score(varied, np.ones(3)) == 0


@pytest.mark.parametrize(
  ('answer', 'references', 'exact', 'f1'),
  [
    ('The Cat!', ['cat'], 1, 1),
    ('a  cat,\nthe dog', ['an cat dog'], 1, 1),
    ('theatre', ['atre'], 0, 0),
    ('black cat', ['cat', 'white dog'], 0, 2 / 3),
    ('cat cat cat', ['cat dog'], 0, 2 / 5),
    ('', [''], 1, 1),
    ('cat', [''], 0, 0),
    ('', ['cat'], 0, 0),
    ('the', [''], 1, 1),
  ],
)
def test_answers_by_hand(answer, references, exact, f1):
  assert scores.exact_match(answer, references) == exact
  assert scores.answer_f1(answer, references) == pytest.approx(f1)


def _questions(unanswerable):
  """One question with two windows, one with a single window."""
  offsets = np.zeros((3, 6, 2), int)
  offsets[:, 2:5] = [[0, 3], [4, 7], [8, 11]]
  return scores.Questions(
    question=np.array([0, 0, 1]),
    offsets=offsets,
    contexts=['ann bob cid', 'dan eve fay'],
    references=[('bob cid', 'bob'), ('',)],
    unanswerable=unanswerable,
  )


_PREDICTED = {
  'start': np.array([2, 3, 4]),
  'end': np.array([2, 4, 4]),
  'score': np.array([1.0, 5.0, 2.0]),
  'null': np.array([9.0, 4.0, 3.0]),
}


def test_best_window_answers_and_the_least_null_declines():
  assert _questions(False).answers(_PREDICTED) == ['bob cid', 'fay']
  assert _questions(True).answers(_PREDICTED) == ['bob cid', '']


def test_evaluate():
  metrics = ('exact_match', 'f1')
  found = scores.evaluate('span', metrics, _PREDICTED, _questions(True))
  assert found == {'exact_match': 1, 'f1': 1}
  assert list(found) == list(metrics)
  found = scores.evaluate('span', metrics, _PREDICTED, _questions(False))
  assert found == {'exact_match': 0.5, 'f1': 0.5}
  label = np.array([1, 0])
  found = scores.evaluate(
    'classification', ('accuracy',), {'class': np.array([1, 1])}, label
  )
  assert found == {'accuracy': 0.5}


def test_numbers_that_differ_are_refused():
  label = np.array([1, 0])
  for predicted in (np.array([1, 0, 0]), np.array([])):
    with pytest.raises(ValueError, match=r'predictions for 2 examples'):
      scores.evaluate(
        'classification', ('accuracy',), {'class': predicted}, label
      )
  with pytest.raises(ValueError, match=r'at least one'):
    scores.evaluate('regression', ('pearson',), {'value': label[:0]}, label[:0])

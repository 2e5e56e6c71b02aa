import math

import hypothesis
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import numpy as np
import pytest
import scipy.stats
from sklearn import metrics as sklearn

from fedjax_tune.data import metrics


def test_accuracy_and_f1_by_hand():
  predicted = np.array([1, 1, 0, 0, 1])
  label = np.array([1, 0, 0, 1, 1])
  assert metrics.accuracy(predicted, label) == pytest.approx(3 / 5)
  # Two hits; three predicted, three there.
  assert metrics.f1(predicted, label) == pytest.approx(2 / 3)
  assert metrics.f1(np.zeros(3), np.zeros(3)) == 0


def test_matthews_by_hand():
  # 4 true and 1 false positive, 3 true and 2 false negatives.
  predicted = np.array([1] * 5 + [0] * 5)
  label = np.array([1] * 4 + [0] + [0] * 3 + [1] * 2)
  expected = (4 * 3 - 1 * 2) / np.sqrt(5 * 6 * 4 * 5)
  assert metrics.matthews(predicted, label) == pytest.approx(expected)
  assert metrics.matthews(1 - predicted, label) == pytest.approx(-expected)


@pytest.mark.parametrize('decimals', [0, 6])
def test_correlations_equal_scipy(decimals):
  rng = np.random.default_rng(0)
  x = rng.normal(size=50).round(decimals)
  y = (x + rng.normal(size=50)).round(decimals)
  assert metrics.pearson(x, y) == pytest.approx(scipy.stats.pearsonr(x, y)[0])
  assert metrics.spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y)[0])


@pytest.mark.parametrize(
  'score', [metrics.pearson, metrics.spearman, metrics.matthews]
)
def test_what_does_not_vary_correlates_with_nothing(score):
  varied = np.array([0, 1, 1])
  assert score(np.ones(3), varied) == 0
  assert score(varied, np.ones(3)) == 0


def test_nan_is_no_rank():
  got = metrics.spearman(
    np.array([1, np.nan, 3, 4, 5]), np.array([1, 2, 3, 5, 4])
  )
  assert math.isnan(got)


_CLASS_METRICS = [metrics.accuracy, metrics.f1, metrics.matthews]
_VALUE_METRICS = [metrics.pearson, metrics.spearman]
_pair_metrics = pytest.mark.parametrize(
  'score', [*_CLASS_METRICS, *_VALUE_METRICS]
)


@_pair_metrics
@pytest.mark.parametrize('side', [0, 1])
def test_nan_in_gives_nan(score, side):
  sides = [np.array([0.0, 1, 1, 0]), np.array([0.0, 1, 0, 1])]
  assert math.isfinite(score(*sides))
  sides[side][2] = np.nan
  assert math.isnan(score(*sides))


@_pair_metrics
@pytest.mark.parametrize(
  ('predicted', 'label'),
  [
    (np.ones(1), np.ones(3)),  # These three NumPy would broadcast.
    (np.ones((3, 1)), np.ones(3)),
    (np.ones(()), np.ones(3)),
    (np.ones(2), np.ones(3)),
    (np.ones(0), np.ones(0)),
  ],
)
def test_shapes_that_are_no_pairs_are_refused(score, predicted, label):
  with pytest.raises(ValueError, match=r'both must be \[N\], N at least 1'):
    score(predicted, label)


# Few values, so that they tie; some are large, and some close together.
_numbers = st.sampled_from(
  [-1.0, 0.0, 0.5, 0.5000001, 1.0, 3.0, 1e200, -1e200, 1e-200]
)
_values = st.integers(2, 12).flatmap(
  lambda n: hnp.arrays(np.float64, (2, n), elements=_numbers)
)


@hypothesis.given(_values)
@hypothesis.settings(deadline=None, max_examples=100)
def test_correlations_are_those_of_scipy(values):
  x, y = values
  varies = np.ptp(x) > 0 and np.ptp(y) > 0
  for ours, theirs in (
    (metrics.pearson, scipy.stats.pearsonr),
    (metrics.spearman, scipy.stats.spearmanr),
  ):
    if varies:
      want = theirs(x, y)[0]
      # Of what varies less than it is large scipy warns, rightly.
      assert ours(x, y) == pytest.approx(want, abs=1e-6)
    else:
      assert ours(x, y) == 0


@hypothesis.given(
  st.integers(1, 12).flatmap(
    lambda n: hnp.arrays(np.int64, (2, n), elements=st.integers(0, 2))
  ),
  st.sampled_from([np.int32, np.float32]),
)
@hypothesis.settings(deadline=None, max_examples=60)
# It warns where all classes are one.
@pytest.mark.filterwarnings('ignore:A single label')
def test_classes_are_judged_as_by_scikit_learn(classes, dtype):
  predicted, label = classes.astype(dtype)
  one = predicted == 1, label == 1
  assert metrics.accuracy(predicted, label) == pytest.approx(
    sklearn.accuracy_score(label, predicted)
  )
  want = sklearn.f1_score(one[1], one[0], zero_division=0)  # pyright: ignore[reportArgumentType]
  assert metrics.f1(predicted, label) == pytest.approx(want)
  want = sklearn.matthews_corrcoef(one[1], one[0])
  assert metrics.matthews(predicted, label) == pytest.approx(want)


def test_infinite_values():
  y = np.arange(3.0)
  x = np.array([1, 2, np.inf])
  assert math.isnan(metrics.pearson(x, y))
  # A rank is a rank.
  assert metrics.spearman(x, y) == pytest.approx(1)


def _sums(loss, count=2):
  return {
    'loss': np.array([loss, 0.0], np.float32),
    'correct': np.array([1, 0]),
    'count': np.array([count, 0]),
  }


def test_tokens():
  assert metrics.perplexity(_sums(2.0)) == pytest.approx(math.e)
  assert metrics.token_accuracy(_sums(2.0)) == 0.5
  # exp of 710 is beyond float64; nobody is warned, and the value says it.
  assert metrics.perplexity(_sums(2 * 710.0)) == math.inf
  assert metrics.perplexity(_sums(np.inf)) == math.inf
  for metric in (metrics.perplexity, metrics.token_accuracy):
    assert math.isnan(metric(_sums(np.nan)))
    with pytest.raises(ValueError, match='a text of two tokens or more'):
      metric(_sums(0.0, count=0))


@pytest.mark.parametrize(
  ('kind', 'predicted'),
  [
    ('classification', {'class': np.array([1, 0])}),
    ('regression', {'value': np.array([0.5, 2])}),
    ('next_token', _sums(2.0)),
  ],
)
def test_outputs_that_are_not_finite_have_no_metric(kind, predicted):
  label = np.array([1, 0])
  names = tuple(metrics.METRICS[kind])
  for finite in (True, False):
    flags = {'finite': np.array([True, finite])}
    found = metrics.evaluate(kind, names, predicted | flags, label)
    assert tuple(found) == names
    assert all(math.isfinite(x) == finite for x in found.values())


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
  assert metrics.exact_match(answer, references) == exact
  assert metrics.answer_f1(answer, references) == pytest.approx(f1)


def _questions(unanswerable):
  """One question with two windows, one with a single window."""
  offsets = np.zeros((3, 6, 2), int)
  offsets[:, 2:5] = [[0, 3], [4, 7], [8, 11]]
  return metrics.Questions(
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
  names = ('exact_match', 'f1')
  found = metrics.evaluate('span', names, _PREDICTED, _questions(True))
  assert found == {'exact_match': 1, 'f1': 1}
  assert list(found) == list(names)
  found = metrics.evaluate('span', names, _PREDICTED, _questions(False))
  assert found == {'exact_match': 0.5, 'f1': 0.5}
  label = np.array([1, 0])
  found = metrics.evaluate(
    'classification', ('accuracy',), {'class': np.array([1, 1])}, label
  )
  assert found == {'accuracy': 0.5}


def test_numbers_that_differ_are_refused():
  label = np.array([1, 0])
  for predicted in (np.array([1, 0, 0]), np.array([])):
    with pytest.raises(ValueError, match=r'predictions for 2 examples'):
      metrics.evaluate(
        'classification', ('accuracy',), {'class': predicted}, label
      )
  with pytest.raises(ValueError, match=r'at least one'):
    metrics.evaluate(
      'regression', ('pearson',), {'value': label[:0]}, label[:0]
    )

"""SQuAD's two official scripts, restated, against ours."""

import hypothesis
from hypothesis import strategies as st
import pytest

from fedjax_tune.data import metrics, text_sets


def _plain(text):
  """What both scripts compare: words, without case, signs and articles."""
  letters = [
    c for c in text.lower() if c not in r"""!"#$%&'()*+,-./:;<=>?@[\]^_`{|}~"""
  ]
  words, word = [], ''
  for c in [*letters, ' ']:
    # An article stands between characters that are no part of words.
    if c.isalnum():
      word += c
      continue
    words += [' ' if word in ('a', 'an', 'the') else word, c]
    word = ''
  return ''.join(words).split()


def _overlap(words, wanted):
  """F1 as the harmonic mean of precision and recall; None without overlap."""
  rest, same = list(wanted), 0
  for word in words:
    if word in rest:
      rest.remove(word)
      same += 1
  if not same:
    return None
  precision, recall = same / len(words), same / len(wanted)
  return 2 * precision * recall / (precision + recall)


def _v1(answer, references):
  """evaluate-v1.1.py: the best over all references as they are."""
  said = _plain(answer)
  exact = max(said == _plain(r) for r in references)
  return exact, max(_overlap(said, _plain(r)) or 0 for r in references)


def _v2(answer, references):
  """evaluate-v2.0.py: references of words alone; where none is left, ''."""
  said = _plain(answer)
  wanted = [w for w in map(_plain, references) if w] or [[]]
  exact = max(said == w for w in wanted)
  # Where one side has no words, both must be alike.
  return exact, max(
    _overlap(said, w) or 0 if said and w else said == w for w in wanted
  )


_texts = st.lists(
  st.sampled_from(
    ['the', 'a', 'An', 'dog', 'Dogs', '7', '1,000', '!', "o'clock", 'été', '\u2013',
     '\t', '', 'ath-e', 'ß', 'U.S.', 'Thé', '猫', '«a»', 'a_b']
  ),
  max_size=5,
).flatmap(lambda words: st.sampled_from([' ', '', ' \n']).map(
  lambda blank: blank.join(words)
))  # fmt: skip


@hypothesis.given(_texts, st.lists(_texts, min_size=1, max_size=4))
@hypothesis.settings(deadline=None, max_examples=300)
@pytest.mark.parametrize(('v2', 'script'), [(False, _v1), (True, _v2)])
def test_each_set_is_judged_by_its_script(v2, script, answer, references):
  exact, f1 = script(answer, references)
  got = metrics.exact_match(answer, references, unanswerable=v2)
  assert got == exact
  got = metrics.answer_f1(answer, references, unanswerable=v2)
  assert got == pytest.approx(float(f1))


@pytest.mark.parametrize(
  ('answer', 'references', 'v1', 'v2'),
  [
    # (exact match, F1) of each script.
    ('', ['the'], (1, 0), (1, 1)),
    ('', ['', 'dog'], (1, 0), (0, 0)),
    ('the', ['!'], (1, 0), (1, 1)),
    ('a', ['dog'], (0, 0), (0, 0)),
    ('dog', ['the', 'dog'], (1, 1), (1, 1)),
    ('dog', ['the'], (0, 0), (0, 0)),
    ('', [''], (1, 0), (1, 1)),
    ('The U.S.', ['us'], (1, 1), (1, 1)),
  ],
)
def test_references_that_normalise_to_nothing(answer, references, v1, v2):
  for unanswerable, want in ((False, v1), (True, v2)):
    got = [
      function(answer, references, unanswerable=unanswerable)
      for function in (metrics.exact_match, metrics.answer_f1)
    ]
    assert tuple(got) == want


def test_untold_the_question_decides():
  # No answer at all is of version 2.0; else every question has one.
  assert metrics.answer_f1('', ['']) == metrics.answer_f1('', []) == 1
  assert metrics.answer_f1('', ['the']) == 0
  assert metrics.answer_f1('', ['', 'dog']) == 0


def test_the_set_says_which_script():
  found = {
    name: entry.unanswerable
    for name, entry in text_sets.TEXT_SETS.items()
    if entry.kind == 'span'
  }
  assert found == {'squad': False, 'squad/v1.1': False, 'squad/v2.0': True}

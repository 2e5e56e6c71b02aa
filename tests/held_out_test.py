"""What clients hold out trains nobody, and depends on seed and examples alone."""

import dataclasses

from hypothesis import given, settings, strategies
import numpy as np
import pytest
import tiny

from fedjax_tune.data import held_out, metrics, partition, shares

_DATA = tiny.examples(200, tiny.STACK_SIZE)


def _owned(parts):
  held = shares.Shares.of([np.asarray(part, int) for part in parts])
  return partition.Partition(held, np.full(len(parts), -1))


def _split(parts, share, seed=0, data=_DATA):
  rest, taken = held_out.hold_out(
    _owned(parts), data, share, seed, 'clients.held_out'
  )
  return list(rest.indices), list(taken)


@settings(max_examples=30, deadline=None)
@given(
  sizes=strategies.lists(strategies.integers(2, 30), min_size=1, max_size=6),
  share=strategies.floats(0.01, 0.9),
  seed=strategies.integers(0, 2**32 - 1),
)
def test_a_share_of_each_client_is_taken(sizes, share, seed):
  ends = np.cumsum(sizes)
  parts = [np.arange(e - n, e) for e, n in zip(ends, sizes, strict=True)]
  rest, taken = _split(parts, share, seed)
  for part, left, own in zip(parts, rest, taken, strict=True):
    np.testing.assert_array_equal(np.sort([*left, *own]), part)
    assert len(own) == max(1, int(share * len(part)))
    assert np.all(np.diff(left) > 0)


def test_it_depends_on_the_seed_and_the_clients_own_examples_alone():
  parts = [np.arange(0, 20), np.arange(20, 60), np.arange(60, 90)]
  _, taken = _split(parts, 0.3, 7)
  _, others = _split([parts[2], parts[0]], 0.3, 7)
  np.testing.assert_array_equal(taken[2], others[0])
  np.testing.assert_array_equal(taken[0], others[1])
  _, again = _split(parts, 0.3, 8)
  assert any(list(a) != list(b) for a, b in zip(taken, again, strict=True))


def test_a_shared_example_that_is_taken_trains_nobody():
  parts = [np.arange(0, 30), np.arange(10, 40), [3, 3, 3, 50, 51, 52, 53]]
  for seed in range(5):
    rest, taken = _split(parts, 0.3, seed)
    assert not set(np.concatenate(rest)) & set(np.concatenate(taken))


def test_validation_takes_others():
  owned = _owned([np.arange(100)])
  first, second = (
    held_out.hold_out(owned, _DATA, 0.3, 0, field)[1][0]
    for field in ('clients.held_out', 'data.validation')
  )
  assert 10 < len(np.setdiff1d(first, second)) < 30


def test_some_examples_are_a_corpus():
  rows = np.array([7, 150, 199])
  some = _DATA.take(rows)
  np.testing.assert_array_equal(some.labels, _DATA.labels[rows])
  np.testing.assert_array_equal(
    some.read(np.array([2, 0])), _DATA.read(rows[[2, 0]])
  )
  assert some.domain_names == ('a', 'b')
  of_one = _DATA.take(np.array([150, 199]))
  assert of_one.domain_names == ('b',)
  assert not of_one.domains.any()
  hits = {'class': _DATA.labels[rows], 'finite': np.ones(3, bool)}
  np.testing.assert_array_equal(some.score(hits)['accuracy'], [1, 1])


def test_windows_of_a_question_stay_together():
  question = np.repeat(np.arange(40), 5).astype(np.int32)
  asked = metrics.Questions(
    question, np.zeros((200, 1, 2), int), [''] * 40, [('',)] * 40, False
  )
  data = dataclasses.replace(_DATA, questions=asked)
  rest, taken = _split([np.arange(100), np.arange(100, 200)], 0.25, data=data)
  assert not set(question[np.concatenate(rest)]) & set(
    question[np.concatenate(taken)]
  )


def test_a_client_with_nothing_left_is_refused():
  with pytest.raises(ValueError, match=r'held_out=0\.5 .*client 1 has 1, of'):
    _split([np.arange(5), [7]], 0.5)


def test_some_windows_are_judged_by_their_questions():
  asked = metrics.Questions(
    np.array([0, 0, 1, 2]),
    np.tile(np.array([[0, 1], [1, 2]]), (4, 1, 1)),
    ['ab', 'cd', 'ef'],
    [('a',), ('d',), ('e',)],
    unanswerable=False,
  )
  predicted = {'start': [0, 1], 'end': [0, 1], 'score': [1, 1], 'null': [0, 0]}
  predicted = {name: np.array(x) for name, x in predicted.items()}
  some = asked.take(np.array([1, 3]))
  assert some.answers(predicted) == ['a', 'f']
  assert some.references == [('a',), ('e',)]

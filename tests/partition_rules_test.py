"""Rules that divide examples by amounts and classes that are given."""

import dataclasses
import itertools

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from fedjax_tune import config
from fedjax_tune.data import corpus, groups, partition, partitioners, tasks
from fedjax_tune.typing import Tokens

_CLASSES = 4


def _corpus(size=120, seed=0, **fields) -> corpus.Corpus:
  """Pictures of random labels."""
  rng = np.random.default_rng(seed)
  made = corpus.Corpus(
    labels=rng.integers(0, _CLASSES, size).astype(np.int32),
    domains=np.zeros(size, np.int32),
    groups=None,
    domain_names=('all',),
    class_names=tuple('wxyz'),
    inputs=np.zeros((size, 1, 1, 3), np.uint8),
    task=tasks.Task('classification', _CLASSES),
  )
  return dataclasses.replace(made, **fields)


def _texts(size=120, seed=0) -> corpus.Corpus:
  """Texts of random lengths."""
  lengths = np.random.default_rng(seed).integers(1, 90, size).astype(np.int32)
  ids = np.zeros((size, 1), np.int32)
  return _corpus(size, seed, inputs=Tokens(ids, ids), lengths=lengths)


def _divide(data, kind, **fields):
  cfg = config.Clients(
    **{'partition': kind, 'count': 5, 'min_examples': 1} | fields
  )
  return partition.partition(cfg, data)


@hypothesis.settings(max_examples=80, deadline=None)
@hypothesis.given(
  kind=st.sampled_from(
    ['shard', 'inner_dirichlet', 'linear', 'square', 'exponential', 'sizes',
     'continuous']
  ),
  count=st.integers(1, 12),
  shards=st.integers(1, 5),
  alpha=st.sampled_from([1e-4, 0.3, 100.0]),
  seed=st.integers(0, 10**6),
)  # fmt: skip
def test_each_example_has_one_owner_at_most(kind, count, shards, alpha, seed):
  data = _texts(seed=seed)
  sizes = (7, 3, 9) if kind == 'sizes' else ()
  made = _divide(
    data, kind, count=count, shards=shards, alpha=alpha, seed=seed,
    sizes=sizes, min_examples=3,
  )  # fmt: skip
  every = np.concatenate(list(made.indices))
  assert len(np.unique(every)) == len(every)
  assert made.sizes().min() >= 3
  if sizes:
    assert made.sizes().tolist() == np.resize(sizes, count).tolist()
  else:
    assert len(every) == len(data)
  if kind in ('shard', 'inner_dirichlet', 'continuous'):
    assert np.ptp(made.sizes()) <= 1
  again = _divide(
    data, kind, count=count, shards=shards, alpha=alpha, seed=seed,
    sizes=sizes, min_examples=3,
  )  # fmt: skip
  np.testing.assert_array_equal(every, np.concatenate(list(again.indices)))


@pytest.mark.parametrize('shards', [1, 2, 3])
def test_shards_are_runs_of_the_sorted_examples(shards):
  made = _divide(data := _corpus(), 'shard', count=10, shards=shards)
  # A cut between two classes is the only way for a run to have both.
  held = (made.histogram(data) > 0).sum()
  assert held <= 10 * shards + _CLASSES - 1
  assert (
    _divide(data, 'iid', count=10).histogram(data).astype(bool).sum() > held
  )


@pytest.mark.parametrize('replace', [False, True])
def test_inner_dirichlet_has_sizes_and_skew(replace):
  data, sizes = _corpus(4000), (20, 30)
  skews = []
  for alpha in (0.05, 1000.0):
    made = _divide(
      data, 'inner_dirichlet', count=50, sizes=sizes, alpha=alpha,
      replace=replace,
    )  # fmt: skip
    assert made.sizes().tolist() == [20, 30] * 25
    counts = made.histogram(data)
    skews.append(float(np.mean(counts.max(axis=1) / made.sizes())))
  assert skews[0] > 0.8
  assert skews[1] < 0.5


@pytest.mark.parametrize('kind', ['sizes', 'inner_dirichlet'])
def test_more_clients_than_examples(kind):
  fields = {'count': 5000, 'sizes': (4, 2), 'alpha': 0.1}
  data = _corpus()
  with pytest.raises(
    ValueError, match=r'5000 clients .* clients.replace=True draws'
  ):
    _divide(data, kind, **fields)
  made = _divide(data, kind, replace=True, **fields)
  assert made.sizes().tolist() == [4, 2] * 2500
  owned = np.bincount(made.indices.positions, minlength=120)
  # On average 125 times each; none is left out, and none is nearly all.
  assert owned.min() > 60
  assert owned.max() < 250


def test_k_shot_has_no_bound_of_clients():
  made = _divide(_corpus(), 'k_shot', count=5000, shots=1, min_examples=10)
  assert made.sizes().tolist() == [_CLASSES] * 5000


@pytest.mark.parametrize(
  ('kind', 'weights'),
  [
    ('linear', [1, 2, 3, 4, 5]),
    ('square', [1, 4, 9, 16, 25]),
    ('exponential', np.exp([1, 2, 3, 4, 5])),
  ],
)
def test_sizes_grow_with_the_number_of_a_client(kind, weights):
  made = _divide(_corpus(1000), kind, min_examples=10)
  wanted = 10 + 950 * np.array(weights) / np.sum(weights)
  np.testing.assert_allclose(made.sizes(), wanted, atol=1)
  # Also where the numbers themselves would overflow.
  number = np.arange(1, 1001.0)
  growth = {'linear': number, 'square': number**2}.get(
    kind, np.exp(number - 1000)
  )
  many = _divide(_corpus(1500), kind, count=1000)
  assert many.sizes().sum() == 1500
  assert many.sizes()[-1] == 1 + round(500 * growth[-1] / growth.sum())


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({}, r'clients.sizes=\(\) must not be empty with clients.partition=.sizes'),
    (
      {'sizes': (9, 3), 'min_examples': 4},
      r'clients.sizes: 3 must be at least',
    ),
    ({'sizes': (25,)}, r'5 clients would have 125 examples; there are 120'),
  ],
)
def test_sizes_that_cannot_be(fields, message):
  with pytest.raises(ValueError, match=message):
    _divide(_corpus(), 'sizes', **fields)


def test_a_distribution_is_that_of_the_file(tmp_path):
  file = tmp_path / 'weights.csv'
  file.write_text('# y first\n3,1,0,1\n1,1,2,1\n')
  labels = np.repeat(np.arange(4), 40).astype(np.int32)
  data = _corpus(160, labels=labels)
  made = _divide(data, 'distribution', count=2, distribution=str(file))
  assert made.histogram(data).tolist() == [[30, 20, 0, 20], [10, 20, 40, 20]]
  # Rows are taken in turn.
  made = _divide(data, 'distribution', count=4, distribution=str(file))
  assert made.histogram(data)[:, 0].tolist() == [15, 5, 15, 5]


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    (None, 'must be a file with a row of weights for each client'),
    ('1,1\n', 'has 2 numbers in a row; must have one for each of 4 classes'),
    ('1,1,a,1\n', 'must hold numbers alone'),
    ('1,1,-1,1\n', 'must not have negative'),
    ('1,1,0,1\n', 'no client has a weight for class 2'),
    ('1,1,1,1\n0,0,0,0\n', 'client 1 would have 0 examples'),
  ],
)
def test_distributions_that_cannot_be(tmp_path, text, message):
  file = tmp_path / 'weights.csv'
  if text:
    file.write_text(text)
  with pytest.raises(ValueError, match=message):
    _divide(_corpus(), 'distribution', distribution=str(file))


@pytest.mark.parametrize('kind', ['length', 'regression'])
def test_continuous_sorts_as_strictly_as_it_is_told(kind):
  data = _texts(400)
  values = data.lengths
  if kind == 'regression':
    values = np.random.default_rng(1).normal(size=400).astype(np.float32)
    task = tasks.Task('regression', 1)
    data = dataclasses.replace(data, labels=values, task=task, class_names=())
  assert values is not None
  spreads = []
  for strictness in (1.0, 0.9, 0.0):
    made = _divide(data, 'continuous', strictness=strictness)
    spreads.append(np.mean([np.std(values[held]) for held in made.indices]))
  assert spreads[0] < spreads[1] < spreads[2]
  parts = [
    values[held] for held in _divide(data, 'continuous', strictness=1.0).indices
  ]
  for one, other in itertools.pairwise(parts):
    assert one.max() <= other.min()


def test_continuous_needs_numbers():
  with pytest.raises(
    ValueError, match="texts' lengths, and the data set has pic"
  ):
    _divide(_corpus(), 'continuous')


def test_groups_that_are_no_clients_are_told():
  data = _corpus(10, groups=np.repeat(['a', 'b', 'c'], [5, 3, 2]))
  told = {}
  for count in (2, 3):
    cfg = config.Clients(partition='natural', count=count, min_examples=1)
    made = partition.partition(cfg, data).indices
    told[count] = groups.left_out(cfg, data, made)
    assert groups.names(data, made) == ('a', 'b', 'c')[:count]
  assert told[3] == ''
  assert told[2] == (
    '2 of 3 natural clients take part, with 8 of 10 examples (clients.count=2).'
  )


def test_natural_groups_are_joined():
  names = np.repeat([f'g{i}' for i in range(12)], np.arange(12, 0, -1))
  data = _corpus(len(names), groups=names)
  made = _divide(data, 'natural', count=3, group_size=3, min_examples=15)
  owned = [set(names[held]) for held in made.indices]
  assert owned == [{f'g{i + 3 * turn}' for turn in range(3)} for i in range(3)]
  assert made.sizes().tolist() == [27, 24, 21]
  assert groups.names(data, made.indices)[1] == 'g1 and 2 more'
  for fields, message in (
    ({'group_size': 5}, r'of clients.group_size=5: only 12 groups have 1 ex'),
    ({'group_size': 2, 'min_examples': 30}, r'has only 17 examples'),
  ):
    with pytest.raises(ValueError, match=message):
      _divide(data, 'natural', **{'count': 3} | fields)


def test_rules_that_look_at_labels_need_classes():
  data = _corpus(class_names=())
  for kind in sorted(partitioners.NEED_CLASSES):
    with pytest.raises(ValueError, match='needs classes'):
      _divide(data, kind)

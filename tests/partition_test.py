import dataclasses

import hypothesis
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from fedjax_tune import config
from fedjax_tune.data import (
  corpus,
  digest,
  partition,
  partitioners,
  shares,
  tasks,
)

_DOMAINS, _CLASSES = 3, 4


def _corpus(sizes=(30, 40, 50), seed=0, objects=False) -> corpus.Corpus:
  """Domains of these sizes with random labels."""
  rng = np.random.default_rng(seed)
  total = sum(sizes)
  return corpus.Corpus(
    labels=rng.integers(0, _CLASSES, total).astype(np.int32),
    domains=np.repeat(np.arange(len(sizes)), sizes).astype(np.int32),
    groups=np.array([f'o{i}' for i in range(total)]) if objects else None,
    domain_names=tuple(f'd{i}' for i in range(len(sizes))),
    class_names=tuple(f'c{i}' for i in range(_CLASSES)),
    inputs=np.zeros((total, 1, 1, 3), np.uint8),
    task=tasks.Task('classification', _CLASSES),
  )


def _shared_objects(num_objects=60, seed=0) -> corpus.Corpus:
  """The same objects in every domain, like the drawing styles."""
  rng = np.random.default_rng(seed)
  names = np.array([f'o{i}' for i in range(num_objects)])
  labels = rng.integers(0, _CLASSES, num_objects).astype(np.int32)
  base = _corpus((num_objects,) * _DOMAINS)
  return dataclasses.replace(
    base, labels=np.tile(labels, _DOMAINS), groups=np.tile(names, _DOMAINS)
  )


def _clients(kind: str, **fields) -> config.Clients:
  return config.Clients(
    **{'partition': kind, 'count': 3, 'min_examples': 2} | fields
  )


# The others take a file, or a number of each example.
_SEEDED = partitioners.RULES.keys() - {'distribution', 'continuous'}

# Hashes of what 5 clients (3 of 'natural') had while parts were lists.
_DEALT = {
  'dirichlet': '51ba4e22',
  'domain': 'd0ae731a',
  'domain_dirichlet': '84e608df',
  'iid': '2d29a124',
  'k_shot': 'c4d0b680',
  'natural': 'bdcece75',
  'pathological': '0d89a33c',
  'quantity': '96eedb93',
}


@settings(max_examples=60, deadline=None)
@given(
  kind=st.sampled_from(sorted(_DEALT.keys() - {'k_shot', 'natural'})),
  count=st.integers(1, 6),
  alpha=st.sampled_from([1e-3, 0.1, 1.0, 100.0]),
  seed=st.integers(0, 10**6),
)
def test_every_partition_is_disjoint_complete_and_large_enough(
  kind, count, alpha, seed
):
  data = _corpus(seed=seed)
  cfg = _clients(kind, count=count, alpha=alpha, seed=seed, min_examples=5)
  if kind == 'pathological':
    cfg.classes_per_client = max(2, -(-_CLASSES // count))
    cfg.min_examples = 1
  made = partition.partition(cfg, data)
  every = np.concatenate(made.indices)
  assert sorted(every) == list(range(len(data)))
  assert min(made.sizes()) >= cfg.min_examples
  by_domain = kind.startswith('domain')
  assert len(made) == count * (_DOMAINS if by_domain else 1)
  for rows, domain in zip(made.indices, made.domains, strict=True):
    assert (np.diff(rows) > 0).all()
    if by_domain:
      assert set(data.domains[rows]) == {domain}
    else:
      assert domain == -1


@pytest.mark.parametrize('kind', sorted(_SEEDED))
def test_seed_decides_everything(kind):
  data = _corpus()

  def draw(seed):
    cfg = _clients(kind, seed=seed, sizes=(20, 9))
    made = partition.partition(cfg, data)
    return [rows.tolist() for rows in made.indices]

  assert draw(1) == draw(1)
  assert draw(1) != draw(2)


@pytest.mark.parametrize('kind', _DEALT)
def test_examples_are_dealt_as_before(kind):
  data, natural = _corpus(objects=True), kind == 'natural'
  if natural:
    groups = np.array(['a'] * 50 + ['b'] * 10 + ['c'] * 40 + ['d'] * 20)
    data = dataclasses.replace(data, groups=groups)
  least = 1 if kind == 'pathological' else 5
  cfg = _clients(
    kind, count=3 if natural else 5, alpha=0.05, min_examples=least, seed=3
  )
  made = partition.partition(cfg, data)
  assert digest.of(list(made.indices))[:8] == _DEALT[kind]


@settings(max_examples=60, deadline=None)
@given(
  sizes=st.lists(st.integers(0, 9), min_size=1, max_size=8),
  least=st.integers(0, 5),
)
def test_repair_moves_one_by_one_from_the_largest(sizes, least):
  hypothesis.assume(sum(sizes) >= least * len(sizes))
  parts = shares.Shares.sized(np.arange(sum(sizes)), np.array(sizes))
  pools = [part.tolist() for part in parts]
  for pool in pools:
    while len(pool) < least:
      pool.append(max(pools, key=len).pop())
  got = partitioners._repair(parts, least)
  assert [sorted(part) for part in got] == [sorted(pool) for pool in pools]


def test_k_shot_is_balanced_and_repeats_only_what_runs_out():
  data = _corpus()
  made = partition.partition(_clients('k_shot', shots=2), data)
  for rows in made.indices:
    assert np.bincount(data.labels[rows]).tolist() == [2] * _CLASSES
  every = np.concatenate(made.indices)
  assert len(set(every)) == len(every)
  many = partition.partition(_clients('k_shot', shots=40), data)
  assert many.sizes().tolist() == [40 * _CLASSES] * 3
  counts = np.bincount(np.concatenate(many.indices), minlength=len(data))
  for label in range(_CLASSES):
    spread = counts[data.labels == label]
    assert spread.max() - spread.min() <= 1


def test_natural_clients_are_the_largest_groups():
  data = _corpus(objects=True)
  groups = np.array(['a'] * 50 + ['b'] * 10 + ['c'] * 40 + ['d'] * 20)
  data = dataclasses.replace(data, groups=groups)
  made = partition.partition(_clients('natural'), data)
  owned = [set(groups[rows]) for rows in made.indices]
  assert owned == [{'a'}, {'c'}, {'d'}]
  assert made.sizes().tolist() == [50, 40, 20]
  with pytest.raises(ValueError, match=r'clients\.count=3: only 2 groups have'):
    partition.partition(_clients('natural', min_examples=30), data)


def test_no_budgets_are_full_budgets():
  domains = partition.client_domains(_clients('iid'), 3)
  assert partition.expand_budgets((), domains, 12).tolist() == [12] * 3


def test_domain_clients_come_in_domain_order():
  made = partition.partition(_clients('domain', count=2), _corpus())
  assert made.domains.tolist() == [0, 0, 1, 1, 2, 2]
  assert made.sizes().tolist() == [15, 15, 20, 20, 25, 25]


def test_dirichlet_skew_grows_as_alpha_falls():
  data = _corpus((600,))

  def skew(alpha):
    cfg = _clients('dirichlet', count=4, alpha=alpha)
    counts = partition.partition(cfg, data).histogram(data)
    return np.mean(counts.max(axis=1) / counts.sum(axis=1))

  assert skew(100.0) < 0.4 < skew(0.5) < skew(0.01)


def test_dirichlet_repair_ends_where_draws_never_would():
  data = dataclasses.replace(_corpus((60,)), labels=np.zeros(60, np.int32))
  cfg = _clients('dirichlet', count=6, alpha=1e-3, min_examples=10)
  made = partition.partition(cfg, data)
  assert made.sizes().tolist() == [10] * 6


@given(count=st.integers(2, 8), k=st.integers(1, _CLASSES))
@settings(deadline=None)
def test_pathological_clients_hold_k_classes(count, k):
  data = _corpus((400,))
  cfg = _clients('pathological', count=count, classes_per_client=k)
  if count * k < _CLASSES:
    with pytest.raises(ValueError, match=r'clients.classes_per_client='):
      partition.partition(cfg, data)
    return
  held = partition.partition(cfg, data).histogram(data) > 0
  assert (held.sum(axis=1) == k).all()


def test_quantity_sizes_differ_and_labels_do_not():
  data = _corpus((4000,))
  made = partition.partition(_clients('quantity', count=4, alpha=0.5), data)
  assert max(made.sizes()) > 1.5 * min(made.sizes())
  counts = made.histogram(data)
  largest = counts[np.argmax(made.sizes())]
  np.testing.assert_allclose(largest / largest.sum(), 0.25, atol=0.05)


def test_histogram_counts_labels():
  data = _corpus()
  made = partition.partition(_clients('dirichlet'), data)
  own = [np.bincount(data.labels[rows], minlength=4) for rows in made.indices]
  assert made.histogram(data).tolist() == np.array(own).tolist()
  assert made.histogram(data, [2, 0]).tolist() == [*map(list, own[2::-2])]
  present = made.present(data)
  assert present is not None
  assert [present(k).tolist() for k in range(3)] == [
    (counts > 0).tolist() for counts in own
  ]
  assert made.histogram(data).shape == (3, _CLASSES)
  np.testing.assert_array_equal(
    made.histogram(data).sum(axis=0), np.bincount(data.labels)
  )


@given(seed=st.integers(0, 1000), num_objects=st.integers(20, 80))
@settings(deadline=None)
def test_divided_objects_have_one_owner(seed, num_objects):
  data = _shared_objects(num_objects, seed)
  cfg = _clients('domain', count=2, divide_objects=True, seed=seed)
  made = partition.partition(cfg, data)
  assert data.groups is not None
  owned = [
    set(
      np.concatenate(
        [
          data.groups[rows]
          for rows, d in zip(made.indices, made.domains, strict=True)
          if d == domain
        ]
      )
    )
    for domain in range(_DOMAINS)
  ]
  assert sum(map(len, owned)) == len(set.union(*owned)) == num_objects
  assert max(map(len, owned)) - min(map(len, owned)) <= 1
  by_label = made.histogram(data).reshape(_DOMAINS, 2, -1).sum(axis=1)
  assert (np.ptp(by_label, axis=0) <= 1).all()
  for rows, domain in zip(made.indices, made.domains, strict=True):
    assert (data.domains[rows] == domain).all()


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'kind': 'shards'}, r"clients.partition='shards': must be one of"),
    ({'count': 0}, r'clients.count=0: must be at least 1'),
    ({'min_examples': 0}, r'clients.min_examples=0: must be at least 1'),
    ({'alpha': 0.0}, r'clients.alpha=0.0: must be above 0'),
    ({'alpha': float('nan')}, r'clients.alpha=nan'),
    ({'min_examples': 41}, r'min_examples=41: 3 clients .* 123 .* has 120'),
    (
      {'kind': 'domain', 'min_examples': 11},
      r"clients of domain 'd0' would need 33 examples, it has 30",
    ),
    (
      {'kind': 'pathological', 'classes_per_client': 5},
      r'clients.classes_per_client=5: must be at most .* 4',
    ),
    (
      {'kind': 'pathological', 'min_examples': 40},
      r'clients.min_examples=40: a client',
    ),
  ],
)
def test_impossible_requests_are_refused(fields, message):
  cfg = _clients(**{'kind': 'dirichlet'} | fields)
  with pytest.raises(ValueError, match=message):
    partition.partition(cfg, _corpus())


@pytest.mark.parametrize('kind', ['domain', 'dirichlet'])
def test_objects_that_nothing_names_are_not_divided(kind):
  plain, divided = (
    partition.partition(_clients(kind, divide_objects=divide), _corpus())
    for divide in (False, True)
  )
  for rows, others in zip(plain.indices, divided.indices, strict=True):
    np.testing.assert_array_equal(rows, others)


def test_empty_domain_is_refused():
  with pytest.raises(ValueError, match=r"domain 'd1' has no examples"):
    partition.partition(_clients('domain'), _corpus((30, 0, 30)))


def test_budgets_are_per_client_or_per_domain():
  made = partition.partition(_clients('domain', count=2), _corpus())
  each = partition.expand_budgets((12, 6, 3), made.domains, 12)
  assert each.tolist() == [12, 12, 6, 6, 3, 3]
  each = partition.expand_budgets((6, 5, 4, 3, 2, 1), made.domains, 12)
  assert each.tolist() == [6, 5, 4, 3, 2, 1]
  plain = partition.partition(_clients('iid'), _corpus())
  turns = partition.expand_budgets((3, 2), plain.domains, 3)
  assert turns.tolist() == [3, 2, 3]
  each = partition.expand_budgets((3, 2, 1), plain.domains, 3)
  assert each.tolist() == [3, 2, 1]


@pytest.mark.parametrize(
  ('budgets', 'message'),
  [
    ((0, 6, 3), r'clients.budgets=\(0, 6, 3\): 0 is not from 1 to 12'),
    ((13, 6, 3), r'13 is not from 1 to 12'),
    ((12, 6), r'has 2 numbers, must have 6 .*client\) or 3 \(one per domain'),
  ],
)
def test_bad_budgets_are_refused(budgets, message):
  domains = partition.client_domains(_clients('domain', count=2), 3)
  with pytest.raises(ValueError, match=message):
    partition.expand_budgets(budgets, domains, 12)

"""A method looks the same in every picture, and like no other."""

import itertools

import pytest

from fedjax_tune.methods import METHODS
from fedjax_tune.report import figure, styles


def test_every_method_has_a_look_of_its_own():
  assert set(styles.METHODS) == set(METHODS)
  looks = [(look.color, look.dash) for look in styles.METHODS.values()]
  assert len(set(looks)) == len(looks)


def test_other_methods_change_nothing():
  everything = styles.of({name: name for name in METHODS})
  for names in (['fedra', 'raffm'], ['raffm', 'fedra', 'all_small']):
    for name, look in styles.of({name: name for name in names}).items():
      assert look == everything[name]


def test_variants_differ_whatever_their_order():
  labels = {f'fedra_lr{i}': 'fedra' for i in range(12)} | {'fedra': 'fedra'}
  found = styles.of(labels)
  assert len(set(found.values())) == len(labels)
  assert styles.of(dict(reversed(labels.items()))) == found
  assert found['fedra'] == styles.METHODS['fedra']
  # Alone, as with most others.
  alone = [styles.of({label: 'fedra'})[label] for label in labels]
  assert sum(a == found[x] for a, x in zip(alone, labels, strict=True)) > 4


def test_many_variants_differ_too():
  labels = {f'fedra_lr{i}': 'fedra' for i in range(60)}
  assert len(set(styles.of(labels).values())) == 60


def test_a_method_of_the_users_has_one_too():
  found = styles.of({'mine': 'mine', 'fedra': 'fedra'})
  assert found['mine'] == styles.of({'mine': 'mine'})['mine']
  assert found['mine'].color in figure.COLORS


@pytest.mark.parametrize('most', [8, 12, 22])
def test_short_names_differ_and_keep_their_ends(most):
  start = 'dinov2_vits14_with_registers'
  names = [start, f'{start}_d6', f'{start}_d6_w0.5', 'minilm_l6']
  found = figure.short(names, most)
  assert len(set(found)) == len(names)
  assert found[-1] == 'minilm_l6' or most < 9
  for name, cut in itertools.islice(zip(names, found, strict=True), 3):
    assert name.endswith(cut.rpartition('…')[2])
  assert figure.short(['a', 'b'], most) == ['a', 'b']

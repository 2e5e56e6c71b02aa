"""What leaves a run, and that others compute with it what we do."""

import dataclasses
import functools
import json
import pathlib
import sys
import types
from typing import Any

import jax
import numpy as np
import pytest
import tiny
import tiny_leaving
import torch

import fedjax_tune as ft
from fedjax_tune import selection
from fedjax_tune.deploy import card, exported, formats, models
from fedjax_tune.engine import server
from fedjax_tune.methods import METHODS
from fedjax_tune.methods.facts import Method
from fedjax_tune.report import writer
from fedjax_tune.training import (
  build,
  checkpoint,
  identity,
  learned,
)
from fedjax_tune.training import workdir as run_folder

# peft reads an attribute that transformers has renamed.
pytestmark = pytest.mark.filterwarnings('ignore:`is_gradient_checkpointing`')
_NEAR = 1e-4


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  return tmp_path_factory.mktemp('bases')


@pytest.mark.parametrize(
  ('family', 'tune', 'form'),
  [
    # All that there are: leaving_table_test.py, which is slow.
    ('dinov2', 'lora', 'peft'),  # With the patches' convolution.
    ('deit', 'bitfit', 'hf'),
    ('bert', 'adapter', 'flax'),
  ],
)
def test_others_compute_the_same(root, tmp_path, family, tune, form):
  case = tiny_leaving.make(tiny_leaving.base(root, family), tune)
  assert tiny_leaving.difference(case, form, tmp_path / 'out') < _NEAR


@pytest.mark.parametrize(
  ('family', 'tune', 'kind'),
  [
    ('distilbert', 'prompt', 'span'),
    ('bert', 'lora', 'span'),
    ('roberta', 'lora', 'regression'),
    ('llama', 'lora', 'next_token'),
    ('llama', 'prompt', 'next_token'),
  ],
)
def test_other_tasks(root, tmp_path, family, tune, kind):
  case = tiny_leaving.make(tiny_leaving.base(root, family), tune, kind)
  assert tiny_leaving.difference(case, 'peft', tmp_path / 'out', kind) < _NEAR


def test_a_folder_is_the_base_if_it_can_be(root, tmp_path):
  """Its head was for two classes; an adapter has its own, for three."""
  base = tiny_leaving.base(root, 'vit')
  case = tiny_leaving.make(base)
  notes = formats.FORMATS['peft'].write(case.model, case.context, tmp_path)
  said = json.loads((tmp_path / 'adapter_config.json').read_text())
  assert (said['base_model_name_or_path'], notes) == (str(base), [])
  assert said['modules_to_save'] == ['classifier']
  smaller = tiny_leaving.make(
    base, method='all_small', clients={'budgets': (1,) * 4}
  )
  assert tiny_leaving.difference(smaller, 'peft', tmp_path / 'small') < _NEAR
  assert (tmp_path / 'small/base/config.json').is_file()


@pytest.mark.parametrize(
  ('family', 'said'),
  [
    # Without padding transformers takes no batch.
    ('llama', {'pad_token_id': None, 'eos_token_id': 1}),
    ('deit', {'architectures': ['DeiTForImageClassificationWithTeacher']}),
  ],
)
def test_the_code_of_a_card_runs(tmp_path, family, said):
  base = tiny_leaving.write_base(tmp_path, family)
  path = base / 'config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | said))
  case, out = tiny_leaving.make(base), tmp_path / 'out'
  formats.FORMATS['peft'].write(case.model, case.context, out)
  code = '\n'.join(card.usage(case.model, 'peft', 'classification', out))
  code = code.replace('THE BASE MODEL', str(base)).replace('FOLDER', str(out))
  found: dict[str, Any] = {}
  exec(code, found)
  config: Any = case.model.config
  inputs = tiny_leaving.inputs(config)
  with torch.no_grad():
    got = found['model'].eval()(
      **tiny_leaving.torch_inputs(out, config, inputs)
    )
  want = tiny_leaving.run(case.model)
  np.testing.assert_allclose(got.logits, want, atol=_NEAR)


# -- methods


def _assert_all(case: tiny_leaving.Case, form: str, folder: pathlib.Path):
  """Each model of a run leaves; returns what others make of it, by name."""
  ends, found = models.take_apart(case.algorithm, case.state), {}
  for name, model in ends.items():
    own = dataclasses.replace(case, model=model)
    place = folder / name
    assert tiny_leaving.difference(own, form, place) < _NEAR
    found[name] = tiny_leaving.outside(place, form, model.config)
  return found


def _predict(case: tiny_leaving.Case, name: str) -> np.ndarray:
  """Returns what the run evaluates."""
  algorithm = case.algorithm
  held = algorithm.evaluation.models[name]
  model, predict = algorithm.model, algorithm.evaluation.predict
  local = selection.select_within(case.state.theta, model.axes, held)
  whole = model.assemble(model.base, local, held)
  inputs = tiny_leaving.inputs(case.model.config)
  return np.asarray(jax.jit(lambda x: predict(name, whole, held, x))(inputs))


@pytest.mark.parametrize('form', ['hf', 'peft'])
def test_depthfl_leaves_a_model_for_each_classifier(root, tmp_path, form):
  base = tiny_leaving.base(root, 'vit')
  case = tiny_leaving.make(base, method='depthfl', clients={'budgets': (2, 1)})
  found = _assert_all(case, form, tmp_path)
  assert list(found) == ['exit1', 'exit2']
  np.testing.assert_allclose(found['exit2'], _predict(case, 'last'), atol=_NEAR)
  both = (found['exit1'] + found['exit2']) / 2
  np.testing.assert_allclose(both, _predict(case, 'ensemble'), atol=_NEAR)


@pytest.mark.parametrize(
  'form', ['hf', pytest.param('peft', marks=pytest.mark.slow)]
)
def test_inclusivefl_leaves_a_model_of_each_size(root, tmp_path, form):
  base = tiny_leaving.base(root, 'bert')
  case = tiny_leaving.make(
    base, method='inclusivefl', clients={'budgets': (2, 1)}
  )
  found = _assert_all(case, form, tmp_path)
  assert list(found) == ['full', 'depth1']
  for name, logits in found.items():
    np.testing.assert_allclose(logits, _predict(case, name), atol=_NEAR)


def test_prism_leaves_as_one_model(root, tmp_path):
  case = tiny_leaving.make(
    tiny_leaving.base(root, 'vit'), 'full', method='prism'
  )
  (logits,) = _assert_all(case, 'hf', tmp_path).values()
  name = next(iter(case.algorithm.evaluation.models))
  np.testing.assert_allclose(logits, _predict(case, name), atol=_NEAR)


def test_fedper_leaves_a_model_of_each_client(root, tmp_path):
  case = tiny_leaving.make(tiny_leaving.base(root, 'vit'), method='fedper')
  found = _assert_all(case, 'hf', tmp_path)
  assert list(found) == ['client2']
  theta = case.algorithm.evaluation.personal(
    'full', case.state.theta, case.state.clients[2]
  )
  own = dataclasses.replace(case, state=case.state._replace(theta=theta))
  np.testing.assert_allclose(
    found['client2'], _predict(own, 'full'), atol=_NEAR
  )


@pytest.mark.parametrize('method', ['flora', 'fedex_lora'])
def test_what_the_server_adds_to_kernels_leaves(root, tmp_path, method):
  """Of full rank here, so that the adapter is."""
  case = tiny_leaving.make(tiny_leaving.base(root, 'vit'), method=method)
  before = _assert_all(case, 'hf', tmp_path / 'hf')
  found = _assert_all(case, 'peft', tmp_path / 'peft')
  np.testing.assert_allclose(found[''], before[''], atol=_NEAR)
  said = json.loads((tmp_path / 'peft/adapter_config.json').read_text())
  assert said['r'] == 16


# -- a run


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A run of InclusiveFL on arrays, with noise for training."""
  workdir = tmp_path_factory.mktemp('runs') / 'run'
  workdir.mkdir()
  e = tiny.experiment('inclusivefl', rounds=1)
  e.model.weights, e.data.image_size = 'random:vit_test', 16
  e.data.name, e.lora.targets = 'arrays', ('attn.q',)
  e.data.lengths = (8,)
  e.clients.count = e.clients.cohort_size = 2
  e.clients.budgets = (4, 2)
  made: list[Any] = [tiny.examples(n, 16, seed=n) for n in (24, 12)]
  pairs = [x for split in made for x in (split.inputs, split.labels)]
  data = ft.from_arrays(*pairs, class_names='xyz')
  setup = build.build(e, data=data)
  theta = tiny.noise(setup.algorithm.model.theta, 1)
  run_folder.write_config(workdir, dataclasses.asdict(e))
  with checkpoint.Checkpoints(workdir, 1, identity.of(setup)) as saved:
    saved.save(1, {'state': server.ServerState(theta, (), ())})
  summary = {'rounds': 1, 'accuracy': 0.625, 'metric': 'accuracy'}
  writer.write_json(workdir / 'summary.json', summary)
  known = dataclasses.asdict(learned.of(setup))
  writer.write_json(workdir / learned.FILE, known)
  assert learned.read(workdir) == learned.of(setup)
  return workdir


@pytest.mark.parametrize('form', formats.FORMATS)
def test_a_run_leaves_without_its_data(finished, tmp_path, monkeypatch, form):
  workdir = finished
  monkeypatch.setattr(build, 'build', None)
  exported.write(models.load(workdir), form, str(tmp_path / 'out'), ['full'])
  assert sorted(p.name for p in (tmp_path / 'out').iterdir()) == [
    'export.json',
    'full',
  ]
  model = models.load(workdir).models['full']
  got = tiny_leaving.outside(tmp_path / 'out/full', form, model.config)
  np.testing.assert_allclose(got, tiny_leaving.run(model), atol=_NEAR)
  text = (tmp_path / 'out/full/README.md').read_text()
  for part in (
    f'library_name: {card.LIBRARIES[form]}',
    '`inclusivefl`. InclusiveFL: prefixes of blocks',
    '| accuracy of the run | 62.5% on 12 test examples',
    'arrays: 24 examples',
    'none is needed: its weights were drawn',
  ):
    assert part in text


@pytest.mark.parametrize('there', [False, True])
def test_an_export_that_fails_leaves_nothing(
  finished, tmp_path, monkeypatch, there
):
  out = tmp_path / 'out'
  if there:
    out.mkdir()

  def fail(*_):
    raise KeyError

  monkeypatch.setattr(card, 'render', fail)
  with pytest.raises(KeyError):
    exported.write(models.load(finished), 'flax', out)
  assert sorted(tmp_path.rglob('*')) == ([out] if there else [])


def test_an_adapter_names_the_base_where_it_is_in_the_end(finished, tmp_path):
  out = tmp_path / 'out'
  exported.write(models.load(finished), 'peft', out, ['full'])
  said = json.loads((out / 'full/adapter_config.json').read_text())
  base = pathlib.Path(said['base_model_name_or_path'])
  assert (base, base.is_dir()) == (out / 'full' / formats.BASE, True)


@pytest.mark.parametrize(
  ('doc', 'about'),
  [
    (None, '`mine`, a method of your own'),
    (' \n', '`mine`, a method of your own'),
    ('\nMine: the best.\n\nYes.', '`mine`. Mine: the best.'),
  ],
)
def test_the_card_of_a_method_of_ones_own(
  finished, tmp_path, monkeypatch, doc, about
):
  module = types.ModuleType('mine', doc)
  monkeypatch.setitem(sys.modules, 'mine', module)

  def build(facts):
    raise NotImplementedError

  build.__module__ = 'mine'
  ended = models.load(finished)
  monkeypatch.setitem(METHODS, 'mine', Method(functools.partial(build)))
  ended.results.experiment.method = 'mine'
  exported.write(ended, 'flax', tmp_path, ['full'])
  text = (tmp_path / 'full/README.md').read_text()
  assert f'| method | {about} |' in text


@pytest.mark.parametrize(
  ('named', 'changes', 'parts'),
  [
    (
      'folder:pictures',
      {'source': '/gone/vit_s_focus.onnx', 'packaged': 'dinov2_vits14'},
      (
        'base_model: "facebook/dinov2-small"\n',
        '| base | facebook/dinov2-small, a vit, packaged as dinov2_vits14 |',
        '| licence of the base | Apache-2.0 (DINOv2',
        '| licence of the data | yours: read where it lies |',
      ),
    ),
    (
      'cifar10',
      {'source': str(pathlib.Path(__file__).parent)},
      ('base_model: "tests"', 'that of cifar10, which dataset_info.json'),
    ),
    ('csv:a.csv', {}, ('\n| licence of the data | yours: read',)),
  ],
)
def test_what_a_card_says_of_base_and_data(
  finished, tmp_path, named, changes, parts
):
  ended = models.load(finished)
  ended.results.experiment.data.name = named
  model = ended.models['full']
  source = dataclasses.replace(ended.source(model), **changes)
  ended = ended._replace(sources={model.tier: source})
  text = card.render(ended, model, 'flax', tmp_path, [])
  for part in parts:
    assert part in text
  assert ('base_model' in text) == bool(changes)


def test_a_card_counts_what_clients_hold(finished):
  e = models.load(finished).results.here
  e.data.name = 'arrays'
  made: list[Any] = [tiny.examples(n, 16, seed=n) for n in (24, 12)]
  pairs = [x for split in made for x in (split.inputs, split.labels)]
  data = ft.from_arrays(*pairs, class_names='xyz')
  parts = [np.arange(5), np.arange(3, 9)]
  setup = build.build(e, data=data, parts=parts)
  assert learned.of(setup).train_examples == 9


def test_what_cannot_leave_is_refused(root, finished, tmp_path):
  case = tiny_leaving.make(tiny_leaving.base(root, 'vit'), 'prompt')
  ended = models.load(finished)
  ended = ended._replace(models={'': case.model})
  ended.results.experiment.model.tune = 'prompt'
  message = (
    "format='hf' must be 'flax' for model.tune='prompt' here: no model of"
    ' transformers has trained tokens behind the class token'
  )
  with pytest.raises(ValueError, match=message):
    exported.write(ended, 'hf', tmp_path / 'out')
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
  ('family', 'tune', 'form', 'why'),
  [
    ('vit', 'prompt', 'peft', 'a picture has none'),
    ('bert', 'prompt', 'peft', 'would read the first of them'),
    ('distilbert', 'prefix', 'peft', "no model of family 'distilbert'"),
    ('vit', 'prefix', 'hf', 'no model of transformers has trained keys'),
    ('llama', 'adapter', 'peft', 'peft has no bottlenecks'),
    ('llama', 'full', 'peft', 'all parameters trained'),
  ],
)
def test_why_something_stays(root, family, tune, form, why):
  case = tiny_leaving.make(tiny_leaving.base(root, family), tune)
  task = case.context.learned.task
  assert why in formats.FORMATS[form].why_not(case.model, task)


def test_unknown_models_are_refused(finished, tmp_path):
  ended = models.load(finished)
  with pytest.raises(ValueError, match="models='x' must be of full, depth2"):
    exported.write(ended, 'hf', tmp_path / 'out', ['x'])
  (tmp_path / 'thesis.tex').touch()
  with pytest.raises(FileExistsError, match='of something else'):
    exported.write(ended, 'hf', tmp_path)
  earlier = tmp_path / 'earlier'
  earlier.mkdir()
  (earlier / 'export.json').write_text('{"format": "peft"}')
  with pytest.raises(FileExistsError, match="has an export of format 'peft'"):
    exported.write(ended, 'hf', earlier)


def test_a_frozen_a_leaves_too(root, tmp_path):
  case = tiny_leaving.make(tiny_leaving.base(root, 'vit'), method='ffa_lora')
  assert tiny_leaving.difference(case, 'peft', tmp_path / 'out') < _NEAR

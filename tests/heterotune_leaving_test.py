"""What a run of HeteroTune leaves, and that it is what the run evaluates."""

import dataclasses
import functools
import json
from typing import Any

from absl.testing import flagsaver
import jax
import numpy as np
import pytest
import tiny
import tiny_leaving

import fedjax_tune as ft
from fedjax_tune import config, selection
from fedjax_tune.data import public
from fedjax_tune.deploy import (
  deployment,
  exported,
  finished,
  folded,
  formats,
  models,
)
from fedjax_tune.engine import evaluate, server, store
from fedjax_tune.models import sizes
from fedjax_tune.training import (
  aligned,
  build,
  checkpoint,
  identity,
  learned,
  method,
)
from fedjax_tune.training import workdir as run_folder
from launch import deploy as command

_NEAR = 1e-4
_TIERS = ('vit_test', 'vit_test_d3')


def _experiment():
  """Two depths of one network: aligned cores and head, a private branch."""
  return config.Experiment(
    method='heterotune',
    rounds=1,
    model=config.Model(tune='adapter'),
    fedadapter=config.Fedadapter(
      rank=4, placement='parallel', projections='aligned', private=True
    ),
    heterotune=config.Heterotune(branches=(1, 1)),
    tiers=config.Tiers(
      weights=('random:vit_test',) * 2, depth=(0, 3), head='common',
      head_rank=5, public_examples=60,
    ),
    data=config.Data(name='arrays', image_size=16),
    clients=config.Clients(
      partition='iid', count=4, budgets=(), min_examples=1, cohort='uniform',
      cohort_size=4,
    ),
  )  # fmt: skip


def _pictures():
  train: Any
  test: Any
  train, test = tiny.examples(200, 16), tiny.examples(40, 16, seed=9)
  return ft.from_arrays(train.inputs, train.labels, test.inputs, test.labels)


def _finish(e, workdir):
  """Leaves what a run leaves, but for noise instead of training."""
  setup = build.build(e, data=_pictures())
  algorithm, clients = setup.algorithm, {}
  if algorithm.client.state:
    clients = {3: tiny.noise(algorithm.client.state(3), 5)}
  theta = tiny.noise(algorithm.model.theta, 1)
  state = server.ServerState(theta, (), (), clients)
  workdir.mkdir()
  run_folder.write_config(workdir, dataclasses.asdict(setup.experiment))
  packed = state._replace(clients=store.pack(clients))
  with checkpoint.Checkpoints(workdir, 1, identity.of(setup)) as saved:
    saved.save(1, {'state': packed})
  (workdir / 'summary.json').write_text('{"rounds": 1, "accuracy": 0.5}')
  known = dataclasses.asdict(learned.of(setup))
  (workdir / learned.FILE).write_text(json.dumps(known))
  aligned.write(workdir, aligned.of(algorithm))
  return setup, state


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A finished run, its folder, and what it ended with."""
  workdir = tmp_path_factory.mktemp('runs') / 'run'
  return workdir, *_finish(_experiment(), workdir)


def _evaluated(algorithm, theta, name, inputs):
  """Returns the logits that a run is judged by."""
  model, row = algorithm.model, algorithm.evaluation.models[name]
  local = selection.select_within(theta, model.axes, row)
  layers = np.arange(model.tiers[name].depth)
  run = lambda base, local: model.assemble(base, local, row)(inputs, layers)
  return jax.jit(run)(model.base, local)


def test_tiers_leave_without_the_data(run, tmp_path, monkeypatch):
  workdir, setup, state = run
  monkeypatch.setattr(build, 'build', None)
  ended = models.load(workdir)
  exported.write(ended, 'flax', tmp_path / 'out')
  inputs = setup.test.read(np.arange(9))
  for name in _TIERS:
    loaded = ft.load_model(tmp_path / 'out' / name)
    want = _evaluated(setup.algorithm, state.theta, name, inputs)
    assert np.std(want) > 0.1
    np.testing.assert_allclose(loaded(inputs), want, atol=_NEAR)
    text = (tmp_path / 'out' / name / 'README.md').read_text()
    assert (
      f"Tier {name} of {', '.join(_TIERS)}: its adapters' cores and its head"
      ' learned from all tiers; its projections were computed from public inputs'
      ' and never trained; what else trains is the mean over the clients of its'
      ' own tier.'
    ) in text
  with pytest.raises(ValueError, match="format='hf' must be 'flax'"):
    exported.check(ended, 'hf', ())


def test_what_aligns_is_read_as_it_was(run, tmp_path, monkeypatch):
  workdir, setup, _ = run
  found = aligned.read(workdir)
  want = aligned.of(setup.algorithm)
  jax.tree.map(np.testing.assert_array_equal, dict(found), dict(want))
  assert aligned.identify(found) == aligned.identify(want)
  other = {n: dict(leaves) for n, leaves in found.items()}
  other[_TIERS[0]]['head/map'] = other[_TIERS[0]]['head/map'] + 1
  monkeypatch.setattr(aligned, 'read', lambda _: other)
  with pytest.raises(ValueError, match=r'on other data or .*\n  alignment: '):
    models.load(workdir)
  del other[_TIERS[0]]['head/map']
  with pytest.raises(ValueError, match="is not that of tier 'vit_test'"):
    models.load(workdir)
  # Of a run that is older than a file of its folder the data are read, and what
  # aligned it is taken where it is known.
  taken = []

  def with_data(_, values):
    taken.append(values)
    return setup

  monkeypatch.setattr(build, 'build', with_data)
  monkeypatch.setattr(aligned, 'read', lambda _: {})
  assert set(models.load(workdir).models) == set(_TIERS)
  monkeypatch.setattr(aligned, 'read', lambda _: want)
  monkeypatch.setattr(learned, 'read', lambda _: None)
  assert set(models.load(workdir).models) == set(_TIERS)
  assert taken == [{}, want]
  path = tmp_path / aligned.FILE
  path.write_bytes(b'x')
  monkeypatch.undo()
  with pytest.raises(ValueError, match='is corrupt'):
    aligned.read(tmp_path)


@pytest.mark.slow
def test_a_tier_is_deployed(run, tmp_path, monkeypatch):
  """What is written is what is judged, and may be cut."""
  workdir, setup, state = run
  with_data = functools.partial(build.build, data=_pictures())
  monkeypatch.setattr(finished.build, 'build', with_data)
  with pytest.raises(ValueError, match=r'\(--model\): vit_test, vit_test_d3'):
    finished.load(workdir)
  with pytest.raises(ValueError, match="model='x' must be of vit_test, vit_"):
    finished.load(workdir, name='x')
  name = _TIERS[1]
  trained = finished.load(workdir, name=name)
  assert (trained.form, trained.sizes['layer']) == ('flax', 3)
  record = deployment.write(trained, {}, tmp_path / 'whole')
  algorithm = setup.algorithm
  tests: Any = dict.fromkeys(algorithm.evaluation.models, setup.test)
  judged = evaluate.build_evaluate(
    algorithm.model, algorithm.evaluation, tests
  )(algorithm.model.base, state.theta)
  assert record['accuracy'] == deployment.score(judged[name])
  assert record['model'] == name
  inputs = setup.test.read(np.arange(9))
  loaded = ft.load_model(tmp_path / 'whole')
  want = _evaluated(algorithm, state.theta, name, inputs)
  np.testing.assert_allclose(loaded(inputs), want, atol=_NEAR)
  values = {'workdir': str(workdir), 'model': name, 'out': str(tmp_path / 'it')}
  with flagsaver.flagsaver(**values):
    command.main(['deploy'])
  assert json.loads((tmp_path / 'it/deploy.json').read_text()) == record
  half = trained.held({'ffn': trained.sizes['ffn'] // 2})
  record = deployment.write(trained, half, tmp_path / 'half')
  assert record['file_parameters'] == record['parameters']
  assert record['share'] < 0.9
  assert ft.load_model(tmp_path / 'half')(inputs).shape == (9, 3)


@pytest.mark.slow
def test_clients_leave_what_they_kept_and_tiers_what_is_new(tmp_path):
  e = _experiment()
  e.heterotune.personal = True
  setup, state = _finish(e, tmp_path / 'run')
  ended = models.load(tmp_path / 'run')
  assert list(ended.models) == [*_TIERS, 'client3']
  own = ended.models['client3']
  assert own.tier == _TIERS[1]
  assert 'what else trains is what client 3 has kept to itself.' in own.about
  assert 'as every client begins with it' in ended.models[_TIERS[1]].about
  make: Any = setup.algorithm.evaluation.personal
  inputs = setup.test.read(np.arange(9))
  for name, theta in (
    ('client3', make(own.tier, state.theta, state.clients[3])),
    (own.tier, state.theta),
  ):
    written = tmp_path / name
    exported.write(ended, 'flax', written, [name])
    got = ft.load_model(written / name)(inputs)
    want = _evaluated(setup.algorithm, theta, own.tier, inputs)
    np.testing.assert_allclose(got, want, atol=_NEAR)


@pytest.fixture(scope='module')
def heads(tmp_path_factory):
  """A head that two BERTs have in common, and nothing else that trains."""
  root = tmp_path_factory.mktemp('bases')
  base = tiny_leaving.write_base(root, 'bert')
  e = tiny.experiment('heterotune', data={'lengths': (8,)})
  e.model.tune, e.tiers.head, e.tiers.head_rank = 'head', 'common', 3
  e.tiers.weights, e.tiers.depth = (str(base),) * 2, (0, 1)
  found, case = method.load_tiers(e), tiny_leaving.make(base, 'head')
  depths = {f'tier:{t.name}': t.kept['layer'] for t in found}
  texts = tiny.texts(24)
  algorithm = method.build(
    e, found, case.context.learned.task, depths, (1,) * 4,
    public=lambda _: public.Shown(texts),
  )  # fmt: skip
  state = server.ServerState(tiny.noise(algorithm.model.theta, 3, 1.0), (), ())
  return dataclasses.replace(case, algorithm=algorithm, state=state)


@pytest.mark.parametrize(
  'form',
  ['peft', *tiny.slow('hf', 'flax')],
)
@pytest.mark.filterwarnings('ignore:`is_gradient_checkpointing`')
def test_a_common_head_leaves_as_one_of_its_own(heads, tmp_path, form):
  ends = models.take_apart(heads.algorithm, heads.state)
  assert list(ends) == ['bert', 'bert_d1']
  name = 'bert' if form == 'hf' else 'bert_d1'
  own = dataclasses.replace(heads, model=ends[name])
  formats.FORMATS[form].write(own.model, own.context, tmp_path)
  got = tiny_leaving.outside(tmp_path, form, ends[name].config)
  inputs = tiny_leaving.inputs(ends[name].config)
  want = _evaluated(heads.algorithm, heads.state.theta, name, inputs)
  assert np.std(want) > 0.1
  np.testing.assert_allclose(got, want, atol=_NEAR)


@pytest.mark.parametrize(
  ('family', 'why'),
  [
    ('llama', 'lacks the bias of a common head'),
    ('roberta', 'a roberta has a map before its head'),
    ('distilbert', 'a distilbert has a map before its head'),
    ('vit', ''),
  ],
)
def test_where_a_common_head_has_no_place(family, why):
  known = tiny_leaving.CONFIGS[family]
  assert not folded.why_not(known)
  common: sizes.Config = dataclasses.replace(known, code=3)
  assert why in folded.why_not(common)
  assert bool(why) == bool(folded.why_not(common))
  assert set(formats.TENSORS) < set(formats.FORMATS)

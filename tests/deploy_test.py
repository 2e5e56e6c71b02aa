"""Subnetworks of finished runs: what is written is what was evaluated."""

import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys

from absl.testing import flagsaver
from flax import nnx
import jax
from matplotlib import image
import numpy as np
import pytest
import safetensors.numpy
import tiny
import tiny_text
import torch
import transformers

from fedjax_tune import config, endings, selection
from fedjax_tune.data import corpus, outlines, tasks
from fedjax_tune.deploy import deployment, finished, folders, subnetworks
from fedjax_tune.engine import evaluate, server, server_optimizer
from fedjax_tune.models import (
  backbone,
  export,
  foundation,
  heads,
  huggingface,
  sizes,
)
from fedjax_tune.report import scaling
from fedjax_tune.training import (
  build,
  checkpoint,
  defaults,
  identity,
  loop,
  provisions,
)
from fedjax_tune.training import workdir as run_folder
from fedjax_tune.typing import Tokens
from launch import deploy as command

_WIDEST = 'qk+vo+ffn'
_TEXT = sizes.TextConfig(2, 16, 2, 24, vocab=110, positions=16)


def _image_experiment(folder, method, **changes):
  return tiny.experiment(
    method,
    rounds=1,
    model={'weights': 'random:vit_test', 'tune': 'full'},
    # Read from memory, see `_loaded`.
    data={
      'name': 'domainnet',
      'domains': ('clipart', 'real'),
      'data_dir': str(folder),
      'image_size': tiny.VIT_SIZE,
    },
    local={'lr': 0.3, 'clip_norm': 0.0},
    **changes,
  )


def _texts(num, seed):
  rng = np.random.default_rng(seed)
  ids = rng.integers(5, _TEXT.vocab, (num, 16)).astype(np.int32)
  lengths = rng.integers(4, 17, num).astype(np.int32)
  ids[np.arange(16) >= lengths[:, None]] = _TEXT.pad
  return corpus.Corpus(
    labels=rng.integers(3, size=num).astype(np.int32),
    domains=np.zeros(num, np.int32),
    groups=None,
    domain_names=('a',),
    class_names=('x', 'y', 'z'),
    inputs=Tokens(ids, np.zeros_like(ids)),
    task=tasks.Task('classification', 3),
    lengths=lengths,
  )


def _text_experiment(folder):
  """LoRA on every map of a BERT of noise, with a tokenizer."""
  weights = tiny_text.write_bert(folder / 'bert')
  rng = np.random.default_rng(0)
  full = dataclasses.replace(_TEXT, num_classes=3)
  shapes = backbone.variables(full)
  noise = {p: 0.3 * rng.normal(size=v.shape) for p, v in shapes.items()}
  params = export.traverse_util.unflatten_dict(noise)
  export.save_huggingface(weights, full, params, 'xyz', None)
  return tiny.experiment(
    'all_large',
    rounds=1,
    model={'weights': str(weights)},
    lora={'targets': ('attn.q', 'attn.proj', 'mlp.fc2'), 'patch_embed': False},
    data={
      'name': 'imdb_reviews', 'data_dir': str(folder), 'lengths': (8, 16),
    },
    clients={'budgets': (2,) * 4},
    local={'lr': 0.3},
  )  # fmt: skip


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('deploy')


@pytest.fixture(scope='module')
def patch():
  with pytest.MonkeyPatch.context() as patch:
    images = tuple(tiny.examples(n, tiny.VIT_SIZE, seed=n) for n in (48, 31))
    patch.setattr(
      corpus,
      'load',
      lambda cfg, *_: (
        images if cfg.name == 'domainnet' else (_texts(48, 1), _texts(20, 2))
      ),
    )
    patch.setattr(provisions, 'check', lambda *_: None)
    patch.setattr(outlines, 'domain_names', lambda cfg: cfg.domains or ('a',))
    yield patch


def _finish(experiment, workdir):
  """Leaves what a run leaves, but for noise instead of training."""
  experiment = defaults.resolve(experiment)
  fields = dataclasses.asdict(experiment)
  workdir.mkdir(exist_ok=True)
  run_folder.write_config(workdir, fields)
  setup = build.build(experiment)
  model, evaluation = setup.algorithm.model, setup.algorithm.evaluation
  theta = tiny.noise(model.theta, 1)
  state = server.ServerState(
    theta, server_optimizer.build(experiment.server).init(theta), ()
  )
  with checkpoint.Checkpoints(workdir, 1, identity.of(setup)) as saved:
    saved.save(1, {'state': state, 'meter': {'flops': np.int64(1)}})
  run = evaluate.build_evaluate(
    model,
    evaluation,
    dict.fromkeys(evaluation.models, setup.test),
    (8, 16),
  )
  found = next(iter(run(model.base, theta).values()))
  summary = {'rounds': 1, 'accuracy': deployment.score(found)}
  (workdir / 'summary.json').write_text(json.dumps(summary))
  return summary


@pytest.fixture(scope='module')
def trained_run(folder, patch):
  """A finished run of RaFFM on images: the run, its folder, its summary."""
  del patch
  raffm = {'embed': (1.0,), 'layers': (1.0,), 'ffn': (1.0, 0.5)}
  # A cohort of one holds the full model: one program.
  experiment = _image_experiment(
    folder,
    'raffm',
    raffm=raffm,
    clients={'cohort_size': 1},
    engine={'slab': 1},
  )
  summary = loop.train(experiment, str(folder / 'raffm'))
  return finished.load(folder / 'raffm'), folder / 'raffm', summary


@pytest.fixture(scope='module')
def text_run(folder, patch):
  """LoRA on texts, with noise for results."""
  del patch
  summary = _finish(_text_experiment(folder), folder / 'text')
  return finished.load(folder / 'text'), folder / 'text', summary


def test_the_best_state_of_a_run_that_ended_early_is_deployed(tmp_path, patch):
  del patch
  experiment = _text_experiment(tmp_path)
  experiment.rounds, experiment.patience, experiment.keep_best = 9, 2, True
  experiment = defaults.resolve(experiment)
  run_folder.write_config(tmp_path, dataclasses.asdict(experiment))
  setup = build.build(experiment)
  states = {
    name: server.ServerState(
      tiny.noise(setup.algorithm.model.theta, seed), (), ()
    )
    for seed, name in enumerate(('best', 'state'))
  }
  rows = [
    json.dumps({'round': i, 'eval/accuracy': score}) + '\n'
    for i, score in enumerate((0.5, 0.4, 0.3))
  ]
  own = identity.of(setup)
  with checkpoint.Checkpoints(tmp_path, 1, own) as saved:
    saved.save(2, states, ''.join(rows[:2]))
  (tmp_path / 'summary.json').write_text('{"rounds": 3, "ended_early": true}')
  with pytest.raises(ValueError, match='no whole checkpoint of round 9'):
    finished.load(tmp_path)
  with checkpoint.Checkpoints(tmp_path, 1, own) as saved:
    saved.save(3, states, ''.join(rows))
  got = finished.load(tmp_path).params['head']
  tiny.assert_equal(got, states['best'].theta['head'])
  assert np.any(got['bias'] != states['state'].theta['head']['bias'])


@pytest.fixture(params=['trained_run', 'text_run'])
def run(request):
  """Either of them."""
  return request.getfixturevalue(request.param)


def _outputs(trained, params, row):
  """Our logits on the test data."""
  row = trained.held(row)
  model = trained.model.merge(
    {}, selection.select_within(params, trained.model.axes, row)
  )
  inputs = jax.tree.map(np.asarray, trained.setup.test.inputs)
  graph, state = nnx.split(model)
  layers = np.arange(row['layer'])
  run = jax.jit(lambda state: nnx.merge(graph, state)(inputs, layers))
  return np.asarray(run(state))


def _torch_outputs(trained, folder):
  inputs, cfg = trained.setup.test.inputs, trained.config
  if isinstance(cfg, sizes.TextConfig):
    auto = transformers.AutoModelForSequenceClassification
    mask = (inputs.ids != cfg.pad).astype(np.int64)
    kwargs = {'input_ids': inputs.ids, 'attention_mask': mask}
  else:
    auto = transformers.AutoModelForImageClassification
    said = json.loads((folder / 'preprocessor_config.json').read_text())
    pixels = inputs * said['rescale_factor'] - np.array(said['image_mean'])
    pixels = pixels / np.array(said['image_std'])
    pixels = pixels.astype(np.float32).transpose(0, 3, 1, 2)
    kwargs = {'pixel_values': pixels}
  model = auto.from_pretrained(folder).eval()
  with torch.no_grad():
    out = model(**{k: torch.tensor(v) for k, v in kwargs.items()})
  return out.logits.numpy()


@pytest.mark.parametrize(
  ('space', 'scope'),
  [('ffn=1', 'none'), ('head_dim=0.5,ffn=0.4', _WIDEST), ('heads=0.5', 'qk')],
)
def test_torch_computes_the_same(run, tmp_path, space, scope):
  trained, _, _ = run
  row = subnetworks.parse(space, trained)
  record = deployment.write(trained, row, tmp_path, scope)
  want = _outputs(trained, trained.reorder(trained.rank(scope)), row)
  assert want.std() > 0.01
  np.testing.assert_allclose(_torch_outputs(trained, tmp_path), want, atol=1e-4)
  # What is reported is what these logits are worth.
  hits = want.argmax(-1) == trained.setup.test.labels
  domains = trained.setup.test.domains
  means = [hits[domains == d].mean() for d in np.unique(domains)]
  assert record['accuracy'] == pytest.approx(np.mean(means))
  assert record['accuracy_by_domain'] == pytest.approx(
    dict(zip(trained.setup.test.domain_names, means, strict=True))
  )
  held = selection.select_within(
    trained.params, trained.model.axes, record['subnetwork']
  )
  assert record['parameters'] == foundation.num_params(held)
  assert record['file_parameters'] >= record['parameters']
  assert json.loads((tmp_path / 'deploy.json').read_text()) == record
  again = heads.put(
    huggingface.load_huggingface(tmp_path),
    trained.test.task,
    trained.test.class_names,
  )
  np.testing.assert_array_equal(
    again.params['head']['kernel'], held['head']['kernel']
  )


def test_the_whole_budget_is_the_run(run, tmp_path):
  trained, _, summary = run
  row = subnetworks.largest(1, trained)
  assert row == trained.sizes
  record = deployment.write(trained, row, tmp_path, _WIDEST)
  assert record['accuracy'] == pytest.approx(summary['accuracy'])
  assert record['full_accuracy'] == record['accuracy']
  assert record['share'] == 1
  assert record['file_parameters'] == record['full_parameters']
  if trained.tokenizer:
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer('the book ' * 20, truncation=True)['input_ids']
    assert (ids[0], len(ids)) == (2, 16)  # [CLS], and the run's data.lengths.


def test_orders_change_nothing_but_what_comes_first(run):
  trained, _, _ = run
  want = _outputs(trained, trained.params, {})
  order = trained.rank(_WIDEST)
  rng = np.random.default_rng(0)
  mixed = {a: rng.permuted(np.asarray(o), axis=-1) for a, o in order.items()}
  half = {'ffn': trained.sizes['ffn'] // 2}
  cut = _outputs(trained, trained.params, half)
  for params in (trained.reorder(order), trained.reorder(mixed)):
    off = np.abs(_outputs(trained, params, {}) - want).max()
    assert off < 1e-4
    assert np.abs(_outputs(trained, params, half) - cut).max() > 10 * off


def test_budgets(run):
  trained, _, _ = run
  whole = trained.num_params({})
  assert whole == foundation.num_params(trained.params)
  if trained.setup.experiment.method == 'raffm':
    # What the run has trained, where that fits.
    half = trained.held({'ffn': trained.sizes['ffn'] // 2})
    for budget in (0.99, trained.num_params(half)):
      assert subnetworks.largest(budget, trained) == half
  limit = trained.num_params(subnetworks.parse('head_dim=.5,ffn=.5', trained))
  row = subnetworks.largest(limit, trained)
  assert trained.num_params(row) == limit
  assert trained.num_params(subnetworks.largest(limit - 1, trained)) < limit


@pytest.mark.parametrize(('budget', 'levels'), [(None, 6), (0.8, 1)])
def test_draws_use_their_budget(text_run, budget, levels):
  trained, _, _ = text_run
  drawn = subnetworks.draw(trained, 21, 3, budget)
  assert drawn == subnetworks.draw(trained, 21, 3, budget)
  assert len({limit for limit, _ in drawn}) == levels
  assert len({tuple(row.items()) for _, row in drawn}) > 7
  for limit, row in drawn:
    assert 0.98 * limit <= trained.num_params(row) <= limit


@pytest.mark.parametrize(('budget', 'name'), [(None, 'curve'), (0.8, 'box')])
def test_comparison(text_run, tmp_path, budget, name):
  trained, workdir, summary = text_run
  out = tmp_path / 'out'
  values = {
    'workdir': str(workdir), 'curve': True, 'samples': 3, 'budget': budget,
    'out': str(out), 'test_examples': 0,
  }  # fmt: skip
  with flagsaver.flagsaver(**values):
    command.main(['deploy'])
  found = json.loads((out / f'{name}.json').read_text())
  orders = ['by salience', 'as trained', 'random order']
  assert found['full']['accuracy'] == pytest.approx(
    dict.fromkeys(orders, summary['accuracy'])
  )
  assert len(found['subnetworks']) == 3
  first = found['subnetworks'][0]
  params = trained.reorder(trained.rank(_WIDEST))
  alone = deployment.build_evaluate(trained, {'x': first['subnetwork']})(params)
  assert first['accuracy']['by salience'] == deployment.score(alone['x'])
  assert (out / f'{name}.md').read_text().startswith('| parameters')
  assert image.imread(out / f'{name}.png')[..., :3].std() > 0.01


def test_scaling_table():
  points = [
    scaling.Point(2000, {}, 1990, 0.2, {'a': 0.5, 'b': 0.25}),
    scaling.Point(1000, {}, 1000, 0.1, {'a': 0.5, 'b': 0.5}),
    scaling.Point(2000, {}, 2000, 0.2, {'a': 0.7, 'b': 0.25}),
  ]
  full = scaling.Point(10000, {}, 10000, 1.0, {'a': 0.8, 'b': 0.8})
  compared = scaling.Comparison(points, full, 'accuracy')
  lines = scaling.scaling_markdown(compared).splitlines()
  cells = [[c.strip() for c in line.strip('|').split('|')] for line in lines]
  assert cells[0] == ['parameters', 'share %', 'subnetworks', 'a', 'b']
  assert cells[2:] == [
    ['1 k', '10.0', '1', '50.0', '50.0'],
    ['2 k', '20.0', '2', '60.0 ± 14.1', '25.0 ± 0.0'],
    ['10 k', '100', '1', '80.0', '80.0'],
  ]


@pytest.mark.parametrize('case', ['inclusivefl', 'depthfl'])
def test_other_than_plain_models_are_refused(case, folder, patch, tmp_path):
  del patch
  experiment = _image_experiment(folder, case)
  fields = dataclasses.asdict(experiment)
  run_folder.write_config(tmp_path, fields)
  (tmp_path / 'summary.json').write_text('{"rounds": 1}')
  with pytest.raises(ValueError, match=f'method={case!r} does not end with'):
    finished.load(tmp_path)
  assert not (tmp_path / 'checkpoints').exists()


@pytest.mark.slow
def test_one_of_several_models_may_be_named(folder, patch, tmp_path):
  del patch
  _finish(_image_experiment(folder, 'inclusivefl'), tmp_path)
  trained = finished.load(tmp_path, name='depth2')
  assert (trained.form, trained.sizes['layer']) == ('hf', 2)
  record = deployment.write(trained, {}, tmp_path / 'out')
  want = _outputs(trained, trained.params, {})
  got = _torch_outputs(trained, tmp_path / 'out')
  np.testing.assert_allclose(got, want, atol=1e-4)
  assert (record['model'], record['share']) == ('depth2', 1)
  with pytest.raises(ValueError, match=r'model=.depth9. must be of full, '):
    finished.load(tmp_path, name='depth9')


def test_a_smaller_model_of_the_method_is_the_whole(folder, patch, tmp_path):
  del patch
  summary = _finish(_image_experiment(folder, 'all_small'), tmp_path)
  trained = finished.load(tmp_path)
  assert trained.sizes['layer'] == 2
  record = deployment.write(trained, {}, tmp_path / 'out', _WIDEST)
  assert record['accuracy'] == pytest.approx(summary['accuracy'])
  written = json.loads((tmp_path / 'out/config.json').read_text())
  assert written['num_hidden_layers'] == 2


@pytest.mark.parametrize(
  ('act', 'message'),
  [
    (lambda t: subnetworks.largest(0.01, t), 'budget=0.01 must be at least'),
    (lambda t: subnetworks.largest(-1, t), 'budget=-1 must be above 0'),
    (lambda t: subnetworks.parse('width=0.5', t), "'width' must be one of"),
    (lambda t: subnetworks.parse('ffn=1,ffn=1', t), 'each at most once'),
    (lambda t: subnetworks.parse('ffn=2', t), r'ffn=2 must be a share in \(0'),
    (lambda t: subnetworks.parse('ffn', t), 'ffn must be a share'),
    (
      lambda t: subnetworks.draw(t, 2, 0, 1e9),
      'no subnetwork to compare has 98%',
    ),
    (
      lambda t: subnetworks.draw(t, 2, 0, 10),
      'no subnetwork to compare has 98%',
    ),
  ],
)
def test_bad_sizes(text_run, act, message):
  with pytest.raises(ValueError, match=message):
    act(text_run[0])


def test_a_model_that_is_not_finite_is_refused(text_run):
  setup = text_run[0].setup
  model = setup.algorithm.model
  head = jax.tree.map(lambda x: x * np.nan, model.theta['head'])
  state = server.ServerState({**model.theta, 'head': head}, (), ())
  with pytest.raises(endings.Diverged, match=r'must be finite, but its head\.'):
    finished._assemble(setup, state)


def test_other_folders_are_left_alone(text_run):
  trained, workdir, _ = text_run
  before = (workdir / 'config.json').read_text()
  with pytest.raises(FileExistsError, match='of something else'):
    deployment.write(trained, {}, workdir)
  assert (workdir / 'config.json').read_text() == before


def test_a_folder_that_may_be_written(tmp_path):
  folder, file = tmp_path / 'out', tmp_path / 'file'
  file.touch()
  with pytest.raises(NotADirectoryError, match='file must be a folder'):
    folders.check(file)
  folders.check(folder)
  folder.mkdir()
  (folder / '.hidden').touch()
  folders.check(folder)
  (folder / 'thesis.tex').touch()
  with pytest.raises(FileExistsError, match=r'something else \(thesis.tex\)'):
    folders.check(folder)
  for name in ('deploy.json', 'curve.json', 'box.json'):
    (folder / name).touch()
    folders.check(folder)
    (folder / name).unlink()


def test_runs_that_are_none(tmp_path):
  with pytest.raises(FileNotFoundError, match='has no run: no config'):
    finished.load(tmp_path)
  fields = dataclasses.asdict(config.Experiment(rounds=5))
  run_folder.write_config(tmp_path, fields)
  with pytest.raises(FileNotFoundError, match='not a finished run'):
    finished.load(tmp_path)
  (tmp_path / 'summary.json').write_text('{"rounds": 3}')
  with pytest.raises(ValueError, match='3 of 5 rounds'):
    finished.load(tmp_path)


@pytest.mark.parametrize(
  ('values', 'message'),
  [
    ({}, 'one of --budget, --space and --curve'),
    ({'budget': 0.5, 'space': 'ffn=1'}, 'one of --budget, --space and --curve'),
    ({'curve': True, 'space': 'ffn=1'}, 'not --space'),
    ({'curve': True, 'priority': 'none'}, 'nothing to compare'),
  ],
)
def test_flags(values, message, tmp_path):
  with (
    flagsaver.flagsaver(workdir=str(tmp_path), **values),
    pytest.raises(ValueError, match=message),
  ):
    command.main(['deploy'])


@pytest.mark.parametrize('name', ['samples', 'seed'])
def test_flags_of_the_curve_go_with_it(name, tmp_path):
  given = {'workdir': str(tmp_path), 'budget': '0.5', name: '3'}
  with (
    flagsaver.as_parsed(**given),
    pytest.raises(ValueError, match=f'--{name} goes with --curve'),
  ):
    command.main(['deploy'])


def test_command_says_one_line(tmp_path):
  line = [sys.executable, '-m', 'launch.deploy', f'--workdir={tmp_path}']
  done = subprocess.run(
    [*line, '--budget=0.5'],
    cwd=pathlib.Path(__file__).parents[1],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2
  assert done.stderr == (
    f'error: workdir={tmp_path} has no run: no config.json.\n'
  )


@pytest.fixture
def finished_copy(text_run, tmp_path):
  """A copy of the run on texts, to be damaged."""
  return shutil.copytree(text_run[1], tmp_path / 'run')


def test_other_data_are_refused(finished_copy, monkeypatch):
  changed = _texts(48, 1)
  changed.labels[:2] = (changed.labels[:2] + 1) % 3
  monkeypatch.setattr(corpus, 'load', lambda *_: (changed, _texts(20, 2)))
  with pytest.raises(ValueError, match=r'on other data .*\n  training data: '):
    finished.load(finished_copy)


def test_other_test_data_are_refused(finished_copy, monkeypatch):
  """Also where fewer of them are asked for."""
  changed = _texts(20, 3)
  monkeypatch.setattr(corpus, 'load', lambda *_: (_texts(48, 1), changed))
  with pytest.raises(ValueError, match=r'on other data .*\n  test data: '):
    finished.load(finished_copy, test_examples=5)


def test_other_weights_are_refused(finished_copy, folder):
  path = folder / 'bert/model.safetensors'
  before = path.read_bytes()
  tensors = safetensors.numpy.load_file(path)
  name = next(name for name in tensors if name.endswith('query.weight'))
  tensors[name][0, 0] += 1e-3
  safetensors.numpy.save_file(tensors, path)
  try:
    with pytest.raises(ValueError, match=r'on other data or .*\n  weights: '):
      finished.load(finished_copy)
  finally:
    path.write_bytes(before)


def test_a_damaged_checkpoint_is_refused(finished_copy):
  (finished_copy / 'checkpoints/1/state/_METADATA').write_bytes(b'')
  with pytest.raises(
    ValueError, match=r'no whole checkpoint of round 1 \(1: state/_M'
  ):
    finished.load(finished_copy)


def test_a_config_of_another_run_is_refused(finished_copy):
  path = finished_copy / 'config.json'
  path.write_text(path.read_text().replace('"lr": 0.3', '"lr": 0.4'))
  with pytest.raises(ValueError, match=r'local\.lr: 0\.3 there, 0\.4 here'):
    finished.load(finished_copy)


def test_what_the_largest_class_gets(run):
  trained, _, _ = run
  test = trained.setup.test
  always = [
    np.mean(
      [
        (test.labels[test.domains == d] == c).mean()
        for d in np.unique(test.domains)
      ]
    )
    for c in range(test.task.num_outputs)
  ]
  name, share = deployment.largest_class(test) or ('', 0)
  assert share == pytest.approx(max(always))
  assert name in (test.class_names or [f'LABEL_{i}' for i in range(9)])
  scored = tasks.Task('regression', 1)
  other = dataclasses.replace(test, task=scored)
  assert deployment.largest_class(other) is None

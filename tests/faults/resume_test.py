"""A run goes on as the run that it was, or says what is not as it was."""

import dataclasses
import functools
import json
import pathlib
import shutil
from typing import Any

import jax
import lab
import pytest
import tiny
import tiny_events

from fedjax_tune.data import shares
from fedjax_tune.report import writer
from fedjax_tune.training import identity


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('resume')


@pytest.fixture(scope='module')
def whole(folder):
  """The uninterrupted run."""
  lab.go(folder / 'whole')
  return lab.result(folder / 'whole')


@pytest.fixture(scope='module')
def stopped(folder):
  """A run that was stopped in its last round, with checkpoints 2 and 4."""
  with pytest.raises(lab.Stopped):
    lab.go(folder / 'stopped', patch=lab.stopped_in(lab.ROUNDS - 1))
  return folder / 'stopped'


@pytest.fixture
def begun(stopped, tmp_path):
  """A copy of the stopped run."""
  return pathlib.Path(shutil.copytree(stopped, tmp_path / 'begun'))


def _files(workdir):
  return {
    path.relative_to(workdir): path.read_bytes()
    for path in workdir.rglob('*')
    if path.is_file() and path.name != '.lock'
  }


def _refused(begun, message, error=ValueError, **options):
  """Checks that a run is refused, and that nothing has changed."""
  before = _files(begun)
  with pytest.raises(error, match=message):
    lab.go(begun, resume=True, **options)
  assert _files(begun) == before


def test_it_goes_on_exactly(begun, whole):
  assert [p.name for p in sorted((begun / 'checkpoints').iterdir())] == [
    '2',
    '4',
  ]
  shown = lab.go(begun, resume=True)
  assert 'amaged' not in shown
  assert lab.result(begun) == whole


@pytest.mark.parametrize('keep_best', [False, True])
def test_what_clients_remember_comes_back(tmp_path, keep_best):
  # One a round, so that others join after the checkpoint.
  e = functools.partial(
    lab.experiment,
    'scaffold',
    keep_best=keep_best,
    clients={'cohort_size': 1},
    engine={'slab': 1},
  )
  lab.go(tmp_path / 'whole', e())
  with pytest.raises(lab.Stopped):
    lab.go(tmp_path / 'stopped', e(), patch=lab.stopped_in(3))
  shown = lab.go(tmp_path / 'stopped', e(), resume=True)
  assert f'Resuming after round 2, from {tmp_path / "stopped"}.' in shown
  state, rows = lab.result(tmp_path / 'whole')
  assert lab.result(tmp_path / 'stopped') == (state, rows)
  (remembered,) = (
    v for k, v in state.items() if k.endswith("clients['ids']") and 'state' in k
  )
  assert remembered[1][0] > 1


def test_scalars_are_on_the_board_once(begun, folder, whole):
  del whole
  lab.go(begun, resume=True)
  names = lambda events: [event[:2] for event in events]
  found = names(tiny_events.read(begun))
  assert len(set(found)) == len(found)
  assert found == names(tiny_events.read(folder / 'whole'))


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (
      {'examples': lab.flipped(lab.data())},
      r'Checkpoint 4 in .* was trained on other data or weights.*\n'
      r"  training data: '48 examples, \w+' there, '48 examples, \w+' here$",
    ),
    ({'weights': 'others'}, "weights: 'a stack' there, 'others' here"),
  ],
)
def test_other_data_or_weights(begun, options, message):
  _refused(begun, message, **options)


def test_half_of_the_data(begun):
  """Already the partition is another; without its file the data are found."""
  half = lab.data(24)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(lab, 'setup', _half_setup(lab.setup))
    _refused(
      begun, "'48 examples, .* there, '24 examples.*\n  part", examples=half
    )


def test_the_partition_of_many_clients_is_a_hash(monkeypatch):
  made = lab.setup(lab.experiment(), lab.data())
  owned = made.partition.indices
  positions = owned.positions.copy()
  positions[[0, -1]] = positions[[-1, 0]]
  other = dataclasses.replace(
    made.partition, indices=dataclasses.replace(owned, positions=positions)
  )
  swapped = dataclasses.replace(made, partition=other)
  budgets = dataclasses.replace(made, budgets=made.budgets[::-1])
  assert list(identity.partition(made)) == ['indices', 'budgets']
  monkeypatch.setattr(identity, '_LISTED', 3)
  listed = [identity.partition(each) for each in (made, swapped, budgets)]
  assert all(row['clients'] == 4 for row in listed)
  assert len({row['sha256'] for row in listed}) == 3
  assert identity.partition(made) == listed[0]


def _half_setup(make):
  """Gives each client its share of fewer examples."""

  def setup(e, examples, weights):
    made = make(e, lab.data(), weights)
    halves = [i[: len(i) // 2] // 2 for i in made.partition.indices]
    indices = shares.Shares.of(halves)
    owned = type(made.partition)(indices, made.partition.domains)
    return type(made)(**(vars(made) | {'train': examples, 'partition': owned}))

  return setup


@pytest.mark.parametrize(
  ('context', 'name'),
  [
    (lambda: jax.threefry_partitionable(False), 'jax_threefry_partitionable'),
    (lambda: jax.default_matmul_precision('float32'), 'jax_default_matmul'),
    (lambda: jax.default_prng_impl('rbg'), 'jax_default_prng_impl'),
    (lambda: jax.enable_x64(True), 'jax_enable_x64'),
    (lambda: jax.numpy_dtype_promotion('strict'), 'jax_numpy_dtype_promotion'),
  ],
)
def test_other_settings_of_jax(context, name):
  fields = dataclasses.asdict(lab.experiment())
  own = {'experiment': fields, 'content': {}, 'machine': {}}
  here = identity.settings()
  with context():
    there = identity.settings()
  with pytest.raises(ValueError, match=f'other settings of JAX.*\n  {name}'):
    identity.check(own | {'settings': there}, own | {'settings': here}, 'it')


def test_settings_are_looked_at(begun):
  with jax.default_matmul_precision('float32'):
    _refused(begun, "matmul_precision: None there, 'float32' here")


_machine = identity.machine


def _elsewhere(devices=0):
  return _machine(devices) | {'jax': '0.0.1', 'cores': 1024}


@pytest.fixture
def elsewhere(monkeypatch):
  monkeypatch.setattr(identity, 'machine', _elsewhere)


def test_another_machine(begun, whole, elsewhere):
  del elsewhere
  _refused(begun, r'--inexact goes on.*\n  cores: .*\n.*  jax: .*0\.0\.1')
  lab.go(begun, resume=True, inexact=True)
  # Here the numbers are the same; which machines there were is kept.
  assert lab.result(begun) == whole
  about = json.loads((begun / 'checkpoints/6/about.json').read_text())
  (earlier,) = about['run']['earlier']
  assert earlier['rounds'] == 4
  assert earlier['machine'] == _machine()
  assert about['run']['machine'] == _elsewhere()


def test_inexact_is_not_for_data(begun):
  flipped = lab.flipped(lab.data())
  _refused(begun, 'other data or weights', examples=flipped, inexact=True)


def test_without_its_config(begun, whole):
  """The checkpoint knows whose it is."""
  config = (begun / 'config.json').read_bytes()
  (begun / 'config.json').unlink()
  changed: list[dict[str, Any]] = [
    {'seed': 2},
    {'local': {'lr': 0.2}},
    {'rounds': 5},
  ]
  for changes in changed:
    field = 'local.lr' if 'local' in changes else next(iter(changes))
    _refused(
      begun, f'Checkpoint 4 in .* another experi(.|\n)*{field}: .* there',
      e=lab.experiment(**changes),
    )  # fmt: skip
  with pytest.raises(ValueError, match='already has a run: pass --resume'):
    lab.go(begun)
  lab.go(begun, resume=True)
  assert lab.result(begun) == whole
  assert (begun / 'config.json').read_bytes() == config


def test_a_refusal_by_the_compiler_leaves_the_folder_free(
  tmp_path, whole, monkeypatch
):
  def too_large(_):
    raise ValueError('does not fit')

  with monkeypatch.context() as refusing:
    refusing.setattr(lab, 'shared_run', too_large)
    with pytest.raises(ValueError, match='does not fit'):
      lab.go(tmp_path, lab.experiment(seed=9))
  assert not _files(tmp_path)
  lab.go(tmp_path)
  assert lab.result(tmp_path) == whole


def test_an_edited_config(begun):
  path = begun / 'config.json'
  path.write_text(path.read_text().replace('"lr": 0.1', '"lr": 0.3'))
  _refused(begun, r'config\.json is .*\n  local\.lr: 0\.3 there, 0\.1 here')
  # And if what is asked for is the same: the checkpoint is still of 0.1.
  e = lab.experiment(local={'lr': 0.3})
  _refused(begun, r'Checkpoint 4 .*\n  local\.lr: 0\.1 there, 0\.3 here', e=e)


def test_checkpoints_of_another_run(begun, tmp_path):
  other = lab.experiment(seed=2)
  with pytest.raises(lab.Stopped):
    lab.go(tmp_path / 'other', other, patch=lab.stopped_in(5))
  shutil.rmtree(begun / 'checkpoints')
  shutil.copytree(tmp_path / 'other/checkpoints', begun / 'checkpoints')
  _refused(begun, r'Checkpoint 4 in .* of another exp.*\n  seed: 2 there, 1 h')


@pytest.mark.parametrize('text', ['', '[]', '{"indices": [[0]]}'])
def test_an_edited_partition(begun, text):
  (begun / 'partition.json').write_text(text)
  _refused(begun, r'partition\.json is not how the examples .* Delete it')


@pytest.mark.parametrize('name', ['partition.json', 'costs.json', 'costs.md'])
def test_a_lost_file_is_written_again(begun, whole, name):
  before = (begun / name).read_bytes()
  (begun / name).unlink()
  lab.go(begun, resume=True)
  assert (begun / name).read_bytes() == before
  assert lab.result(begun) == whole


def _lost(path, lines):
  del lines
  path.unlink()


def _shortened(path, lines):
  path.write_text(''.join(lines[:2]))


def _edited(path, lines):
  path.write_text(''.join(lines).replace('"round": 1,', '"round": 1, "x": 1,'))


def _torn(path, lines):
  path.write_text(''.join(lines)[:-30] + '\x00\x00')


@pytest.mark.parametrize('damage', [_lost, _shortened, _edited])
def test_metrics_come_back_with_the_checkpoint(begun, folder, whole, damage):
  path = begun / 'metrics.jsonl'
  damage(path, path.read_text().splitlines(keepends=True))
  shown = lab.go(begun, resume=True)
  assert 'is not what the run wrote; its 4 rows are restored' in shown
  assert lab.result(begun) == whole
  summary = json.loads((begun / 'summary.json').read_text())
  expected = json.loads((folder / 'whole/summary.json').read_text())
  clocks = dict.fromkeys(('client_steps_per_s', 'wall_s', 'time_shares'))
  assert summary | clocks == expected | clocks


def test_a_torn_row_after_the_checkpoint_is_no_news(begun, whole):
  path = begun / 'metrics.jsonl'
  _torn(path, path.read_text().splitlines(keepends=True))
  assert 'restored' not in lab.go(begun, resume=True)
  assert lab.result(begun) == whole


def test_a_board_that_is_lost(begun, folder, whole):
  del whole
  shutil.rmtree(begun / 'tensorboard')
  lab.go(begun, resume=True)
  names = lambda events: [event[:2] for event in events]
  assert names(tiny_events.read(begun)) == names(
    tiny_events.read(folder / 'whole')
  )


def test_no_checkpoint_is_said(begun, whole):
  shutil.rmtree(begun / 'checkpoints')
  shown = lab.go(begun, resume=True)
  assert (
    f'No checkpoint in {begun}: the run starts from the beginning.' in shown
  )
  assert lab.result(begun) == whole


def test_no_run_is_said(tmp_path, whole):
  shown = lab.go(tmp_path / 'new', resume=True)
  assert f'No run in {tmp_path / "new"} yet: starting at round 1.' in shown
  assert 'No checkpoint' not in shown
  assert lab.result(tmp_path / 'new') == whole


def test_more_rounds_are_those_of_a_longer_run(begun, tmp_path):
  longer = lab.experiment(rounds=8)
  lab.go(begun, resume=True)
  stale = (begun / 'summary.json').read_bytes()
  with pytest.raises(lab.Stopped):
    lab.go(begun, longer, resume=True, patch=lab.stopped_in(1))
  # A summary says that a run is finished.
  assert not (begun / 'summary.json').exists()
  lab.go(begun, longer, resume=True)
  assert (begun / 'summary.json').read_bytes() != stale
  lab.go(tmp_path / 'longer', longer)
  assert lab.result(begun) == lab.result(tmp_path / 'longer')


def test_a_stale_summary_is_written_anew(begun):
  lab.go(begun, resume=True)
  before = (begun / 'summary.json').read_bytes()
  (begun / 'summary.json').write_text('{"rounds": 6, "accuracy": 1.0}')
  lab.go(begun, resume=True)
  assert (begun / 'summary.json').read_bytes() == before
  assert len(writer.read_metrics(begun)) == tiny.experiment().rounds * 2

"""A whole run: what it writes, and that resuming it changes nothing."""

import json
import multiprocessing
import os
import pathlib
import signal

import jax
from jax.experimental.compilation_cache import compilation_cache
import numpy as np
from PIL import Image
import pytest
import tiny

from fedjax_tune import config
from fedjax_tune.data import corpus
from fedjax_tune.report import writer
from fedjax_tune.training import checkpoint, loop, provisions
from fedjax_tune.training import summary as ended

_ROUNDS, _STEPS = 5, 2
# InclusiveFL remembers besides theta; so does the server's Adam.
_DEPTHS = (3, 2)


def _experiment(folder):
  return tiny.experiment(
    'inclusivefl',
    rounds=_ROUNDS,
    eval_every=2,
    checkpoint_every=2,
    model={'weights': 'random:vit_test'},
    # Read from memory, see _train.
    data={
      'name': 'domainnet',
      'domains': ('clipart', 'real'),
      'data_dir': str(folder),
      'image_size': tiny.VIT_SIZE,
    },
    clients=vars(config.Clients(budgets=_DEPTHS)),
    server={'optimizer': 'fedadam', 'lr': 0.01},
    local={'steps': _STEPS},
  )


class _Stopped(BaseException):
  pass


def _train(folder, name, *, resume=False, stop=None):
  """Trains, on data in memory; returns the last state that was saved.

  Args:
    folder: Of data and compiled programs.
    name: Of the working folder in it.
    resume: As of `train`.
    stop: Is called in the fourth round, after a checkpoint at two.
  """
  saved, calls = {}, []
  save, charge = checkpoint.Checkpoints.save, loop.Run.charge

  def keep(self, rounds, state, *rest, **options):
    saved['state'] = jax.tree.map(np.array, state)
    return save(self, rounds, state, *rest, **options)

  def count(self, *args):
    calls.append(args)
    if stop and len(calls) == 4:
      stop()
    return charge(self, *args)

  data = tuple(tiny.examples(n, tiny.VIT_SIZE, seed=n) for n in (48, 31))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(corpus, 'load', lambda *_: data)
    patch.setattr(provisions, 'check', lambda *_: None)
    patch.setattr(checkpoint.Checkpoints, 'save', keep)
    patch.setattr(loop.Run, 'charge', count)
    workdir = str(folder / name)
    summary = loop.train(_experiment(folder), workdir, resume=resume)
  return saved['state'], summary


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """All runs here are of one experiment: they share its programs."""
  path = tmp_path_factory.mktemp('train')
  _cache_programs(str(path / 'programs'), 0)
  yield path
  _cache_programs(None, 1)


def _cache_programs(folder, least_seconds):
  jax.config.update('jax_compilation_cache_dir', folder)
  name = 'jax_persistent_cache_min_compile_time_secs'
  jax.config.update(name, least_seconds)
  compilation_cache.reset_cache()


@pytest.fixture(scope='module')
def whole(folder):
  """The uninterrupted run: its last state and its summary."""
  return _train(folder, 'whole')


def _rows(folder, name):
  return [
    {k: v for k, v in row.items() if not k.startswith('time/')}
    for row in writer.read_metrics(folder / name)
  ]


def _table(folder, name):
  """Returns how far a run's table says that it is, and of which rounds."""
  head, _, _, _, *rows = (
    (folder / name / 'accuracy.md').read_text().splitlines()
  )
  return head.partition(', ')[2], [row.split('|')[1].strip() for row in rows]


def test_summary(folder, whole):
  _, summary = whole
  assert summary == json.loads((folder / 'whole/summary.json').read_text())
  assert {
    'method', 'seed', 'rounds', 'accuracy', 'accuracy_by_domain',
    'client_steps_per_s', 'compiles', 'uplink_bytes', 'downlink_bytes',
    'train_flops',
  } <= set(summary)  # fmt: skip
  assert summary['method'] == 'inclusivefl'
  assert (summary['seed'], summary['rounds']) == (1, _ROUNDS)
  assert summary['compiles'] == len(set(_DEPTHS))
  assert list(summary['accuracy_by_domain']) == ['a', 'b']
  mean = np.mean(list(summary['accuracy_by_domain'].values()))
  assert summary['accuracy'] == pytest.approx(mean)
  assert list(summary['other_accuracies']) == ['depth2']


@pytest.mark.parametrize(('accuracy', 'told'), [(0.31, 0), (0.3, 1), (0.2, 1)])
def test_a_run_at_chance_is_told(whole, accuracy, told):
  chance = {'1 of 4 classes': 0.25, 'largest class': 0.3}
  found = whole[1] | {'accuracy': accuracy, 'chance': chance}
  lines = [*ended.closing(found, 'runs/a')]
  assert lines[0].startswith(f'accuracy {accuracy:.1%} after 5 rounds; results')
  always = [line for line in lines if line.startswith('Always answering')]
  assert len(always) == told
  assert all('largest class gets 30.0%' in line for line in always)


def test_what_moved_and_was_computed(folder, whole):
  _, summary = whole
  classes = json.loads((folder / 'whole/costs.json').read_text())
  assert [row['layers'] for row in classes] == [3, 2]
  # By hand: LoRA of rank 2 on proj and fc2, patch adapter, head.
  D, F, P, R, K = 16, 32, 8 * 8 * 3, 2, tiny.CLASSES
  theta = [
    4 * (n * R * (2 * D + F + D) + R * (P + D) + (D + 1) * K) for n in _DEPTHS
  ]
  assert [row['uplink_bytes'] for row in classes] == theta
  assert summary['uplink_bytes'] == _ROUNDS * sum(theta)
  assert summary['downlink_bytes'] == _ROUNDS * sum(theta)
  step = sum(row['flops_per_step'] for row in classes)
  assert summary['train_flops'] == _ROUNDS * _STEPS * step


def test_metrics(folder, whole):
  del whole
  rows = _rows(folder, 'whole')
  assert [row['round'] for row in rows] == list(range(_ROUNDS))
  evaluated = [row['round'] for row in rows if 'eval/accuracy' in row]
  # Every second round, and the last.
  assert evaluated == [1, 3, 4]
  assert _table(folder, 'whole') == ('5 of 5 rounds', ['2', '4', '5'])
  assert all(row['coverage/layers'] == [2, 2, 1, 0] for row in rows)
  assert rows[-1]['train/loss'] < rows[0]['train/loss']


@pytest.mark.parametrize(
  'name', ['accuracy.png', 'coverage.png', 'partition.png']
)
def test_plots(folder, whole, name):
  del whole
  with Image.open(folder / 'whole' / name) as image:
    pixels = np.asarray(image)
  assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 10


@pytest.mark.parametrize(
  'name',
  ['config.json', 'costs.md', 'partition.json', 'task.json', 'tensorboard'],
)
def test_files(folder, whole, name):
  del whole
  assert (folder / 'whole' / name).exists()


def _raise():
  raise _Stopped


def _kill():
  os.kill(os.getpid(), signal.SIGKILL)


def _assert_resumes(folder, name, whole):
  state, summary = _train(folder, name, resume=True)
  jax.tree.map(np.testing.assert_array_equal, state, whole[0])
  assert _rows(folder, name) == _rows(folder, 'whole')
  clocks = {'client_steps_per_s', 'wall_s', 'time_shares'}
  drop = lambda s: {k: v for k, v in s.items() if k not in clocks}
  assert drop(summary) == drop(whole[1])


def test_resumed_is_uninterrupted(folder, whole):
  with pytest.raises(_Stopped):
    _train(folder, 'stopped', stop=_raise)
  assert [row['round'] for row in _rows(folder, 'stopped')] == [0, 1, 2]
  assert (folder / 'stopped/checkpoints/2').is_dir()
  assert not (folder / 'stopped/summary.json').exists()
  assert _table(folder, 'stopped') == ('2 of 5 rounds', ['2'])
  before = writer.read_metrics(folder / 'stopped')
  _assert_resumes(folder, 'stopped', whole)
  # What the first process spent counts, but for the round that was lost.
  rows = writer.read_metrics(folder / 'stopped')
  assert rows[:2] == before[:2]
  assert all(rows[i]['time/compile_s'] > 0 for i in (0, 2))


def test_where_the_time_went(folder, whole):
  _, summary = whole
  sections = ['training', 'evaluation', 'compile', 'data', 'checkpoint']
  assert list(summary['time_shares']) == [*sections, 'other']
  assert sum(summary['time_shares'].values()) == pytest.approx(1)
  rows = writer.read_metrics(folder / 'whole')
  trained = sum(row['time/training_s'] for row in rows)
  share = summary['time_shares']['training']
  assert trained == pytest.approx(share * summary['wall_s'])


def test_resuming_a_finished_run_changes_nothing(folder, whole):
  before = (folder / 'whole/metrics.jsonl').read_text()
  data = tuple(tiny.examples(n, tiny.VIT_SIZE, seed=n) for n in (48, 31))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(corpus, 'load', lambda *_: data)
    patch.setattr(provisions, 'check', lambda *_: None)
    workdir = str(folder / 'whole')
    summary = loop.train(_experiment(folder), workdir, resume=True)
  assert summary == whole[1]
  assert (folder / 'whole/metrics.jsonl').read_text() == before


def _killed(folder):
  _train(pathlib.Path(folder), 'killed', stop=_kill)


@pytest.mark.slow
def test_killed_and_resumed_is_uninterrupted(folder, whole):
  child = multiprocessing.get_context('spawn').Process(
    target=_killed, args=(str(folder),)
  )
  child.start()
  child.join()
  assert child.exitcode == -signal.SIGKILL
  assert len(_rows(folder, 'killed')) == 3
  _assert_resumes(folder, 'killed', whole)

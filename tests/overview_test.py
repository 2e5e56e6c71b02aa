"""What `launch.inspect` announces is what a run then takes."""

import itertools

import numpy as np
import pytest
from rich import console as rich_console
import tensorflow_datasets as tfds

from fedjax_tune import config
from fedjax_tune.costs import capacity
from fedjax_tune.models.foundation import num_params
from fedjax_tune.report import writer
from fedjax_tune.training import build, loop
from launch import overview, timing


@pytest.fixture(scope='module')
def experiment():
  return config.Experiment(
    rounds=2,
    eval_every=2,
    model=config.Model(weights='random:vit_test'),
    data=config.Data(name='domainnet', image_size=8, num_classes=200),
    clients=config.Clients(
      partition='domain_dirichlet', count=2, budgets=(2,) * 6, min_examples=1
    ),
    local=config.Local(steps=0, batch_size=4),
  )


@pytest.fixture(scope='module')
def run(experiment):
  with tfds.testing.mock_data(num_examples=30):
    yield loop.Run(build.build(experiment))


def _show(renderable):
  console = rich_console.Console(width=80)
  with console.capture() as captured:
    console.print(renderable)
  return captured.get()


def test_totals_are_those_of_the_run(experiment, run, tmp_path, monkeypatch):
  monkeypatch.setattr(build, 'build', lambda *_, **__: run.setup)
  monkeypatch.setattr(loop, 'Run', lambda _: run)
  summary = loop.train(experiment, str(tmp_path))
  assert overview.totals(run) == {
    'uplink': summary['uplink_bytes'],
    'downlink': summary['downlink_bytes'],
    'flops': summary['train_flops'],
    'simulated_us': 0,
  }
  assert writer.read_metrics(tmp_path)[-1]['cost/uplink_bytes'] > 0


def test_memory_covers_what_a_round_holds(run):
  needed = overview.memory(run)
  plans = [run.setup.planner.plan(rnd) for rnd in (0, 1)]
  works = [work for plan in plans for work in plan.works]
  assert needed['batches'] >= sum(
    work.own.batches.inputs.nbytes for work in works
  )
  frozen = num_params(run.setup.algorithm.model.base)
  assert needed['model'] == 4 * (
    frozen + num_params(run.setup.algorithm.model.theta)
  )
  assert needed['step'] > 0


def test_overview_fits_a_screen(run):
  text = _show(overview.table(run))
  assert len(text.splitlines()) < 16
  text = ' '.join(text.split())
  for part in (
    'fedra, 2 rounds, seed 0',
    'random:vit_test, 4 blocks',
    'domainnet at 8 px',
    '6 domains, 200 classes',
    '12, 12 may take part',
    '1, one client program per signature',
    'partition domain_dirichlet',
  ):
    assert part in text


def test_the_process_holds_more_than_its_arrays(run, monkeypatch):
  needed = overview.memory(run)
  now = 3 << 30
  monkeypatch.setattr(capacity, 'process_memory', lambda: (now, now))
  found = overview.process(run)
  assert found > now + needed['batches'] + needed['step']
  # What a compiler took may have been the peak.
  monkeypatch.setattr(capacity, 'process_memory', lambda: (now, 2 * now))
  assert overview.process(run) == 2 * now


def test_memory_of_this_process_is_read():
  before, most = capacity.process_memory()
  assert 0 < before <= most
  held = np.ones(50 << 20, np.uint8)
  after, _ = capacity.process_memory()
  assert after - before > held.nbytes / 2


def test_time_is_that_of_each_slab_and_evaluation(run, monkeypatch):
  """With a clock that ticks once a reading, each trial takes a second."""
  monkeypatch.setattr(timing.time, 'perf_counter', itertools.count().__next__)
  calls = []
  evaluate = run.evaluate
  monkeypatch.setattr(
    run, 'evaluate', lambda *args: calls.append(evaluate(*args))
  )
  monkeypatch.setattr(run.setup.experiment, 'eval_start', True)
  times = timing.measure(run)
  planner = run.setup.planner
  slabs = [len(planner.plan(rnd).works) for rnd in range(2)]
  assert times == timing.Times(1, sum(slabs), 2, 1, 2)
  assert calls[0]['eval/accuracy'] == calls[1]['eval/accuracy']


@pytest.mark.parametrize(
  ('times', 'line'),
  [
    (
      timing.Times(5, 600 * 1.4, 600, 3, 10),
      'about 15 min on this machine, as busy as it was just now: 35 s to start,'
      ' 1.4 s a round, evaluation 3 s x 10',
    ),
    (
      timing.Times(0, 7200, 10, 0.25, 1),
      'about 2.0 h on this machine, as busy as it was just now: 30 s to start,'
      ' 12 min a round, evaluation 0.25 s x 1',
    ),
  ],
)
def test_time_is_said_in_a_line(times, line):
  assert times.describe(30) == line

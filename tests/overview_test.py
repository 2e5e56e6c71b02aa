"""What `launch.inspect` announces is what a run then takes."""

import pytest
from rich import console as rich_console
import tensorflow_datasets as tfds

from fedjax_tune import config
from fedjax_tune.models.foundation import num_params
from fedjax_tune.report import writer
from fedjax_tune.training import build, loop
from launch import overview


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

"""A run tells how each client fares, the same after a kill, and only if asked."""

import json
import types
from typing import Any

import matplotlib.image as mpl_image
import numpy as np
import pytest

import fedjax_tune as ft
from fedjax_tune import config, endings
from fedjax_tune.report import client_plots, clients, writer
from fedjax_tune.training import client_report, ledger
from launch import sweep_results


def _data():
  rng = np.random.default_rng(0)
  labels = np.arange(160) % 4
  images = (
    rng.integers(0, 60, (160, 16, 16, 3)) + 60 * labels[:, None, None, None]
  )
  return ft.from_arrays(
    images.astype(np.uint8), labels, images[:40].astype(np.uint8), labels[:40]
  )


def _experiment(method='fedra', **options):
  e = ft.Experiment(method=method, rounds=3, eval_every=3, checkpoint_every=1)
  e.model.weights, e.data.image_size = 'random:vit_test', 16
  e.clients = config.Clients(
    partition='iid', count=4, budgets=(4, 2), cohort='uniform', cohort_size=4,
    **options,
  )  # fmt: skip
  e.local.steps, e.local.batch_size, e.local.lr = 2, 8, 0.05
  e.engine.compilation_cache = False
  return e


_ASKED = {'report': 9, 'held_out': 0.25, 'report_steps': 3}


def _train(path, *, resume=False, validation=0.2, writers=(), **options):
  e = _experiment(**options)
  e.data.validation, e.keep_best, e.eval_start = validation, True, True
  e.eval_every = 1
  return ft.train(e, str(path), data=_data(), resume=resume, writers=writers)


@pytest.fixture(scope='module')
def reported(tmp_path_factory):
  path = tmp_path_factory.mktemp('reported') / 'run'
  return path, _train(path, **_ASKED)


def test_what_is_written(reported):
  path, summary = reported
  found = summary['clients']
  assert json.loads((path / 'summary.json').read_text())['clients'] == found
  rows = clients.read(path)
  assert [row['client'] for row in rows] == [0, 1, 2, 3]
  assert [row['class'] for row in rows] == ['4 layers', '2 layers'] * 2
  # Of the 40 examples of each, 8 validate, and a quarter of the others judges.
  assert {(row['examples'], row['judged_by']) for row in rows} == {(24, 8)}
  assert (found['reported'], found['of'], found['steps']) == (4, 4, 3)
  for model in clients.MODELS:
    values = [row[model] for row in rows]
    assert found[model]['mean'] == pytest.approx(np.mean(values))
    assert found[model]['deviation'] == pytest.approx(np.std(values))
    assert found[model]['worst_tenth'] == min(values)
  assert list(found['by_class']) == ['4 layers', '2 layers']
  half = found['by_class']['2 layers']['own']['mean']
  assert half == pytest.approx(np.mean([rows[1]['own'], rows[3]['own']]))
  costs = json.loads((path / 'costs.json').read_text())
  assert rows[0]['flops_per_step'] == costs[0]['flops_per_step']
  assert rows[1]['uplink_bytes'] == costs[1]['uplink_bytes']
  assert mpl_image.imread(path / 'clients.png')[..., :3].std() > 0.01


def test_what_is_held_out_trains_nobody(reported):
  path, _ = reported
  indices = json.loads((path / 'partition.json').read_text())['indices']
  assert [len(own) for own in indices] == [24] * 4


def test_the_best_round_is_that_of_validation(reported):
  path, summary = reported
  rows = writer.read_metrics(path)
  judged = [row['validation/accuracy'] for row in rows]
  assert summary['best_validation'] == max(judged)
  best = judged.index(max(judged))
  assert summary['best_round'] == best + 1
  assert summary['best_accuracy'] == rows[best]['eval/accuracy']


def test_the_start_is_written_and_chance_is_told(reported):
  path, summary = reported
  (start,) = writer.read_start(path)
  assert start['round'] == -1
  assert 0 <= start['eval/accuracy'] <= 1
  first = (path / 'accuracy.md').read_text().splitlines()[4]
  cells = [cell.strip() for cell in first.split('|')]
  assert cells[1:3] == ['0', f'{100 * start["eval/accuracy"]:.1f}']
  # Each of the four classes has a quarter of the test examples.
  assert summary['chance'] == {'1 of 4 classes': 0.25, 'largest class': 0.25}


@pytest.mark.slow
def test_a_run_that_was_stopped_there_writes_the_same(
  reported, tmp_path, monkeypatch
):
  path, summary = reported
  settle = ledger.Ledger.settle

  def ask(self, begun):
    ends = settle(self, begun)
    self.signals.asked = 'SIGTERM' if ends else ''
    return ends

  with monkeypatch.context() as patch:
    patch.setattr(ledger.Ledger, 'settle', ask)
    with pytest.raises(endings.Interrupted, match='--resume judges the client'):
      _train(tmp_path, **_ASKED)
  assert not (tmp_path / 'summary.json').exists()
  again = _train(tmp_path, resume=True, **_ASKED)
  assert again['clients'] == summary['clients']
  name = 'clients.csv'
  assert (tmp_path / name).read_bytes() == (path / name).read_bytes()


class _Kept:
  """A user's writer."""

  def __init__(self):
    self.told = []

  def write(self, rnd, metrics):
    self.told.append((rnd, metrics))

  def close(self):
    self.told.append(('closed', {}))


@pytest.mark.slow
def test_alone_clients_have_no_model_of_the_server(tmp_path, monkeypatch):
  """And a run that is not asked tells nothing."""
  with monkeypatch.context() as patch:
    patch.setattr(client_report, 'write', None)
    assert 'clients' not in _train(tmp_path / 'b', method='local_only')
  assert not (tmp_path / 'b' / 'clients.csv').exists()
  kept = _Kept()
  summary = _train(tmp_path, method='local_only', report=2, writers=[kept])
  assert [rnd for rnd, _ in kept.told] == [0, 1, 2, 'closed']
  assert kept.told[-2][1]['eval/accuracy'] == summary['accuracy']
  found = summary['clients']
  assert (found['reported'], found['of']) == (2, 4)
  assert 'server' not in found
  assert found['steps'] == 'as in a round'
  assert summary['uplink_bytes'] == 0
  assert found['own']['clients'] == 2
  lines = (tmp_path / 'clients.csv').read_text().splitlines()
  names = lines[0].split(',')
  assert lines[1].split(',')[names.index('server')] == ''


def test_the_sample_is_the_same_for_all_methods_and_seeds():
  options = config.Clients(report=10, seed=3)
  found = client_report.sample(options, 1000)
  assert found == sorted(set(found))
  assert len(found) == 10
  assert found != client_report.sample(config.Clients(report=10), 1000)
  assert client_report.sample(options, 10) == list(range(10))


def _rows(seed, num=40):
  rng = np.random.default_rng(seed)
  return [
    {
      'client': k,
      'class': f'{4 - 2 * (k % 2)} layers',
      'flops_per_step': 1e9 * (2 - k % 2),
      'server': float(rng.uniform(0.5, 0.7)),
      'own': float(rng.uniform(0.4, 0.7)),
      'tuned': float('nan') if k == 3 else float(rng.uniform(0.6, 0.9)),
    }
    for k in range(num)
  ]


def test_methods_are_compared_client_by_client():
  runs = {
    'fedra': {0: _rows(0), 1: _rows(1)},
    'alone': {0: [row | {'own': 0.5} for row in _rows(2)]},
  }
  text = clients.comparison_markdown(runs, 'alone')
  (line,) = [x for x in text.splitlines() if 'fedra' in x and ' own' in x]
  cells = [cell.strip() for cell in line.strip('|').split('|')]
  gains = np.array([row['own'] for row in runs['fedra'][0]]) - 0.5
  assert cells[5:] == [
    f'{100 * gains.mean():+.1f}',
    f'{100 * np.mean(gains > 0):.0f}',
  ]
  assert 'gain' not in clients.comparison_markdown(runs, '')


def test_clients_without_a_metric_do_not_count():
  found = clients.summarize(_rows(0))
  assert found['tuned']['clients'] == 39
  assert found['by_class']['4 layers']['clients'] == 20
  worst = np.sort([row['own'] for row in _rows(0)])[:4]
  assert found['own']['worst_tenth'] == pytest.approx(worst.mean())


@pytest.mark.parametrize('num', [1, 2000])
def test_any_number_of_clients_is_drawn(tmp_path, num):
  client_plots.plot_run(_rows(0, num), tmp_path / 'clients.png')
  assert mpl_image.imread(tmp_path / 'clients.png')[..., :3].std() > 0.01


def test_a_sweep_compares_its_clients(tmp_path):
  runs: list[Any] = []
  for seed, method in enumerate(('fedra', 'local_only', 'fedra', 'raffm')):
    place, e = tmp_path / str(seed), config.Experiment(method=method)
    place.mkdir()
    if method != 'raffm':  # It was not asked.
      (place / clients.FILE).write_text(clients.to_csv(_rows(seed)))
    runs.append(
      types.SimpleNamespace(
        label=method, seed=seed // 2, workdir=place, experiment=e
      )
    )
  text = sweep_results._compare_clients(tmp_path, runs, 'accuracy')
  cells = [
    [cell.strip() for cell in line.strip('|').split('|')][:2]
    for line in text.splitlines()
    if ' own ' in line
  ]
  assert cells == [['fedra', 'own'], ['local_only', 'own']]
  assert 'gain over alone' in text
  together = clients.read(tmp_path)
  assert len(together) == 120
  assert (tmp_path / 'clients.png').exists()
  assert sweep_results._compare_clients(tmp_path, runs[3:], 'accuracy') == ''

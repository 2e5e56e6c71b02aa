import copy
import csv
import dataclasses
import errno
import io
import json
import os
import subprocess
import sys

import jax
from matplotlib import figure as mpl_figure
import pytest
from rich import console as rich_console
import tensorflow_datasets as tfds
import tiny_bucket
import tiny_sweep

from fedjax_tune import config
from fedjax_tune.files import mirror
from fedjax_tune.report import figure
from fedjax_tune.training import agreement
from fedjax_tune.typing import Record
from launch import (
  sweep_merge,
  sweep_outcome,
  sweep_plan,
  sweep_results,
  sweep_runner,
  sweep_share,
)

bucket = tiny_bucket.bucket


def fake_command(run):
  command = [sys.executable, '-c', tiny_sweep.FAKE, str(run.workdir), run.label]
  fields = json.dumps(dataclasses.asdict(run.experiment))
  command += [str(run.seed), fields]
  return [*command, *(['--resume'] if run.begun else [])]


def plan(methods, seeds, common, workdir):
  return sweep_plan.plan(
    'x.py', methods, seeds, common, workdir, tiny_sweep.resolve
  )


def sweep(workdir, methods, seeds=('0',), jobs=1, common=()):
  named = {
    'a': 'a=fedra',
    'b': 'b=all_small',
    'broken': 'broken=raffm',
    'c': 'c=fjord',
  }
  methods = ','.join(str(named.get(m, m)) for m in methods.split(','))
  runs = plan(methods, seeds, common, workdir)
  shown = io.StringIO()
  console = rich_console.Console(file=shown, width=200)
  place = mirror.Place(workdir)
  failed = sweep_runner.run_sweep(runs, fake_command, place, jobs, console)
  return [failure.run.name for failure in failed], shown.getvalue()


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
  ('entry', 'label', 'overrides'),
  [
    ('fedra', 'fedra', ()),
    ('mine=fedra:rounds=3', 'mine', ('rounds=3',)),
    ('depthfl:depthfl.variant=a', 'depthfl_a', ('depthfl.variant=a',)),
    ('fedra:local.lr=0.1', 'fedra_lr0.1', ('local.lr=0.1',)),
    ('fedra:a.repair=false', 'fedra_no_repair', ('a.repair=false',)),
    ('f:clients.budgets=(6,6)', 'f_budgets_6_6', ('clients.budgets=(6,6)',)),
    ('a=f:w=random:vit:n=csv:b.csv', 'a', ('w=random:vit', 'n=csv:b.csv')),
  ],
)
def test_method_entry(entry, label, overrides):
  method = entry.split(':')[0].split('=')[-1]
  expected = label, (f'method={method}', *overrides)
  assert sweep_plan.parse_method(entry) == expected


def test_plan_has_seeds_outermost(tmp_path):
  methods = 'fedra:clients.budgets=(6,6),all_small'
  runs = plan(methods, ['0', '01'], ['rounds=2'], tmp_path)
  labels = ['fedra_budgets_6_6', 'all_small']
  assert [(run.label, run.seed) for run in runs] == [
    (label, seed) for seed in (0, 1) for label in labels
  ]
  assert runs[0].workdir == tmp_path / 'fedra_budgets_6_6' / 'seed0'
  assert runs[0].flags == (
    '--config=x.py',
    '--config.rounds=2',
    '--config.method=fedra',
    '--config.clients.budgets=(6,6)',
    '--config.seed=0',
  )


@pytest.mark.parametrize(
  ('methods', 'seeds', 'common', 'message'),
  [
    ('fedra,,b', ['0'], [], "methods: '' must read"),
    ('fedra:b', ['0'], [], "methods: 'fedra:b' must read"),
    ('', ['0'], [], "methods: '' must read"),
    ('x/y=fedra', ['0'], [], "'x/y' cannot name a folder"),
    ('..=fedra', ['0'], [], "'..' cannot name a folder"),
    ('fedra,fedra', ['0'], [], 'methods: fedra must occur only once'),
    ('x=fedra,y=fedra', ['0'], [], 'x and y are the same experiment'),
    ('fedra:rounds=1:rounds=2', ['0'], [], 'rounds must be given only once'),
    ('fedra:method=fjord', ['0'], [], 'method must be given only once'),
    ('fedra:seed=3', ['0'], [], 'seed must be given by --seeds'),
    ('fedra', ['1', '1'], [], 'seeds: 1 must occur only once'),
    ('fedra', ['0', '00'], [], 'seeds: 0 must occur only once'),
    ('fedra', ['one'], [], "seeds: 'one' must be a whole number"),
    ('fedra', ['-1'], [], "seeds: '-1' must be a whole number"),
    ('fedra', [], [], 'seeds: at least one must be given'),
    ('fedra', [str(2**32)], [], 'fedra: seed=4294967296 must be at most'),
    ('fedra', ['0'], ['rounds'], "set: 'rounds' must read FIELD=VALUE"),
    ('fedra', ['0'], ['rounds=1', 'rounds=2'], 'rounds must be given only'),
    ('fedra', ['0'], ['method=fjord'], 'method must be given by --methods'),
    ('fedar', ['0'], [], "fedar: method='fedar' must be .*mean 'fedra'"),
    ('fedra:rounds=0', ['0'], [], 'fedra_rounds0: rounds=0 must be at least'),
  ],
)
def test_plan_rejects(tmp_path, methods, seeds, common, message):
  with pytest.raises(ValueError, match=message):
    plan(methods, seeds, common, tmp_path)
  assert not list(tmp_path.iterdir())


def test_plan_names_all_problems_at_once(tmp_path):
  methods = 'fedar,fedra:rounds=0,fjord:local.lr=-1.0'
  with pytest.raises(ValueError, match='must') as caught:
    plan(methods, ['0', '1'], [], tmp_path)
  lines = str(caught.value).splitlines()
  assert [line.partition(':')[0] for line in lines] == [
    'fedar',
    'fedra_rounds0',
    'fjord_lr-1.0',
  ]


def test_results(tmp_path):
  failed, shown = sweep(tmp_path, 'b,a', ['0', '1'])
  assert failed == []
  assert 'a seed 1 finished: accuracy 60.0%' in shown
  rows = lines(tmp_path / 'results.jsonl')
  order = [('b', 0), ('b', 1), ('a', 0), ('a', 1)]
  assert [(row['label'], row['seed']) for row in rows] == order
  with (tmp_path / 'results.csv').open() as file:
    table = list(csv.DictReader(file))
  assert [row['accuracy_by_domain/noto'] for row in table] == ['0.5'] * 4
  text = (tmp_path / 'results.md').read_text()
  assert '55.0 ± 7.1' in text
  assert [line for line in text.splitlines() if 'small' in line] == [
    '| a      | small | 35.0 ± 7.1 |     2 |'
  ]
  costs = [line for line in text.splitlines() if '128 MiB' in line]
  assert [line.split()[1] for line in costs] == ['b', 'a']
  assert (tmp_path / 'comparison.png').exists()
  assert (tmp_path / 'frontier.png').exists()
  assert f'Tables: {tmp_path}/results.md\n' in shown
  plots = [f'{tmp_path}/{name}.png' for name in ('comparison', 'frontier')]
  assert f'Plots: {", ".join(plots)}\n' in shown
  assert 'worst_client' not in text


@pytest.mark.parametrize(
  ('held_out', 'on'),
  [('0.2', 'held-out examples'), ('0.0', 'part of the test split')],
)
def test_methods_judged_on_clients_own_data_are_starred(
  tmp_path, held_out, on, monkeypatch
):
  told = []
  monkeypatch.setattr(figure, 'footnote', lambda _, text: told.append(text))
  legend = mpl_figure.Figure.legend
  monkeypatch.setattr(
    mpl_figure.Figure,
    'legend',
    lambda *args, **o: told.append(o.get('title')) or legend(*args, **o),
  )
  common = [f'clients.held_out={held_out}']
  _, shown = sweep(tmp_path, 'alone=local_only,a', common=common)
  note = f"(*) Mean over clients, each one's own model on its own {on}."
  text = (tmp_path / 'results.md').read_text()
  for said in (shown, text):
    assert 'alone *' in said
    assert 'a *' not in said
    assert note in said
  assert told[-2:] == [note] * 2
  assert f'{tmp_path}/frontier.png, {tmp_path}/clients.png\n' in shown
  assert 'worst_client is the client whose own model fares worst' in text
  # Where a program reads it, a label is as it was.
  rows = lines(tmp_path / 'results.jsonl')
  assert [row['label'] for row in rows] == ['alone', 'a']


@pytest.mark.parametrize(
  ('last', 'expected', 'noto'),
  [(1, 0.4, 0.4), (2, 0.3, 0.35), (9, 0.5, 0.5)],
)
def test_accuracy_is_the_mean_of_the_last_evaluations(last, expected, noto):
  rows: list[Record] = [
    {'round': 0, 'eval/accuracy': 0.9, 'eval/accuracy/noto': 0.8},
    {'round': 1},
    {'round': 2, 'eval/accuracy': 0.2, 'eval/accuracy/noto': 0.3},
    {'round': 3, 'eval/accuracy': 0.4, 'eval/accuracy/noto': 0.4},
  ]
  # Of a tier that joined.
  rows[2:] = [
    {**r, 'eval/small/accuracy': r['eval/accuracy']} for r in rows[2:]
  ]
  summary = {'accuracy': 0.4, 'accuracy_by_domain': {'noto': 0.4}, 'seed': 7}
  summary['other_accuracies'] = {'small': 0.4}
  mean = sweep_outcome.Outcome(summary, rows, []).over_last(last)
  assert mean['seed'] == 7
  assert mean['accuracy'] == pytest.approx(expected)
  assert mean['accuracy_by_domain']['noto'] == pytest.approx(noto)
  small = 0.4 if last == 1 else 0.3
  assert mean['other_accuracies']['small'] == pytest.approx(small)


def test_a_mean_with_a_value_that_is_not_finite_is_null():
  rows: list[Record] = [
    {'round': 0, 'eval/accuracy': 0.5},
    {'round': 1, 'eval/accuracy': None},
  ]
  summary = {'accuracy': None, 'accuracy_by_domain': {}}
  assert sweep_outcome.Outcome(summary, rows, []).over_last(2)['accuracy'] is (
    None
  )


def test_merged_sweeps_have_one_table(tmp_path):
  sweep(tmp_path / 'one', 'a,b')
  sweep(tmp_path / 'two', 'a,broken')
  found = sweep_merge.gather([str(tmp_path / 'two'), str(tmp_path / 'one')])
  assert [run.name for run in found.runs] == [
    'two_a seed 0',
    'one_a seed 0',
    'b seed 0',
  ]
  (left_out,) = found.left_out
  assert 'broken/seed0 is not a finished run' in left_out
  written = sweep_results.write_results(tmp_path, found.runs)
  assert written is not None
  assert [s['label'] for s in written.summaries] == ['two_a', 'one_a', 'b']
  assert (tmp_path / 'comparison.png').exists()


def test_single_runs_are_merged(tmp_path):
  sweep(tmp_path, 'a')
  (run,) = sweep_merge.gather([str(tmp_path / 'a' / 'seed0')]).runs
  assert run.name == 'a seed 0'


def test_only_folders_of_runs_are_merged(tmp_path):
  with pytest.raises(ValueError, match=f'merge={tmp_path} must be the folder'):
    sweep_merge.gather([str(tmp_path)])
  sweep(tmp_path, 'a')
  with pytest.raises(ValueError, match='a seed 0 must occur only once'):
    sweep_merge.gather([str(tmp_path), str(tmp_path)])


def test_a_failure_is_reported_and_the_others_go_on(tmp_path):
  failed, shown = sweep(tmp_path, 'broken,a')
  assert failed == ['broken seed 0']
  assert 'broken seed 0 failed with exit code 1' in shown
  assert 'ValueError: out of luck' in shown
  assert [row['label'] for row in lines(tmp_path / 'results.jsonl')] == ['a']


def test_started_again_it_skips_and_resumes(tmp_path):
  sweep(tmp_path, 'broken,a')
  sweep(tmp_path, 'broken,a')
  log = tmp_path / 'a' / 'seed0' / 'log.txt'
  assert log.read_text().count('cores') == 1
  log = tmp_path / 'broken' / 'seed0' / 'log.txt'
  first, second = [x for x in log.read_text().splitlines() if 'cores' in x]
  assert '--resume' not in first
  assert '--resume' in second


@pytest.mark.parametrize(
  ('file', 'text'),
  [
    pytest.param('summary.json', '{"rounds": 2}', marks=pytest.mark.slow),
    ('summary.json', '{"method": "fedra", '),
    pytest.param(
      'metrics.jsonl',
      '{"round": 0, "eval/accuracy": 0.5}\n',
      marks=pytest.mark.slow,
    ),
    (
      'metrics.jsonl',
      '{"round": 0, "cost/uplink_bytes": 5, "eval/accuracy": 0.5}\n'
      '{"round": 1, "cost/uplink_bytes": 5, "eval/accuracy": 0.5}\n',
    ),
    pytest.param(
      'metrics.jsonl', '{"eval/accuracy": 0.5}\n', marks=pytest.mark.slow
    ),
    pytest.param('costs.json', '[', marks=pytest.mark.slow),
    ('costs.json', '[{"a": 1}]'),
    pytest.param('costs.json', None, marks=pytest.mark.slow),
  ],
)
def test_a_run_of_damaged_results_goes_on_and_writes_them_anew(
  tmp_path, file, text
):
  sweep(tmp_path, 'a', common=['rounds=2'])
  path = tmp_path / 'a' / 'seed0' / file
  before = path.read_text()
  path.write_text(text) if text else path.unlink()
  failed, shown = sweep(tmp_path, 'a', common=['rounds=2'])
  assert not failed
  assert 'a seed 0 finished' in shown
  assert path.read_text() == before


def test_other_runs_in_the_folder_are_named_and_left_out(tmp_path):
  sweep(tmp_path, 'a')
  _, shown = sweep(tmp_path, 'b')
  labels = [row['label'] for row in lines(tmp_path / 'results.jsonl')]
  assert labels == ['b']
  for text in (shown, (tmp_path / 'results.md').read_text()):
    assert 'not asked for by this sweep' in text
    assert 'a/seed0' in text
  sweep(tmp_path, 'b,a')
  labels = [row['label'] for row in lines(tmp_path / 'results.jsonl')]
  assert labels == ['b', 'a']


@pytest.mark.parametrize(
  ('common', 'line'),
  [
    (['local.lr=5.0'], 'local.lr: 0.01 there, 5.0 here'),
    (['clients.seed=3'], 'clients.seed: 0 there, 3 here'),
    (['data.domains=("noto",)'], r'data.domains: .* here'),
  ],
)
def test_a_run_of_other_settings_is_not_taken(common, line, tmp_path):
  sweep(tmp_path, 'a')
  before = (tmp_path / 'results.jsonl').read_bytes()
  with pytest.raises(ValueError, match=line):
    sweep(tmp_path, 'a,b', common=common)
  assert not (tmp_path / 'b').exists()
  assert (tmp_path / 'results.jsonl').read_bytes() == before


def test_a_run_of_fewer_rounds_goes_on(tmp_path):
  sweep(tmp_path, 'a')
  sweep(tmp_path, 'a', common=['rounds=7'])
  (row,) = lines(tmp_path / 'results.jsonl')
  assert row['rounds'] == 7
  with pytest.raises(ValueError, match='rounds: 7 there, 3 here'):
    sweep(tmp_path, 'a', common=['rounds=3'])


def test_runs_of_other_rounds_are_named(tmp_path):
  _, shown = sweep(tmp_path, 'a,b=all_small:rounds=4')
  assert 'Rounds differ: a 1, b 4.' in shown


def test_an_experiment_edited_meanwhile_is_not_tabulated(tmp_path):
  (run,) = plan('a=fedra', ['0'], [], tmp_path)
  edited = copy.deepcopy(run.experiment)
  edited.local.lr = 5.0
  later = dataclasses.replace(run, experiment=edited)
  shown = io.StringIO()
  console = rich_console.Console(file=shown, width=200)
  failed = sweep_runner.run_sweep(
    [run],
    lambda _: fake_command(later),
    mirror.Place(tmp_path),
    1,
    console,
  )
  assert [failure.run for failure in failed] == [run]
  assert 'local.lr: 5.0 there, 0.01 here' in shown.getvalue()
  assert not (tmp_path / 'results.jsonl').exists()


def test_a_disk_that_stutters_ends_no_run(tmp_path, monkeypatch):
  """As a network's does: what was read a moment ago is a stale handle."""
  (run,) = plan('a=fedra', ['0'], [], tmp_path)

  def fail(*_, **__):
    raise OSError(errno.ESTALE, 'Stale file handle')

  monkeypatch.setattr(sweep_plan.workdirs, 'check_begun', fail)
  assert 'Stale file handle' in run.problem()
  assert not run.problem(running=True)


@pytest.mark.skipif(
  not hasattr(os, 'sched_setaffinity') or len(os.sched_getaffinity(0)) < 2,
  reason='needs two cores and a system that can pin',
)
def test_jobs_have_their_own_cores(tmp_path):
  first, second = sweep_share.core_shares(2)
  assert first
  assert second
  assert first.isdisjoint(second)
  assert first | second == os.sched_getaffinity(0)
  sweep(tmp_path, 'a,b,c', jobs=2)
  assert len(lines(tmp_path / 'results.jsonl')) == 3


@pytest.mark.parametrize(
  ('gpus', 'jobs', 'env'),
  [
    ('0,1,2', 2, [('0,2', None), ('1', None)]),
    ('3', 2, [('3', '0.450')] * 2),
    ('0,1', 3, [('0', '0.450'), ('1', '0.450'), ('0', '0.450')]),
    ('0,1', 1, [(None, None)]),
  ],
)
def test_jobs_share_gpus(gpus, jobs, env, monkeypatch):
  for name in ('JAX_PLATFORMS', *sweep_share._FRACTIONS):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', gpus)
  monkeypatch.setattr(sweep_share, 'core_shares', lambda n: [{0}] * n)
  found = [share.env for share in sweep_share.divide(jobs)]
  names = ('CUDA_VISIBLE_DEVICES', 'XLA_CLIENT_MEM_FRACTION')
  assert [tuple(map(one.get, names)) for one in found] == env


def test_a_tpu_serves_one_job(monkeypatch):
  monkeypatch.setattr(sweep_share, '_has_tpu', lambda: True)
  assert len(sweep_share.divide(1)) == 1
  with pytest.raises(ValueError, match='--jobs=2 must be 1 here: a TPU serves'):
    sweep_share.divide(2)


def test_a_sweep_starts_no_device(monkeypatch):
  """It would take a TPU, or a GPU's memory, from its runs."""

  def start(*_, **__):
    raise AssertionError('a device was started')

  names = ('devices', 'local_devices', 'local_device_count', 'default_backend')
  for name in names:
    monkeypatch.setattr(jax, name, start)
  e = config.Experiment(method='all_small')
  e.data.name = 'domainnet'
  e.model.weights, e.data.image_size = 'random:vit_test', 16
  # More than here: the runs may be elsewhere.
  e.engine.devices, e.engine.fsdp = 64, True
  with tfds.testing.mock_data(num_examples=4):
    assert agreement.agree(e).cohort == 6


@pytest.mark.skipif(
  not hasattr(os, 'sched_setaffinity'), reason='needs a system that can pin'
)
def test_more_jobs_than_cores(tmp_path):
  cores = os.sched_getaffinity(0)
  try:
    os.sched_setaffinity(0, {min(cores)})
    failed, shown = sweep(tmp_path, 'a', jobs=2)
  finally:
    os.sched_setaffinity(0, cores)
  assert not failed
  assert 'Runs are 1 at a time, not 2: each has a core' in shown


@pytest.mark.slow
def test_a_sweep_in_a_bucket_goes_on(bucket):
  asked = []

  def go(methods):
    def command(run):
      asked.append(run.label)
      return fake_command(run)

    shown = io.StringIO()
    console = rich_console.Console(file=shown, width=200)
    with mirror.opened('workdir', 'gs://b/sweep') as place:
      place.fetch()
      runs = plan(methods, ['0'], [], place.folder)
      assert not sweep_runner.run_sweep(runs, command, place, 1, console)
    return shown.getvalue()

  go('a=fedra')
  shown = go('a=fedra,b=all_small')
  assert asked == ['a', 'b']
  assert 'Plots: gs://b/sweep/comparison.png, gs://' in shown
  labels = [row['label'] for row in lines(bucket / 'b/sweep/results.jsonl')]
  assert labels == ['a', 'b']
  assert (bucket / 'b/sweep/a/seed0/log.txt').exists()


def launch(tmp_path, *flags):
  command = [sys.executable, '-m', 'launch.sweep', f'--workdir={tmp_path}']
  return subprocess.Popen(
    [*command, *flags], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
  )


def test_command_names_a_missing_config(tmp_path):
  process = launch(tmp_path, '--config=no.py', '--methods=a')
  output, _ = process.communicate()
  assert process.returncode == 2
  assert output == b'error: --config=no.py is not a file.\n'

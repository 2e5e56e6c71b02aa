import csv
import io
import json
import os
import subprocess
import sys

import pytest
from rich import console as rich_console

from launch import sweep_plan, sweep_runner

# Stands in for launch.train: writes what a run leaves, or fails as told.
FAKE = """
import json, os, pathlib, sys
out, label, seed = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
print('cores', len(os.sched_getaffinity(0)), sys.argv[4:], flush=True)
(out / 'config.json').write_text(json.dumps({'rounds': 1}))
if label == 'broken':
  raise ValueError('out of luck')
row = {'round': 0, 'eval/accuracy': 0.5}
(out / 'metrics.jsonl').write_text(json.dumps(row))
(out / 'costs.json').write_text(json.dumps([{
  'name': '12 layers', 'clients': 5, 'layers': 12, 'params_held': 10**7,
  'params_trainable': 10**5, 'trainable_percent': 1.0, 'uplink_bytes': 2**20,
  'downlink_bytes': 2**20, 'flops_per_step': 10**9,
  'peak_memory_bytes': 2**27}]))
(out / 'summary.json').write_text(json.dumps({
  'method': label, 'seed': seed, 'rounds': 1, 'accuracy': 0.5 + 0.1 * seed,
  'accuracy_by_domain': {'noto': 0.5},
  'other_accuracies': {'small': 0.3 + 0.1 * seed} if label == 'a' else {},
  'client_steps_per_s': 1.0,
  'compiles': 1, 'uplink_bytes': 1, 'downlink_bytes': 1, 'train_flops': 1}))
"""


def fake_command(run):
  command = [sys.executable, '-c', FAKE, str(run.workdir), run.label]
  return [*command, str(run.seed), *(['--resume'] if run.begun else [])]


def sweep(workdir, methods, seeds=('0',), jobs=1, common=()):
  runs = sweep_plan.plan('x.py', methods, seeds, common, workdir)
  shown = io.StringIO()
  console = rich_console.Console(file=shown, width=200)
  failed = sweep_runner.run_sweep(runs, fake_command, workdir, jobs, console)
  return [run.name for run in failed], shown.getvalue()


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
  ],
)
def test_method_entry(entry, label, overrides):
  method = entry.split(':')[0].split('=')[-1]
  expected = label, (f'method={method}', *overrides)
  assert sweep_plan.parse_method(entry) == expected


def test_plan_has_seeds_outermost(tmp_path):
  methods = 'a:clients.budgets=(6,6),b'
  runs = sweep_plan.plan('x.py', methods, ['0', '1'], ['rounds=2'], tmp_path)
  labels = ['a_budgets_6_6', 'b']
  assert [(run.label, run.seed) for run in runs] == [
    (label, seed) for seed in (0, 1) for label in labels
  ]
  assert runs[0].workdir == tmp_path / 'a_budgets_6_6' / 'seed0'
  assert runs[0].flags == (
    '--config=x.py',
    '--config.rounds=2',
    '--config.method=a',
    '--config.clients.budgets=(6,6)',
    '--config.seed=0',
  )


@pytest.mark.parametrize(
  ('methods', 'seeds', 'common', 'message'),
  [
    ('a,,b', ['0'], [], "methods: '' must read"),
    ('a:b', ['0'], [], "methods: 'a:b' must read"),
    ('x/y=a', ['0'], [], "'x/y' cannot name a folder"),
    ('a,a', ['0'], [], 'methods: a must occur only once'),
    ('a', ['1', '1'], [], 'seeds: 1 must occur only once'),
    ('a', ['one'], [], "seeds: 'one' must be a whole number"),
    ('a', ['0'], ['rounds'], "set: 'rounds' must read FIELD=VALUE"),
  ],
)
def test_plan_rejects(tmp_path, methods, seeds, common, message):
  with pytest.raises(ValueError, match=message):
    sweep_plan.plan('x.py', methods, seeds, common, tmp_path)


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


def test_results_gather_earlier_sweeps(tmp_path):
  sweep(tmp_path, 'a')
  sweep(tmp_path, 'b')
  labels = [row['label'] for row in lines(tmp_path / 'results.jsonl')]
  assert labels == ['b', 'a']


def test_a_run_of_other_settings_is_not_taken(tmp_path):
  sweep(tmp_path, 'a')
  with pytest.raises(ValueError, match=r'rounds=7.*choose another workdir'):
    sweep(tmp_path, 'a', common=['rounds=7'])


@pytest.mark.skipif(
  not hasattr(os, 'sched_setaffinity') or len(os.sched_getaffinity(0)) < 2,
  reason='needs two cores and a system that can pin',
)
def test_jobs_have_their_own_cores(tmp_path):
  first, second = sweep_runner.core_shares(2)
  assert first
  assert second
  assert first.isdisjoint(second)
  assert first | second == os.sched_getaffinity(0)
  sweep(tmp_path, 'a,b,c', jobs=2)
  assert len(lines(tmp_path / 'results.jsonl')) == 3


def test_more_jobs_than_cores(tmp_path):
  with pytest.raises(ValueError, match='jobs=4096 must be at most'):
    sweep(tmp_path, 'a', jobs=4096)


def launch(tmp_path, *flags):
  command = [sys.executable, '-m', 'launch.sweep', f'--workdir={tmp_path}']
  return subprocess.Popen(
    [*command, *flags], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
  )


def test_command_names_a_missing_config(tmp_path):
  process = launch(tmp_path, '--config=no.py', '--methods=a')
  output, _ = process.communicate()
  assert process.returncode == 2
  assert b"config='no.py' is not a file" in output

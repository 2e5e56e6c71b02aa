"""Sweeps on Slurm, with stand-ins for its commands.

That of sbatch runs a script once for each job of its array, and again where
that of scontrol was asked to. Each job has a file, which is there as long as it
runs, and one with the number of its process.
"""

import dataclasses
import io
import json
import os
import pathlib
import signal
import sys
import threading
import time

import pytest
from rich import console as rich_console
import tiny_sweep

from fedjax_tune import endings
from launch import sweep_plan, sweep_slurm

_ROOT = pathlib.Path(__file__).parents[1]

_SBATCH = f"""#!{sys.executable}
import os, pathlib, re, subprocess, sys
there = pathlib.Path(os.environ['THERE'])
script = pathlib.Path(sys.argv[-1]).read_text()
number = len(list(there.glob('*.sh'))) + 1
(there / f'{{number}}.sh').write_text(script)
found = re.search(r'--array=0-(\\d+)', script)
jobs = [f'{{number}}_{{i}}' for i in range(int(found[1]) + 1)] if found else [number]
for i, job in enumerate(map(str, jobs)):
  (there / f'{{job}}.live').touch()
  env = dict(os.environ, SLURM_JOB_ID=job, SLURM_NTASKS='1', SLURM_PROCID='0')
  if found:
    env |= {{'SLURM_ARRAY_JOB_ID': str(number), 'SLURM_ARRAY_TASK_ID': str(i)}}
  line = 'while bash $0; rm $1.again; do :; done 2>$1.err; rm $1.live'
  subprocess.Popen(['bash', '-c', line, there / f'{{number}}.sh', there / job],
                   env=env, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL, start_new_session=True)
print('Submitted batch job', number)
"""
_SRUN = """#!/usr/bin/env bash
while [[ "$1" == --* ]]; do
  case "$1" in --output | --error) shift ;; esac
  shift
done
echo $$ >"$THERE/$SLURM_JOB_ID.pid"
exec "$@"
"""
_SQUEUE = """#!/usr/bin/env bash
cd "$THERE" && for job in *.live; do echo "${job%.live}"; done
"""
_SCONTROL = """#!/usr/bin/env bash
[[ "$1" == requeue ]] && touch "$THERE/$2.again"
"""
_STAND_INS = {
  'sbatch': _SBATCH,
  'srun': _SRUN,
  'squeue': _SQUEUE,
  'scontrol': _SCONTROL,
}

# Until it is resumed, a run of `c` waits to be asked to stop.
_WAITS = """
import pathlib, signal, sys, time
if sys.argv[2] == 'c' and '--resume' not in sys.argv:
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(4))
  (pathlib.Path(sys.argv[1]) / 'config.json').write_text(sys.argv[4])
  time.sleep(60)
"""


@pytest.fixture
def there(tmp_path, monkeypatch):
  """Puts stand-ins first on the path; returns the folder that they share."""
  pytest.importorskip('submitit', reason='submitit is not installed')
  place = tmp_path / 'there'
  for folder in (place, tmp_path / 'bin'):
    folder.mkdir()
  for name, does in _STAND_INS.items():
    path = tmp_path / 'bin' / name
    path.write_text(does)
    path.chmod(0o755)
  monkeypatch.setenv('PATH', f'{tmp_path / "bin"}:{os.environ["PATH"]}')
  monkeypatch.setenv('PYTHONPATH', str(_ROOT))
  monkeypatch.setenv('THERE', str(place))
  monkeypatch.setattr(sweep_slurm, '_POLL_S', 0.1)
  return place


def _command(run):
  command = [sys.executable, '-c', _WAITS + tiny_sweep.FAKE, str(run.workdir)]
  fields = json.dumps(dataclasses.asdict(run.experiment))
  return [*command, run.label, str(run.seed), fields]


def _sweep(workdir, methods, *, detach=False, slurm=('time=60',)):
  runs = sweep_plan.plan(
    'x.py', methods, ['0'], [], workdir, tiny_sweep.resolve
  )
  shown = io.StringIO()
  failed = sweep_slurm.run_sweep(
    runs,
    _command,
    workdir,
    sweep_slurm.settings(slurm),
    None,
    rich_console.Console(file=shown, width=200),
    resuming=('--resume', '--inexact'),
    detach=detach,
  )
  return [failure.run.label for failure in failed], shown.getvalue()


def _scripts(there):
  return [path.read_text() for path in sorted(there.glob('*.sh'))]


def test_runs_are_one_array_and_finished_ones_are_not_submitted(
  there, tmp_path
):
  slurm = ('time=1:30:00', 'partition=gpu', 'cpus-per-task=4')
  failed, shown = _sweep(tmp_path / 'w', 'a=fedra,b=all_small', slurm=slurm)
  assert failed == []
  assert 'Submitted 2 runs as job 1.' in shown
  assert 'b seed 0 finished' in shown
  (script,) = _scripts(there)
  flags = [line[8:] for line in script.splitlines() if 'SBATCH' in line]
  assert {
    '--array=0-1%2', '--partition=gpu', '--time=90', '--cpus-per-task=4',
    '--signal=USR2@300',
  } <= set(flags)  # fmt: skip
  lines = (tmp_path / 'w' / 'results.jsonl').read_text().splitlines()
  assert [json.loads(line)['label'] for line in lines] == ['a', 'b']
  assert (tmp_path / 'w' / 'comparison.png').exists()
  # One more method: it alone is submitted.
  _, shown = _sweep(tmp_path / 'w', 'a=fedra,b=all_small,d=fjord')
  assert 'Submitted 1 run as job 2.' in shown
  assert '--array' not in _scripts(there)[1]
  _, shown = _sweep(tmp_path / 'w', 'a=fedra,b=all_small,d=fjord')
  assert 'Submitted' not in shown
  assert len(_scripts(there)) == 2


@pytest.mark.usefixtures('there')
def test_a_failure_is_reported_and_submitted_again(tmp_path):
  methods = 'broken=raffm,a=fedra'
  failed, shown = _sweep(tmp_path / 'w', methods)
  assert failed == ['broken']
  assert 'ValueError: out of luck' in shown
  assert 'a seed 0 finished' in shown
  failed, shown = _sweep(tmp_path / 'w', methods)
  assert failed == ['broken']
  assert 'Submitted 1 run as job 2.' in shown
  log = tmp_path / 'w' / 'broken' / 'seed0' / 'log.txt'
  assert "['--resume', '--inexact']" in log.read_text().split('cores')[-1]


def _wait_for(path):
  until = time.monotonic() + 60
  while not path.exists():
    assert time.monotonic() < until, path
    time.sleep(0.05)


def test_a_job_whose_time_is_over_goes_on(there, tmp_path):
  _, shown = _sweep(tmp_path / 'w', 'c=fjord', detach=True)
  assert 'The same command follows them' in shown
  _wait_for(tmp_path / 'w' / 'c' / 'seed0' / 'config.json')
  # It runs, so that it is not submitted a second time.
  _, shown = _sweep(tmp_path / 'w', 'c=fjord', detach=True)
  assert 'Submitted' not in shown
  assert 'In jobs from before: 1 run.' in shown
  os.kill(int((there / '1.pid').read_text()), signal.SIGUSR2)
  failed, shown = _sweep(tmp_path / 'w', 'c=fjord')
  assert failed == []
  assert 'c seed 0 finished' in shown
  assert len(_scripts(there)) == 1
  log = tmp_path / 'w' / 'c' / 'seed0' / 'log.txt'
  assert "['--resume', '--inexact']" in log.read_text()


def test_ctrl_c_leaves_the_jobs_alone(there, tmp_path):
  began = tmp_path / 'w' / 'c' / 'seed0' / 'config.json'

  def interrupt():
    _wait_for(began)
    os.kill(os.getpid(), signal.SIGINT)

  thread = threading.Thread(target=interrupt)
  thread.start()
  with pytest.raises(endings.Interrupted, match='1 run still in jobs'):
    _sweep(tmp_path / 'w', 'c=fjord')
  thread.join()
  assert (there / '1.live').exists()
  os.kill(int((there / '1.pid').read_text()), signal.SIGUSR2)
  assert _sweep(tmp_path / 'w', 'c=fjord')[0] == []


def test_slurm_does_not_answer(there, tmp_path):
  (there.parent / 'bin' / 'squeue').write_text(
    '#!/usr/bin/env bash\necho "no controller" >&2; exit 1'
  )
  with pytest.raises(RuntimeError, match='squeue: no controller'):
    _sweep(tmp_path / 'w', 'a=fedra')
  assert _scripts(there) == []


def _follow(tmp_path, monkeypatch, answers):
  """Follows a run in job 1, of which squeue says what is listed."""
  (run,) = sweep_plan.plan(
    'x.py', 'a=fedra', ['0'], [], tmp_path, tiny_sweep.resolve
  )
  answers = iter(answers)

  def queued():
    if (answer := next(answers)) is None:
      raise RuntimeError('squeue: no controller')
    return answer

  monkeypatch.setattr(sweep_slurm, 'queued', queued)
  monkeypatch.setattr(sweep_slurm, '_POLL_S', 0.0)
  shown = io.StringIO()
  console = rich_console.Console(file=shown, width=200)
  failed = sweep_slurm._follow([run], {'1': run}, tmp_path, console, 1)
  return len(failed), shown.getvalue()


def test_a_controller_that_is_silent_for_a_while(tmp_path, monkeypatch):
  # No answer does not mean that a job is gone.
  answers = [{'1'}, None, None, set(), None, set(), set()]
  failed, shown = _follow(tmp_path, monkeypatch, answers)
  assert failed == 1
  assert shown.count('squeue: no controller; asked again') == 2
  monkeypatch.setattr(sweep_slurm, '_MOST_SILENT', 3)
  with pytest.raises(RuntimeError, match='no controller'):
    _follow(tmp_path, monkeypatch, [None, None, {'1'}, None, None, None])


def test_a_setting_that_is_unknown(there, tmp_path):
  with pytest.raises(ValueError, match=r'slurm: .*partitoin'):
    _sweep(tmp_path / 'w', 'a=fedra', slurm=('time=9', 'partitoin=gpu'))
  assert _scripts(there) == []


@pytest.mark.parametrize(
  ('items', 'message'),
  [
    ([], 'time, the longest that a job runs, must be given'),
    (['time=1', 'time=2'], 'time must be given only once'),
    (['time=1', 'mem'], "'mem' must read FIELD=VALUE"),
    (['time=soon'], "time='soon' must read MINUTES"),
    (['time=0:59'], "time='0:59' must be at least a minute"),
    (['time=5'], 'time=5 must be more than signal_delay_s=300 seconds'),
    (['time=1:00:00', 'signal-delay-s=3600'], 'time=1:00:00 must be more'),
    (['time=9', 'signal_delay_s=2m'], "'2m' must be a whole number of seconds"),
  ],
)
def test_settings_are_refused(items, message):
  with pytest.raises(ValueError, match=message):
    sweep_slurm.settings(items)

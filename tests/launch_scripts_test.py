"""Scripts that start runs elsewhere, with stand-ins for what starts them.

Each stand-in records its arguments, a line of JSON for each call. That of gcloud
has a folder for the machine, and does there what it is told.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

_ROOT = pathlib.Path(__file__).parents[1]
_COMMAND = [
  'python',
  '-c',
  'import sys; print(sys.argv[1:])',
  "it's a b",
  '$HOME',
]
_SHOWN = """["it's a b", '$HOME']"""

_RECORD = f"""#!{sys.executable}
import json, os, pathlib, subprocess, sys
name, *args = sys.argv
with open(os.environ['CALLS'], 'a') as file:
  file.write(json.dumps([pathlib.Path(name).name, *args]) + '\\n')
"""
_GCLOUD = """
there = pathlib.Path(os.environ['THERE'])
verb, flags = args[3], dict(a.split('=', 1) for a in args if a.startswith('--')
                            and '=' in a)
if verb == 'scp' and '--recurse' not in args:
  (there / args[5].split(':')[1]).write_bytes(pathlib.Path(args[4]).read_bytes())
if verb == 'ssh' and 'apt-get' not in flags['--command']:
  sys.exit(subprocess.run(['bash', '-c', flags['--command']], cwd=there).returncode)
"""
_SBATCH = """
# The log that the job begins, and its number.
(output,) = [a for a in args if a.startswith('--output=')]
log = pathlib.Path(output.removeprefix('--output=').replace('%j', '7'))
log.write_text('what the job wrote\\n')
print('7;cluster')
"""
_SRUN = """
child = subprocess.Popen(args)
pathlib.Path(os.environ['CHILD']).write_text(str(child.pid))
sys.exit(child.wait())
"""
_SCANCEL = """
subprocess.run(['kill', pathlib.Path(os.environ['CHILD']).read_text()])
"""
_STAND_INS = {
  'gcloud': _GCLOUD,
  'sbatch': _SBATCH,
  'squeue': '',
  'sacct': "print('           COMPLETED ')",
  'srun': _SRUN,
  'scancel': _SCANCEL,
  'scontrol': '',
}
_SCRIPTS = ('flags.sh', 'tpu_vm.sh', 'slurm.sh', 'slurm_job.sh')


@pytest.fixture
def tree(tmp_path, monkeypatch):
  """A repository with the scripts, of which one is changed since."""
  monkeypatch.setenv('GIT_CONFIG_GLOBAL', os.devnull)
  for who in ('AUTHOR', 'COMMITTER'):
    monkeypatch.setenv(f'GIT_{who}_NAME', 'a')
    monkeypatch.setenv(f'GIT_{who}_EMAIL', 'a@b.c')
  (tmp_path / 'tree' / 'launch').mkdir(parents=True)
  for name in _SCRIPTS:
    path = tmp_path / 'tree' / 'launch' / name
    path.write_bytes((_ROOT / 'launch' / name).read_bytes())
    path.chmod(0o755)
  for args in (('init', '-q'), ('add', '.'), ('commit', '-qm', 'begin')):
    _git(tmp_path / 'tree', *args)
  path = tmp_path / 'tree' / 'launch' / 'flags.sh'
  path.write_text(path.read_text() + '# changed\n')
  return tmp_path / 'tree'


def _git(tree, *args):
  done = subprocess.run(
    ['git', *args], cwd=tree, check=True, capture_output=True, text=True
  )
  return done.stdout


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
  """Puts stand-ins first on the path; returns how to read their calls."""
  (tmp_path / 'bin').mkdir()
  (tmp_path / 'there').mkdir()
  for name, does in _STAND_INS.items():
    path = tmp_path / 'bin' / name
    path.write_text(_RECORD + does)
    path.chmod(0o755)
  monkeypatch.setenv('PATH', f'{tmp_path / "bin"}:{os.environ["PATH"]}')
  monkeypatch.setenv('CALLS', str(tmp_path / 'calls'))
  monkeypatch.setenv('CHILD', str(tmp_path / 'child'))
  monkeypatch.setenv('THERE', str(tmp_path / 'there'))
  for name in ('NAME', 'ZONE', 'TYPE', 'VERSION', 'PROJECT'):
    monkeypatch.delenv(f'TPU_{name}', raising=False)

  def calls():
    """Returns the calls since the last time."""
    path = tmp_path / 'calls'
    if not path.exists():
      return []
    lines = path.read_text().splitlines()
    path.unlink()
    return [json.loads(line) for line in lines]

  return calls


def _run(tree, script, *args):
  return subprocess.run(
    [tree / 'launch' / script, *args],
    cwd=tree.parent,
    capture_output=True,
    text=True,
    check=False,
    timeout=60,
  )


_VM = ('--name=vm', '--zone=z')
_TPU = ['gcloud', 'compute', 'tpus', 'tpu-vm']


def _on(workers, line):
  return [*_TPU, 'ssh', 'vm', '--zone=z', f'--worker={workers}', line]


# -- TPU VMs


def test_a_command_runs_on_a_tpu_vm(tree, elsewhere, tmp_path):
  before = _git(tree, 'status', '--porcelain')
  done = _run(tree, 'tpu_vm.sh', *_VM, 'copy', 'run', '--', *_COMMAND)
  assert (done.returncode, done.stderr) == (0, '')
  assert done.stdout == _SHOWN + '\n'
  copied, unpacked, begun, followed = elsewhere()
  assert copied == [
    *_TPU, 'scp', '.tpu_vm.tar.gz', 'vm:fedjax_tune.tar.gz', '--zone=z',
    '--worker=all',
  ]  # fmt: skip
  assert unpacked == _on('all', unpacked[-1])
  assert begun == _on('all', begun[-1])
  assert followed == _on('0', followed[-1])
  there = tmp_path / 'there' / 'fedjax_tune'
  assert (there / 'run.log').read_text() == done.stdout
  # What is not committed is there too, and all is as it was here.
  assert (there / 'launch' / 'flags.sh').read_text().endswith('# changed\n')
  assert _git(tree, 'status', '--porcelain') == before
  assert _git(tree, 'stash', 'list') == ''


def test_workers_of_a_tpu_vm_train_together(tree, elsewhere, tmp_path):
  del elsewhere
  (tmp_path / 'there' / 'fedjax_tune').mkdir()
  command = ('echo', 'launch.train', '--workdir=a b')
  done = _run(tree, 'tpu_vm.sh', *_VM, 'run', '--', *command)
  assert done.stdout == 'launch.train --workdir=a b --distributed\n'
  command = (*command, '--distributed')
  again = _run(tree, 'tpu_vm.sh', *_VM, 'run', '--', *command)
  assert again.stdout == done.stdout


def test_what_is_not_tracked_is_told(tree, elsewhere):
  (tree / 'my experiment.py').touch()
  done = _run(tree, 'tpu_vm.sh', *_VM, 'copy')
  assert done.returncode == 0
  assert done.stderr == (
    'copy: git add what is to come along: my experiment.py\n'
  )
  assert len(elsewhere()) == 2


def test_a_run_is_stopped_and_its_status_told(tree, elsewhere, tmp_path):
  del elsewhere
  (tmp_path / 'there' / 'fedjax_tune').mkdir()
  waits = 'trap "exit 4" TERM; echo on; while :; do sleep 0.1; done'
  script = tree / 'launch' / 'tpu_vm.sh'
  run = subprocess.Popen([script, *_VM, 'run', '--', 'bash', '-c', waits])
  log = tmp_path / 'there' / 'fedjax_tune' / 'run.log'
  while not (log.exists() and log.read_text()):
    assert run.poll() is None
    time.sleep(0.05)
  assert _run(tree, 'tpu_vm.sh', *_VM, 'stop').returncode == 0
  assert run.wait(timeout=60) == 4
  done = _run(tree, 'tpu_vm.sh', *_VM, 'log')
  assert (done.returncode, done.stdout) == (4, 'on\n')


def test_a_tpu_vm_is_made_and_deleted(tree, elsewhere, monkeypatch):
  monkeypatch.setenv('TPU_ZONE', 'europe')
  monkeypatch.setenv('TPU_TYPE', 'v5litepod-8')
  made = ('--name=vm', '--version=v', '--project=p', '--spot')
  done = _run(tree, 'tpu_vm.sh', *made, 'create', 'install', 'fetch', 'delete')
  assert (done.returncode, done.stderr) == (0, '')
  where = ['--zone=europe', '--project=p']
  created, installed, fetched, deleted = elsewhere()
  assert created == [
    *_TPU, 'create', 'vm', *where, '--accelerator-type=v5litepod-8',
    '--version=v', '--spot',
  ]  # fmt: skip
  assert installed[:-1] == [*_TPU, 'ssh', 'vm', *where, '--worker=all']
  line = installed[-1].removeprefix('--command=')
  assert '--editable .[tpu]' in line
  assert subprocess.run(['bash', '-n', '-c', line], check=False).returncode == 0
  assert fetched == [
    *_TPU, 'scp', '--recurse', 'vm:fedjax_tune/runs', '.', *where, '--worker=0',
  ]  # fmt: skip
  assert deleted == [*_TPU, 'delete', 'vm', *where, '--quiet']


@pytest.mark.parametrize(
  ('args', 'says'),
  [
    (('--zone=z', 'log'), '--name must be given'),
    (('--name=vm', 'log'), '--zone must be given'),
    ((*_VM, 'create'), '--type must be given'),
    ((*_VM, '--type=t', 'create'), '--version must be given'),
    ((*_VM, '--zone', 'z', 'log'), '--zone needs a value: --zone=VALUE'),
    ((*_VM, '--zone=', 'log'), '--zone must not be empty'),
    ((*_VM, '--zoen=z', 'log'), '--zoen is no flag'),
    ((*_VM, '--zoen', 'log'), '--zoen is no flag'),
    ((*_VM, '--spot=yes', 'log'), '--spot takes no value'),
    ((*_VM, 'start'), 'start is no step'),
    ((*_VM, 'run'), 'run: the command must follow --'),
    (_VM, 'a step must be given'),
  ],
)
def test_tpu_vm_refuses(tree, elsewhere, args, says):
  done = _run(tree, 'tpu_vm.sh', *args)
  assert (done.returncode, done.stdout) == (2, '')
  assert done.stderr.startswith(f'error: {says}')
  assert done.stderr.count('\n') == 1
  assert elsewhere() == []


# -- Slurm


def _submit(tree, command, *more, nodes=1, cpus=8, grace=300):
  return [
    'sbatch', '--parsable', '--job-name=fedjax_tune', f'--chdir={tree}',
    f'--nodes={nodes}', '--ntasks-per-node=1', f'--cpus-per-task={cpus}',
    '--requeue', f'--signal=B:USR1@{grace}', '--open-mode=append', *more,
    'launch/slurm_job.sh', *command,
  ]  # fmt: skip


def test_a_command_is_submitted_and_followed(tree, elsewhere, tmp_path):
  logs = tmp_path / 'my logs'
  flags = (
    '--partition=gpu', '--time=1:00:00', '--gpus=a100:2', '--nodes=3', '--cpus=4',
    '--mem=8G', '--grace=60', f'--logs={logs}',
  )  # fmt: skip
  done = _run(tree, 'slurm.sh', *flags, '--', *_COMMAND)
  log = logs / 'fedjax_tune-7.log'
  assert (done.returncode, done.stderr) == (0, '')
  assert done.stdout == (
    f'Job 7 writes to {log}; scancel 7 ends it.\n'
    'what the job wrote\nJob 7: COMPLETED\n'
  )
  submitted, *_ = elsewhere()
  assert submitted == _submit(
    tree,
    _COMMAND,
    f'--output={logs}/fedjax_tune-%j.log',
    '--partition=gpu',
    '--time=1:00:00',
    '--gpus-per-node=a100:2',
    '--mem=8G',
    nodes=3,
    cpus=4,
    grace=60,
  )


def test_the_books_of_slurm_are_behind_its_queue(tree, elsewhere, tmp_path):
  """Nor does a queue that is too busy to answer say that a job is gone."""
  for name, lines in (
    ('squeue', ['exit 1', 'echo RUNNING', 'echo Invalid job id >&2; exit 1']),
    ('sacct', ['echo RUNNING', 'echo " COMPLETED "']),
    ('sleep', ['']),
  ):
    cases = ' '.join(f'{n}) {does} ;;' for n, does in enumerate(lines, 1))
    (tmp_path / 'bin' / name).write_text(
      f'#!/bin/bash\necho >>"$0.looks"; case "$(wc -l <"$0.looks")" in {cases}'
      ' esac\n'
    )
    (tmp_path / 'bin' / name).chmod(0o755)
  done = _run(tree, 'slurm.sh', f'--logs={tmp_path}', '--', 'true')
  assert (done.returncode, done.stderr) == (0, '')
  assert done.stdout.endswith('Job 7: COMPLETED\n')
  assert len(elsewhere()) == 1
  looks = {
    name: tmp_path / 'bin' / f'{name}.looks' for name in ('squeue', 'sacct')
  }
  assert {n: p.read_text().count('\n') for n, p in looks.items()} == {
    'squeue': 3, 'sacct': 2,
  }  # fmt: skip


def test_a_command_is_submitted_alone(tree, elsewhere, tmp_path):
  logs = tmp_path / 'logs'
  done = _run(tree, 'slurm.sh', f'--logs={logs}', '--detach', '--', 'true')
  assert done.stdout == (
    f'Job 7 writes to {logs}/fedjax_tune-7.log; scancel 7 ends it.\n'
  )
  output = f'--output={logs}/fedjax_tune-%j.log'
  assert elsewhere() == [_submit(tree, ['true'], output)]


@pytest.mark.parametrize(
  ('args', 'says'),
  [
    ((), 'the command to run must follow --'),
    (('python', '--', 'x'), 'python: the command must follow --'),
    (('--gpus=two', '--', 'x'), '--gpus=two must be N or TYPE:N'),
    (('--nodes=0', '--', 'x'), '--nodes=0 must be at least 1'),
    (('--cpus=-1', '--', 'x'), '--cpus=-1 must be a whole number'),
    (('--partition', '--', 'x'), '--partition needs a value'),
    (('--time=5', '--', 'x'), '--time=5 must be more than --grace=300'),
    (('--time=4:59', '--', 'x'), '--time=4:59 must be more than'),
    (('--time=1:00:00', '--grace=3600', '--', 'x'), '--time=1:00:00 must be'),
    (('--time=1-0', '--grace=86400', '--', 'x'), '--time=1-0 must be more'),
  ],
)
def test_slurm_refuses(tree, elsewhere, args, says):
  done = _run(tree, 'slurm.sh', *args)
  assert (done.returncode, done.stdout) == (2, '')
  assert done.stderr.startswith(f'error: {says}')
  assert done.stderr.count('\n') == 1
  assert elsewhere() == []


@pytest.mark.parametrize(
  ('status', 'nodes', 'restarts', 'command', 'ran'),
  [
    (0, 1, 0, ['echo', 'a b'], ['echo', 'a b']),
    (0, 2, 1, ['echo', 'launch.trainer'], ['echo', 'launch.trainer']),
    (0, 1, 0, ['echo', 'launch.train'], ['echo', 'launch.train']),
    (0, 1, 1, ['echo', 'launch.train'], ['echo', 'launch.train', '--resume']),
    (
      0,
      2,
      1,
      ['echo', 'launch.train'],
      ['echo', 'launch.train', '--resume', '--distributed'],
    ),
    (
      0,
      1,
      1,
      ['echo', 'launch.train', '--resume', 'x'],
      ['echo', 'launch.train', '--resume', 'x'],
    ),
    (
      0,
      2,
      1,
      ['echo', 'fedjax-tune', 'train', '--resume=true'],
      ['echo', 'fedjax-tune', 'train', '--resume=true', '--distributed'],
    ),
    # Interrupted, but not because the time is over: somebody cancelled it.
    (4, 1, 0, ['bash', '-c', 'exit 4'], ['bash', '-c', 'exit 4']),
  ],
)
def test_a_job_runs_its_command(
  tree, elsewhere, monkeypatch, status, nodes, restarts, command, ran
):
  monkeypatch.setenv('SLURM_NNODES', str(nodes))
  monkeypatch.setenv('SLURM_JOB_ID', '7')
  monkeypatch.setenv('SLURM_RESTART_COUNT', str(restarts))
  done = _run(tree, 'slurm_job.sh', *command)
  assert (done.returncode, done.stderr) == (status, '')
  assert elsewhere() == [['srun', *ran]]


_TRAINS = """
import signal, sys, time
def stop(*_):
  print('saved', flush=True)
  sys.exit(4)
signal.signal(signal.SIGTERM, stop)
print('trains', flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(
  ('number', 'then'),
  [
    (signal.SIGUSR1, [['scontrol', 'requeue', '7']]),  # Its time is over.
    (signal.SIGTERM, []),  # Somebody cancels it.
  ],
)
def test_a_job_is_asked_to_stop(tree, elsewhere, monkeypatch, number, then):
  monkeypatch.setenv('SLURM_JOB_ID', '7')
  command = [sys.executable, '-c', _TRAINS]
  with subprocess.Popen(
    [tree / 'launch' / 'slurm_job.sh', *command],
    stdout=subprocess.PIPE,
    text=True,
  ) as job:
    assert job.stdout is not None
    while job.stdout.readline().strip() != 'trains':
      pass
    job.send_signal(number)
    rest = job.stdout.read()
  assert rest.startswith('saved\n')
  assert job.returncode == (0 if then else 4)
  stop = ['scancel', '--signal=TERM', '7.0']
  assert elsewhere() == [['srun', *command], stop, *then]


# -- what would be done


@pytest.mark.parametrize(
  ('script', 'args'),
  [
    (
      'tpu_vm.sh',
      (*_VM, '--type=t', '--version=v', 'create', 'copy', 'run', 'delete'),
    ),
    ('slurm.sh', ('--detach', '--logs=my logs')),
  ],
)
def test_a_dry_run_shows_what_a_run_does(tree, elsewhere, script, args):
  shown = _run(tree, script, '--dry_run', *args, '--', *_COMMAND)
  assert (shown.returncode, shown.stderr) == (0, '')
  assert elsewhere() == []
  assert not (tree / 'my logs').exists()
  done = _run(tree, script, *args, '--', *_COMMAND)
  assert done.returncode == 0
  calls = elsewhere()
  assert len(calls) >= 1
  subprocess.run(['bash', '-c', shown.stdout], cwd=tree, check=True)
  assert elsewhere() == calls


@pytest.mark.parametrize('script', ['tpu_vm.sh', 'slurm.sh'])
def test_help(tree, elsewhere, script):
  done = _run(tree, script, '--help')
  assert (done.returncode, done.stderr) == (0, '')
  assert done.stdout.startswith(f'launch/{script} [FLAGS]')
  assert elsewhere() == []


@pytest.mark.skipif(not shutil.which('shellcheck'), reason='is not installed')
def test_shellcheck_finds_nothing():
  scripts = [f'launch/{name}' for name in _SCRIPTS]
  subprocess.run(['shellcheck', '-x', *scripts], cwd=_ROOT, check=True)

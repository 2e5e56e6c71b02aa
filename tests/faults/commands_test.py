"""Commands refuse what is wrong in one line, with status 2."""

import os
import runpy
import signal
import subprocess
import sys
import types

from absl import flags
import jax
import pytest

from fedjax_tune import plugins
from fedjax_tune.files import paths
import launch
from launch import command_line, experiment_file, start, users_code

# ml_collections loads the file in a way that Python will drop.
pytestmark = pytest.mark.filterwarnings('ignore:the load_module')

_GOOD = 'from fedjax_tune import config\nget_config = config.Experiment\n'


@pytest.mark.parametrize(
  ('text', 'says'),
  [
    ('def get_config(:', 'SyntaxError: invalid syntax (line 1)'),
    ('x = 1', "AttributeError: module 'config_config' has no attribute 'get"),
    ('get_config = 5', "TypeError: 'int' object is not callable"),
    ('get_config = dict', 'get_config() must return a config.Experiment, not'),
    ('get_config = lambda: 7', 'must return a config.Experiment, not 7'),
    ('def get_config(): pass', 'must return a config.Experiment, not None'),
    (
      _GOOD + 'get_config = lambda: config.Experiment',
      'must return a config.E',
    ),
    ('import sys\nsys.exit(0)', 'it ends the program, with exit status 0'),
    ('import sys\ndef get_config():\n  sys.exit("x")', "exit status 'x'"),
    ('import nosuchmodule', "No module named 'nosuchmodule' (line 1)"),
    ('def get_config():\n  return {}["hm"]', "KeyError: 'hm' (line 2)"),
    ('def get_config():\n  raise ValueError("no")', 'ValueError: no'),
    ('def get_config():\n  open("/no/such")', 'FileNotFoundError'),
    (b'x = "\xff"', 'SyntaxError: (unicode error)'),
  ],
)
def test_experiment_file(text, says, tmp_path):
  path = tmp_path / 'mine.py'
  path.write_bytes(text if isinstance(text, bytes) else text.encode())
  with pytest.raises(ValueError, match=f'^flag --config={path}: ') as caught:
    experiment_file.resolve([f'--config={path}'])
  assert says in str(caught.value)
  assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
  ('flag', 'says'),
  [
    ('--config.rounds=abc', "rounds='abc' must be of type int."),
    ('--config.rounds=1.5', "rounds='1.5' must be of type int."),
    (
      '--config.clients.budgets=(12,',
      "clients.budgets='(12,' must be of type tuple[float, ...].",
    ),
    ('--config.model.remat=maybe', "model.remat='maybe' must be of type bool."),
    ('--config.local.lr=', "local.lr='' must be a finite float"),
    ('--config.metod=fedra', 'is not a field; did you mean method?'),
    ('--config.rounds', '--config.rounds must have a value.'),
    ('--bogus=1', '--bogus is not a flag.'),
  ],
)
def test_field(flag, says, tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text(_GOOD)
  with pytest.raises(
    (ValueError, experiment_file.flags.Error), match=r'.'
  ) as caught:
    experiment_file.resolve([f'--config={path}', flag])
  assert says in str(caught.value)
  assert len(str(caught.value).splitlines()) == 1


def test_all_that_is_wrong_comes_at_once(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text(
    'from fedjax_tune import config\n'
    'def get_config():\n'
    '  return config.Experiment(seed=-1, eval_every="x")\n'
  )
  arguments = (
    '--config.rounds=abc', '--config.local.learning_rate=3',
    '--config.local.lr=x', '--config.lora.patch_embed=maybe',
    '--config.data.bad_rows=skip', '--config.rank.ranks=(1,', '--noconfig.x=1',
    '--config.lora.targets', '("attn.pro",)', '--config.model.remat',
    # That rounds are no number, the ramp cannot be compared with them.
    '--config.local.warmup=500',
  )  # fmt: skip
  with pytest.raises(ValueError, match=r'.') as caught:
    experiment_file.resolve([f'--config={path}', *arguments])
  assert str(caught.value).splitlines() == [
    '--config.local.learning_rate is not a field; did you mean local.lr?',
    '--config.x is not a field.',
    "rounds='abc' must be of type int.",
    "eval_every='x' must be of type int.",
    "lora.patch_embed='maybe' must be of type bool.",
    "local.lr='x' must be a finite float, 0 or within the range of float32.",
    "rank.ranks='(1,' must be of type tuple[int, ...].",
    'seed=-1 must be at least 0.',
    "lora.targets[0]='attn.pro' must be one of 'auto', 'attn.q', 'attn.k',"
    " 'attn.v', 'attn.proj', 'mlp.fc1', 'mlp.fc2', 'mlp.gate', 'mlp.up',"
    " 'mlp.down'; did you mean 'attn.proj'?",
    "data.bad_rows='skip' must be one of 'refuse', 'leave_out'.",
  ]


def test_flags_of_the_command_are_among_what_is_wrong():
  values = flags.FlagValues()
  flags.DEFINE_integer('jobs', 1, 'x', lower_bound=1, flag_values=values)
  both = ['local', 'slurm']
  flags.DEFINE_enum('backend', 'local', both, 'x', flag_values=values)
  flags.DEFINE_bool('resume', False, 'x', flag_values=values)
  flags.DEFINE_string('config', '', 'x', flag_values=values)
  argv = [
    'train', '--jobs=many', '--jobs', '0', '--noresume', '--resume=perhaps',
    '--backend=slrm', '--rounds=3',
    '--reusme', '--jobs', '--config=x.py', '--config.seed', '3', 'more',
  ]  # fmt: skip
  found = command_line.sift(values, argv, 'config')
  assert found.problems == [
    '--jobs=many must be a whole number.',
    '--jobs=0 must be a positive integer.',
    '--resume=perhaps must be true or false.',
    "--backend=slrm must be one of 'local', 'slurm'.",
    '--rounds is not a flag; did you mean --config.rounds?',
    '--reusme is not a flag; did you mean --resume?',
    '--jobs must have a value.',
  ]
  assert found.argv == [
    'train', '--noresume', '--config=x.py', '--config.seed', '3', 'more'
  ]  # fmt: skip
  assert not found.ill


@pytest.mark.parametrize(
  ('call', 'meant'),
  [
    ('Experiment(num_rounds=3)', 'rounds'),
    ('Local(learning_rate=3)', 'local.lr'),
    ('Clients(num_clients=3)', 'clients.count'),
  ],
)
def test_a_field_of_a_file_is_suggested_by_meaning(call, meant, tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text(f'from fedjax_tune import config\nconfig.{call}\n')
  said = rf"argument '\w+'; did you mean {meant}\?$"
  with pytest.raises(ValueError, match=said):
    experiment_file.resolve([f'--config={path}'])


@pytest.mark.parametrize('given', ['quikstart', 'experiments/quickstrat.py'])
def test_a_file_is_suggested(given):
  said = f'{given} is not a file; did you mean experiments/quickstart.py'
  with pytest.raises(FileNotFoundError, match=said):
    experiment_file.resolve([f'--config={given}'])


def test_fields_are_applied(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text(_GOOD)
  given = ('--config.rounds=3', '--config.clients.budgets=(1,2)')
  resolved = experiment_file.resolve([f'--config={path}', *given])
  assert (resolved.rounds, resolved.clients.budgets) == (3, (1, 2))


@pytest.mark.parametrize(
  ('given', 'says'),
  [
    ('', 'must name a folder'),
    (' ', 'must name a folder'),
    ('gs://bucket/run', 'must be a folder of this machine'),
    ('a\0b', 'null character'),
    ('~nobody_of_this_name/x', 'home'),
  ],
)
def test_folders(given, says):
  with pytest.raises(ValueError, match=says):
    paths.local('workdir', given)


def test_home_is_expanded(monkeypatch):
  monkeypatch.setenv('HOME', '/home/me')
  assert str(paths.local('workdir', '~/runs')) == '/home/me/runs'
  assert str(paths.local('workdir', 'runs/x')) == 'runs/x'


def test_a_flag_given_twice_is_refused():
  with pytest.raises(ValueError, match='--a=1 and --a=2: must be given only'):
    start._check_once(['', '--a=1', '--b', '-1', '--c', '-1', '--a=2'])
  with pytest.raises(ValueError, match=r'--x.y and --nox.y'):
    start._check_once(['', '--x.y', '--nox.y'])
  start._check_once(['', '--a=1', '--', '--a=2'])


def _run(*arguments, **options):
  return subprocess.run(
    [sys.executable, '-m', *arguments],
    capture_output=True,
    text=True,
    check=False,
    **options,
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  'arguments',
  [
    ('train', '--config=experiments/quickstart.py', '--workdir='),
    ('train', '--config=experiments/quickstart.py', '--workdir=ftp://b/r'),
    ('train', '--config=no.py', '--workdir=x'),
    ('train', '--config=experiments/quickstart.py', '--workdir=x', 'y'),
    ('sweep', '--config=no.py', '--methods=fedra', '--workdir=x'),
    (
      'sweep',
      '--config=experiments/quickstart.py',
      '--methods=',
      '--workdir=x',
    ),
    ('sweep', '--config=experiments/quickstart.py', '--jobs=0'),
    ('inspect',),
    ('inspect', '--config=experiments/quickstart.py', '--config.seed=-1'),
    (
      'inspect',
      '--config=experiments/quickstart.py',
      '--time',
      '--budgets=1GiB',
    ),
    ('prepare',),
    ('prepare', '--dataset=nosuch'),
    ('prepare', '--dataset=/no/[red]such[/red]', '--data_dir=new'),
    ('prepare', '--weights=nosuch'),
    ('prepare', '--dataset=friends', '--image_size=42'),
    ('deploy', '--workdir=/no/such', '--budget=0.5'),
    ('deploy', '--budget=0.5', '--workdir='),
    ('bench', '--mode=xx'),
    ('bench', '--rounds=-1'),
    ('bench', '--init=README.md'),
    ('bench', '--workload=L', '--init=weights.npz'),
    ('bench', '--out=x'),
    ('bench', '--chunk=4'),
    ('bench', '--peers', '--workload=V'),
    ('bench', '--peers', '--unroll'),
    ('bench', '--peers', '--repeats=0'),
    ('bench', '--peers', '--out='),
    ('bench_slices', '--repeats=0'),
  ],
)
def test_every_command_refuses_in_one_line(arguments):
  name, *rest = arguments
  done = _run(f'launch.{name}', *rest)
  assert done.returncode == 2, done.stderr
  assert done.stderr.startswith('error: ')
  assert 'Traceback' not in done.stderr
  assert not os.path.exists('x')
  assert not os.path.exists('new')


def test_ctrl_c_among_the_imports_ends_a_command_in_one_line(tmp_path):
  text = 'import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n'
  (tmp_path / 'absl.py').write_text(text)
  done = subprocess.run(
    [sys.executable, '-m', 'launch.train'],
    env=os.environ | {'PYTHONPATH': str(tmp_path)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert (done.returncode, done.stdout) == (4, '')
  assert done.stderr == 'error: ended by Ctrl-C.\n'


def test_ctrl_c_in_a_command_raises_so_that_it_cleans_up(monkeypatch):
  ended, interrupted = [], signal.getsignal(signal.SIGINT)
  monkeypatch.setattr(start, 'leave', ended.append)

  def main(_):
    try:
      os.kill(os.getpid(), signal.SIGINT)
    finally:
      ended.append('cleaned up')

  signal.signal(signal.SIGINT, launch.end_at_once)
  try:
    start.clearly(main)([])
    assert signal.getsignal(signal.SIGINT) is launch.end_at_once
  finally:
    signal.signal(signal.SIGINT, interrupted)
  assert list(map(str, ended)) == ['cleaned up', 'ended by Ctrl-C.']


def test_an_error_of_the_system_names_its_file_and_no_number(tmp_path, capsys):
  with pytest.raises(SystemExit) as caught:
    start.clearly(lambda _: (tmp_path / 'x').read_text())([])
  assert caught.value.code == 2
  said = capsys.readouterr().err
  assert said == f'error: {tmp_path}/x: No such file or directory\n'


@pytest.mark.slow
@pytest.mark.parametrize(
  ('kind', 'devices', 'hosts', 'line'),
  [
    ('cpu', 1, 1, 'On 1 CPU device.\n'),
    ('NVIDIA H100', 2, 1, 'On 2 NVIDIA H100 devices.\n'),
    ('TPU v4', 8, 2, 'On 8 TPU v4 devices of 2 hosts.\n'),
  ],
)
def test_devices_are_told(monkeypatch, capsys, kind, devices, hosts, line):
  found = [types.SimpleNamespace(device_kind=kind)] * devices
  monkeypatch.setattr(jax, 'devices', lambda: found)
  monkeypatch.setattr(jax, 'process_count', lambda: hosts)
  start.tell_devices(start.console())
  assert capsys.readouterr().out == line


def test_help_is_no_failure():
  done = _run('launch.train', '--help')
  assert done.returncode == 0
  assert '--workdir' in done.stdout
  assert 'local.lr=0.01' in done.stdout


def test_print_config_without_a_file_is_refused():
  done = _run('launch.train', '--print_config')
  assert done.returncode == 2
  assert done.stderr == (
    'error: --config must name an experiment file, FILE.py.\n'
  )


def test_print_config_needs_no_other_flag(tmp_path):
  (tmp_path / 'beside.py').write_text('ROUNDS = 7')
  path = tmp_path / 'mine.py'
  path.write_text(
    'import beside\nfrom fedjax_tune import config\n'
    'def get_config():\n  return config.Experiment(rounds=beside.ROUNDS)\n'
  )
  done = _run(
    'launch.train', f'--config={path}', '--config.seed=3', '--print_config'
  )
  assert done.returncode == 0, done.stderr
  assert 'rounds=7  # not 100\nseed=3  # not 0\n' in done.stdout


@pytest.mark.parametrize(
  ('given', 'meant'),
  [
    ('local.learning_rate', 'local.lr'),
    ('server.learning_rate', 'server.lr'),
    ('model.name', 'model.weights'),
    ('num_clients', 'clients.count'),
    ('data.dataset', 'data.name'),
    ('lora.r', 'lora.rank'),
    ('lr', 'local.lr or server.lr'),
  ],
)
def test_fields_are_suggested_by_meaning(given, meant):
  with pytest.raises(ValueError, match=f'did you mean {meant}\\?$'):
    experiment_file.resolve([f'--config.{given}=1'])


def test_a_field_that_is_set_is_suggested_by_meaning(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text(
    'from fedjax_tune import config\n'
    'def get_config():\n'
    '  e = config.Experiment()\n'
    '  e.local.learning_rate = 1.0\n'
    '  return e\n'
  )
  found = experiment_file.resolve([f'--config={path}'])
  with pytest.raises(ValueError, match=r'_rate is .* mean local\.lr\?$'):
    plugins.check(found)


def test_all_unknown_fields_come_at_once():
  with pytest.raises(ValueError, match=r'.') as caught:
    experiment_file.resolve(['--config.metod=x', '--config.bogus=1'])
  assert len(str(caught.value).splitlines()) == 2


def _raised(call):
  with pytest.raises(Exception, match=r'.') as caught:
    call()
  return caught.value


def test_errors_in_a_users_code_say_where(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text(
    'import json\n'
    'def said():\n  raise ValueError("no")\n'
    'def deeper():\n  json.loads("{")\n'
    'def key():\n  {}["hm"]\n'
  )
  names = runpy.run_path(str(path))
  assert users_code.trace(_raised(names['said'])) == ''
  for name, line in (('deeper', 5), ('key', 7)):
    first, *places = users_code.trace(_raised(names[name])).splitlines()
    assert first == 'Traceback (most recent call last):'
    # This file counts as a user's, too.
    assert f'  File "{path}", line {line}, in {name}' in places


def test_errors_of_ours_say_where_if_asked():
  error = _raised(lambda: experiment_file.resolve(['--config.metod=x']))
  assert 'in resolve' in users_code.trace(error, whole=True)


@pytest.mark.slow
def test_a_closed_pipe_ends_a_command_quietly():
  command = f'{sys.executable} -m launch.train --helpfull | head -1'
  done = subprocess.run(
    ['bash', '-c', f'{command}; echo ${{PIPESTATUS[0]}}'],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.stderr == ''

"""How a process joins the others of its run."""

from absl.testing import flagsaver
import jax
import pytest
from rich import console as rich_console

from launch import distributed


@pytest.mark.parametrize(
  ('given', 'says'),
  [
    ({'process_id': 0}, '--process_id goes with --distributed'),
    (
      {'distributed': True, 'num_processes': 2},
      'must all be given, or none',
    ),
    (
      {
        'distributed': True,
        'coordinator_address': 'a:1',
        'num_processes': 2,
        'process_id': 2,
      },
      '--process_id=2 must be below --num_processes=2',
    ),
    (
      {
        'distributed': True,
        'coordinator_address': 'a',
        'num_processes': 2,
        'process_id': 1,
      },
      '--coordinator_address=a must be HOST:PORT',
    ),
  ],
)
def test_flags_are_refused(given, says):
  with (
    flagsaver.flagsaver(**given),
    pytest.raises(ValueError, match=says),
  ):
    distributed.join(rich_console.Console())


@pytest.fixture
def said(monkeypatch):
  """Records what JAX is told, and tells it nothing."""
  calls = []
  record = lambda *args, **_: calls.append(args)
  monkeypatch.setattr(jax.distributed, 'initialize', record)
  monkeypatch.setattr(jax.config, 'update', record)
  for name in ('SLURM_STEP_NUM_NODES', 'SLURM_NTASKS', 'JAX_LOCAL_DEVICE_IDS'):
    monkeypatch.delenv(name, raising=False)
  return calls


def test_a_process_joins_those_that_it_is_told_of(said):
  given = {
    'distributed': True,
    'coordinator_address': 'a:1',
    'num_processes': 2,
    'process_id': 1,
  }
  with flagsaver.flagsaver(**given):
    distributed.join(rich_console.Console())
  assert ('a:1', 2, 1) in said


@pytest.mark.parametrize('tasks', [2, 4])
def test_a_process_has_all_gpus_of_its_node(said, monkeypatch, tasks):
  """JAX gives each task of Slurm one; that is right for one task a GPU."""
  monkeypatch.setenv('SLURM_STEP_NUM_NODES', '2')
  monkeypatch.setenv('SLURM_NTASKS', str(tasks))
  with flagsaver.flagsaver(distributed=True):
    distributed.join(rich_console.Console())
  assert (None, None, None) in said
  assert (('jax_cuda_visible_devices', 'all') in said) == (tasks == 2)


def test_nothing_tells_of_others(monkeypatch):
  def undefined(*_, **__):
    raise ValueError('coordinator_address should be defined.')

  monkeypatch.setattr(jax.distributed, 'initialize', undefined)
  monkeypatch.setattr(jax.config, 'update', lambda *_: None)
  with (
    flagsaver.flagsaver(distributed=True),
    pytest.raises(ValueError, match='nothing here tells how many'),
  ):
    distributed.join(rich_console.Console())

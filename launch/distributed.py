"""Joins the processes of one run: one on each host, all with this command."""

import os

from absl import flags
import jax
from rich import console as rich_console

from fedjax_tune.engine import hosts

_DISTRIBUTED = flags.DEFINE_bool(
  'distributed',
  False,
  'This is one of several processes of a run, one a host. On TPU VMs, under Slurm'
  ' and MPI they find each other.',
)
_ADDRESS = flags.DEFINE_string(
  'coordinator_address',
  None,
  'With --distributed, elsewhere: HOST:PORT of process 0, for all of them.',
)
_COUNT = flags.DEFINE_integer(
  'num_processes',
  None,
  'With --distributed, elsewhere: how many there are.',
  lower_bound=1,
)
_NUMBER = flags.DEFINE_integer(
  'process_id',
  None,
  'With --distributed, elsewhere: the number of this one, from 0.',
  lower_bound=0,
)


def join(console: rich_console.Console) -> None:
  """Waits for the other hosts, if any; call it before anything uses JAX.

  Args:
    console: Becomes silent on all hosts but the first.

  Raises:
    ValueError: Flags are missing, have no effect or contradict each other.
    RuntimeError: The other hosts do not come.
  """
  given = [f for f in (_ADDRESS, _COUNT, _NUMBER) if f.value is not None]
  if not _DISTRIBUTED.value:
    if given:
      raise ValueError(f'--{given[0].name} goes with --distributed.')
    return
  address, count, number = _ADDRESS.value, _COUNT.value, _NUMBER.value
  if given and (address is None or count is None or number is None):
    raise ValueError(
      '--coordinator_address, --num_processes and --process_id must all be'
      ' given, or none.'
    )
  if count is not None and number is not None and number >= count:
    raise ValueError(
      f'--process_id={number} must be below --num_processes={count}.'
    )
  if address is not None and not address.rpartition(':')[2].isdigit():
    raise ValueError(f'--coordinator_address={address} must be HOST:PORT.')
  # Signals are for the run, which saves at them.
  jax.config.update('jax_enable_preemption_service', False)
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  try:
    jax.distributed.initialize(
      address, count, number, shutdown_timeout_seconds=60
    )
  except ValueError as error:
    raise ValueError(
      '--distributed: nothing here tells how many processes there are; give'
      ' --coordinator_address, --num_processes and --process_id.'
    ) from error
  if _one_a_host() and 'JAX_LOCAL_DEVICE_IDS' not in os.environ:
    # Where it finds the others itself, JAX gives each process one GPU.
    for kind in ('cuda', 'rocm'):
      jax.config.update(f'jax_{kind}_visible_devices', 'all')
  console.quiet = not hosts.is_first()


def _one_a_host() -> bool:
  """Says whether Slurm or MPI started one process on each host."""
  env = os.environ
  if 'SLURM_STEP_NUM_NODES' in env:
    return env['SLURM_STEP_NUM_NODES'] == env.get('SLURM_NTASKS')
  return env.get('OMPI_COMM_WORLD_LOCAL_SIZE') == '1'

"""Divides this machine's cores and GPUs among several runs."""

import glob
import importlib.util
import math
import os
import subprocess
from typing import NamedTuple

# Of a GPU's memory, for all runs on it together; JAX takes its part at once.
_MEMORY = 0.9
_FRACTIONS = ('XLA_CLIENT_MEM_FRACTION', 'XLA_PYTHON_CLIENT_MEM_FRACTION')
_VISIBLE = 'CUDA_VISIBLE_DEVICES'
_TIMEOUT_S = 60


class Share(NamedTuple):
  """The share of one of several runs.

  Attributes:
    cores: The run's cores; None leaves the choice to the system.
    env: Variables for the run's environment.
  """

  cores: set[int] | None
  env: dict[str, str]


def divide(jobs: int) -> list[Share]:
  """Divides the machine among at most as many runs as there are cores.

  A single run has the whole machine. Several runs have their own cores, and
  their own GPUs if there are enough; otherwise runs on the same GPU divide its
  memory. Without this, JAX would take most of every GPU for each run.

  Args:
    jobs: Runs at a time.

  Raises:
    ValueError: There are several runs and a TPU, which serves only one process.
  """
  if jobs > 1 and _has_tpu():
    raise ValueError(
      f'--jobs={jobs} must be 1 here: a TPU serves one process at a time.'
    )
  cores = core_shares(jobs)
  gpus = _gpus() if len(cores) > 1 else []
  found = []
  for job, own in enumerate(cores):
    env = _gpu_share(gpus, job, len(cores)) if gpus else {}
    if own is not None:
      env['OMP_NUM_THREADS'] = str(len(own))
    found.append(Share(own, env))
  return found


def core_shares(jobs: int) -> list[set[int] | None]:
  """The cores of each job; there are no more jobs than cores.

  None leaves the choice to the system.
  """
  if not hasattr(os, 'sched_setaffinity'):
    return [None] * jobs
  cores = sorted(os.sched_getaffinity(0))
  jobs = min(jobs, len(cores))
  if jobs == 1:
    return [None]
  return [set(cores[job::jobs]) for job in range(jobs)]


def _gpu_share(gpus: list[str], job: int, jobs: int) -> dict[str, str]:
  """Returns the variables that give a job its GPUs, or its part of a GPU."""
  if jobs <= len(gpus):
    return {_VISIBLE: ','.join(gpus[job::jobs])}
  env = {_VISIBLE: gpus[job % len(gpus)]}
  if not any(name in os.environ for name in _FRACTIONS):
    together = math.ceil(jobs / len(gpus))
    env[_FRACTIONS[0]] = f'{_MEMORY / together:.3f}'
  return env


def _gpus() -> list[str]:
  """Names NVIDIA's GPUs, without starting one: that would take its memory."""
  if not _may_use('cuda', 'gpu'):
    return []
  if (named := os.environ.get(_VISIBLE)) is not None:
    return [name for part in named.split(',') if (name := part.strip())]
  try:
    done = subprocess.run(
      ['nvidia-smi', '--query-gpu=index', '--format=csv,noheader'],
      capture_output=True, text=True, check=True, timeout=_TIMEOUT_S,
    )  # fmt: skip
  except (OSError, subprocess.SubprocessError):
    return []
  return done.stdout.split()


def _has_tpu() -> bool:
  """Whether JAX would find a TPU."""
  there = glob.glob('/dev/accel[0-9]*') + glob.glob('/dev/vfio/[0-9]*')
  installed = importlib.util.find_spec('libtpu') is not None
  return installed and bool(there) and _may_use('tpu')


def _may_use(*platforms: str) -> bool:
  """Whether the user allows JAX one of some platforms."""
  named = os.environ.get('JAX_PLATFORMS', '')
  return not named or not set(platforms).isdisjoint(named.split(','))

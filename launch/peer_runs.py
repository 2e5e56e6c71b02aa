"""Runs this engine and its peers in turn, each in a process on one core."""

from collections.abc import Iterator
import contextlib
import dataclasses
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np
from rich import console as rich_console

from . import fixed_engine, fixed_workload, peer_report

_TIMEOUT_S = 3600


@dataclasses.dataclass(frozen=True)
class Program:
  """A program that trains the workloads and prints a line.

  Attributes:
    name: Its name in the report.
    module: The module that is run.
    needs: Packages that it needs; without them it is left out.
    flags: Flags for this program only.
  """

  name: str
  module: str
  needs: tuple[str, ...] = ()
  flags: tuple[str, ...] = ()

  @property
  def missing(self) -> list[str]:
    """The packages that it lacks."""
    return [n for n in self.needs if importlib.util.find_spec(n) is None]


_TORCH = ('torch', 'transformers', 'peft')
_PEERS = f'{__package__}.peers'
_OWN = f'{__package__}.bench'
# Ours first: the others are held against it.
PROGRAMS = (
  Program(peer_report.OURS, _OWN),
  Program('the same, blocks unrolled', _OWN, (), ('--unroll',)),
  Program('this engine, bfloat16', _OWN, (), ('--dtype=bfloat16',)),
  Program(
    'the same, blocks unrolled, bfloat16',
    _OWN,
    (),
    ('--dtype=bfloat16', '--unroll'),
  ),
  Program('torch + peft loop', f'{_PEERS}.torch_loop', _TORCH),
  Program(
    'torch + peft loop, bfloat16 autocast',
    f'{_PEERS}.torch_loop',
    _TORCH,
    ('--autocast',),
  ),
  Program('plain JAX, lax.map in chunks', f'{_PEERS}.plain_jax'),
  Program('Flower', f'{_PEERS}.flower_simulation', ('flwr', 'ray', *_TORCH)),
  Program('pfl-research', f'{_PEERS}.pfl_simulation', ('pfl', *_TORCH)),
  Program('FedJAX', f'{_PEERS}.fedjax_averaging', ('fedjax',)),
)


def run(
  names: list[str], repeats: int, rounds: int, console: rich_console.Console
) -> str:
  """Runs all that is installed; returns the report.

  Args:
    names: Names of the workloads.
    repeats: How often each program is run in turn.
    rounds: Rounds of each; 0 takes the workload's number.
    console: Shows what is left out, and the progress.
  """
  programs = []
  for program in PROGRAMS:
    if program.missing:
      lacks = ', '.join(program.missing)
      console.print(f'{program.name} is left out: no package {lacks}')
    else:
      programs.append(program)
  lines = {}
  with tempfile.TemporaryDirectory() as folder:
    for name in names:
      work = fixed_workload.WORKLOADS[name]
      init = pathlib.Path(folder) / f'{name}.npz'
      np.savez(init, allow_pickle=False, **_weights(work))
      given = [f'--workload={name}', f'--init={init}']
      given.append(f'--rounds={rounds or work.rounds}')
      lines[name] = _interleave(programs, given, repeats, console)
  return peer_report.markdown(lines, repeats, rounds)


def _weights(work: fixed_workload.Workload) -> dict[str, np.ndarray]:
  """Draws the weights that all programs start from.

  Raises:
    ValueError: transformers and peft, which draw them, are not installed.
  """
  tensors, _ = fixed_engine.initial_weights(work, '')
  if tensors is None:
    raise ValueError('--peers needs torch, transformers and peft: `.[test]`.')
  return tensors


def _interleave(
  programs: list[Program],
  given: list[str],
  repeats: int,
  console: rich_console.Console,
) -> dict[str, list[dict[str, Any]]]:
  """Runs the programs in turn; returns their lines by name."""
  lines = {program.name: [] for program in programs}
  for _ in range(repeats):
    for program in programs:
      line = _run(program, given)
      lines[program.name].append(line)
      speed = line.get('client_steps_per_s')
      told = f'{speed:.4g} client-steps/s' if speed else line['error']
      console.print(f'{given[0]} {program.name}: {told}', soft_wrap=True)
  return lines


def _run(program: Program, given: list[str]) -> dict[str, Any]:
  """Runs a program once; returns its line, or why it has none."""
  command = [sys.executable, '-m', program.module, *given, *program.flags]
  try:
    with _pinned():
      done = subprocess.run(
        command,
        env=_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=_TIMEOUT_S,
      )
  except subprocess.TimeoutExpired:
    return {'error': f'took more than {_TIMEOUT_S} s'}
  # Simulators print lines of their own.
  for line in reversed(done.stdout.splitlines()):
    if line.startswith('{"'):
      return json.loads(line)
  why = done.stderr.strip().splitlines() or [f'status {done.returncode}']
  return {'error': why[-1]}


def _environment() -> dict[str, str]:
  """Returns the environment of a program with one thread."""
  # The folder from which this package is imported, whatever it is called.
  depth = len((__package__ or '').split('.'))
  root = str(pathlib.Path(__file__).parents[depth])
  path = os.environ.get('PYTHONPATH')
  return os.environ | {
    'OMP_NUM_THREADS': '1',
    'MKL_NUM_THREADS': '1',
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': '--xla_cpu_multi_thread_eigen=false',
    'PYTHONPATH': f'{root}{os.pathsep}{path}' if path else root,
  }


@contextlib.contextmanager
def _pinned() -> Iterator[None]:
  """Keeps this thread, and so its child processes, on one core if possible."""
  if not hasattr(os, 'sched_setaffinity'):
    yield
    return
  before = os.sched_getaffinity(0)
  os.sched_setaffinity(0, {min(before)})
  try:
    yield
  finally:
    os.sched_setaffinity(0, before)

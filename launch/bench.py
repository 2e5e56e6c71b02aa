"""Measures the engine on a workload and prints one JSON line.

  python -m launch.bench --workload=A [--init=weights.npz] [--mode=map]
  python -m launch.bench --peers [--repeats=3] [--out=FILE]

Workload A measures compute: ViT-Tiny/4, 12 layers, 65 tokens, LoRA r=8 on q and
v plus the head; 8 of 100 clients, 5 SGD-momentum steps of 16 examples. B
measures overhead: 2 layers of width 64, 32 of 200 clients, batch 8. Their
weights come from `--init` (an .npz of a peft-wrapped transformers ViT), or are
drawn as transformers and peft draw them where those are installed, or are
random; the line says which. Equal weights give equal losses in any framework,
and `--peers` compares the engine with other frameworks. The other workloads are
experiments: `launch/workloads.py`.
"""

import json
import sys
from typing import Any

from absl import flags
import jax
from rich import console as rich_console
from rich import table as rich_table

from fedjax_tune.costs import products
from fedjax_tune.files import paths

from . import (
  command_line,
  fixed_engine,
  machine,
  peer_runs,
  rounds,
  start,
  workloads,
)
from .fixed_workload import WORKLOADS as FIXED
from .peers import harness
from .rounds import Side

_WORKLOAD = flags.DEFINE_enum(
  'workload', 'A', ['A', 'B', *workloads.WORKLOADS], 'What to run.'
)
_INIT = flags.DEFINE_string('init', '', 'Initial weights of A or B, .npz.')
_MODE = flags.DEFINE_enum(
  'mode', 'auto', ['auto', 'map', 'chunk', 'vmap'], 'engine.mode.'
)
_DTYPE = flags.DEFINE_enum(
  'dtype',
  None,
  ['float32', 'bfloat16'],
  'model.dtype; by default float32, or bfloat16 for V on an accelerator.',
)
_CHUNK = flags.DEFINE_integer('chunk', 2, 'engine.chunk.', lower_bound=1)
_UNROLL = flags.DEFINE_bool('unroll', False, 'engine.unroll.')
_ROUNDS = flags.DEFINE_integer(
  'rounds', 0, "Rounds; 0 is the workload's.", lower_bound=0
)
_PEERS = flags.DEFINE_bool(
  'peers', False, 'Run A and B in other frameworks, too, on one core each.'
)
_REPEATS = flags.DEFINE_integer(
  'repeats', 2, 'How often --peers runs each in turn.', lower_bound=1
)
_OUT = flags.DEFINE_string(
  'out', 'experiments/benchmarks.md', 'What --peers writes.'
)


def main(argv: list[str]) -> None:
  """Runs the workload and prints its line, or runs the peers."""
  start.reject_arguments(argv)
  name = _WORKLOAD.value
  if _PEERS.value:
    _run_peers()
    return
  command_line.only_with('--peers', _REPEATS, _OUT)
  if _MODE.value != 'chunk':
    command_line.only_with('--mode=chunk', _CHUNK)
  line = _fixed(name) if name in FIXED else _experiment(name)
  rates = products.rates()
  line |= {
    'workload': name,
    'mode': _MODE.value,
    'dtype': _dtype(name),
    'unroll': _UNROLL.value,
    'products_gflops': {k: v / 1e9 for k, v in rates.items()},
    'peak_rss_mib': harness.peak_mib(),
    **machine.describe(),
  }
  sys.stdout.write(json.dumps(line) + '\n')
  console = rich_console.Console(stderr=True)
  console.print(_table(line))
  if advice := products.advice(rates, _dtype(name), '--dtype'):
    console.print(advice, soft_wrap=True)


def _dtype(name: str) -> str:
  best = name == 'V' and jax.default_backend() != 'cpu'
  return _DTYPE.value or ('bfloat16' if best else 'float32')


def _fixed(name: str) -> dict[str, Any]:
  """Runs A or B."""
  work = FIXED[name]
  tensors, source = fixed_engine.initial_weights(work, _INIT.value)
  options = {
    'mode': _MODE.value,
    'chunk': _CHUNK.value,
    'dtype': _dtype(name),
    'unroll': _UNROLL.value,
  }
  try:
    side = fixed_engine.prepare(work, tensors, **options)
  except KeyError as error:
    raise ValueError(f'--init={source} lacks the tensor {error}.') from error
  return _measure({'own': side}, _ROUNDS.value or work.rounds) | {
    'weights': source
  }


def _experiment(name: str) -> dict[str, Any]:
  """Runs a workload that is an experiment."""
  if _INIT.value:
    raise ValueError(f'--init={_INIT.value}: only workloads A and B take it.')
  work, sides = workloads.WORKLOADS[name](), {}
  for side, experiment in work.sides.items():
    experiment.rounds = _ROUNDS.value or experiment.rounds
    experiment.engine.mode = _MODE.value
    experiment.engine.chunk = _CHUNK.value
    experiment.engine.unroll = _UNROLL.value
    experiment.model.dtype = _dtype(name)
    sides[side] = rounds.prepare(experiment, work.data, work.parts)
  compare = work.compare
  line = _measure(sides, work.experiment.rounds, compare)
  return line | {'weights': work.experiment.model.weights}


def _measure(
  sides: dict[str, Side],
  count: int,
  compare: workloads.Compare | None = None,
) -> dict[str, Any]:
  """Times the rounds, and returns what the line says about them."""
  timings = rounds.time_rounds(sides, count)
  line = rounds.describe(sides['own'], timings['own'])
  return line | (compare(sides, timings) if compare else {})


def _table(line: dict[str, Any]) -> rich_table.Table:
  """Returns the line's numbers as a table."""
  made = rich_table.Table.grid(padding=(0, 2))
  for name, value in line.items():
    if isinstance(value, list | tuple):
      made.add_row(name, ' '.join(f'{x:.4g}' for x in value))
    elif isinstance(value, float):
      made.add_row(name, f'{value:.4g}')
    else:
      made.add_row(name, str(value))
  return made


def _run_peers() -> None:
  """Runs the peers on A and B, or on the workload that is named."""
  # Its import takes 180 MiB, which would count as the engine's.
  from fedjax_tune.report import writer

  for flag in (_INIT, _MODE, _DTYPE, _CHUNK, _UNROLL):
    if flag.present:
      raise ValueError(f'--{flag.name} cannot be given with --peers.')
  names = [_WORKLOAD.value] if _WORKLOAD.present else ['A', 'B']
  if wrong := [name for name in names if name not in FIXED]:
    raise ValueError(f'--workload={wrong[0]}: with --peers must be A or B.')
  path = paths.local('--out', _OUT.value)
  text = peer_runs.run(names, _REPEATS.value, _ROUNDS.value, start.console())
  writer.write_text(path, text)


if __name__ == '__main__':
  start.run(main)

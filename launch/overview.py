"""What a run will take: model, data, clients, memory and totals."""

from collections.abc import Sequence
import dataclasses
import math
from typing import Any

import jax
import numpy as np
from rich import table as rich_table

from fedjax_tune import config
from fedjax_tune.config import fields, unread
from fedjax_tune.costs import capacity, fit, hardware
from fedjax_tune.costs import table as cost_tables
from fedjax_tune.models import federation
from fedjax_tune.models.foundation import num_params
from fedjax_tune.report import tables
from fedjax_tune.training import build
from fedjax_tune.training.run import Run
from fedjax_tune.typing import Tree

# What a run's process takes besides: Matplotlib, Orbax and the programs of the
# server and of the evaluation, 80 to 120 MiB in two experiments.
_LATER_BYTES = 100 << 20


def table(run: Run) -> rich_table.Table:
  """Returns model, data, clients, and the totals of the run, a line each."""
  made = rich_table.Table.grid(padding=(0, 2))
  made.add_column(style='bold', no_wrap=True)
  for name, value in _lines(run).items():
    made.add_row(name, value)
  return made


def decided(paths: Sequence[str], experiment: config.Experiment) -> str:
  """Says which values open fields got from data set, model and method."""
  values = {f.path: f.default for f in fields.fields(experiment)}
  listed = ', '.join(
    f'{path}={values[path]!r}'
    for path in paths
    if unread.is_read(experiment, path)
  )
  return f'By data set, model and method: {listed}'


def fitted(setup: build.Setup, budgets: Sequence[str]) -> tables.Terminal:
  """Returns what devices can train, given only their memory.

  Args:
    setup: The run.
    budgets: Their memory, such as '2GiB'.

  Raises:
    ValueError: A budget is no amount of memory, or all are too small, or the
      method cuts nothing.
  """
  e = setup.experiment
  if setup.find is None:
    raise ValueError(
      f'--budgets: method={e.method!r} must be one that cuts the model; its'
      ' clients hold all of it.'
    )
  devices = []
  for text in budgets:
    memory = hardware.parse_bytes(text, '--budgets')
    devices.append(hardware.Device(text, math.inf, memory, math.inf, math.inf))
  limits = fit.Limits(None, memory=True, first=e.clients.cut_first)
  fits: dict[hardware.Device, fit.Fit] = {}
  lacking: dict[hardware.Device, fit.TooLittle] = {}
  for device in devices:
    try:
      fits[device] = setup.find(device, 1, limits)
    except fit.TooLittle as error:
      lacking[device] = error
  if not fits:
    raise next(iter(lacking.values()))
  able = [device for device in devices if device in fits]
  found = cost_tables.fit_table(able, [fits[d] for d in able], setup.sizes)
  rows = {row[0]: row for row in found.cells}
  for device, error in lacking.items():
    needed = tables.human_bytes(error.least.cost.memory)
    rows[device.name] = [
      device.name, '-', 'nothing fits', '-', '-', f'needs {needed}',
      tables.human_bytes(device.memory),
    ]  # fmt: skip
  cells = [rows[name] for name in dict.fromkeys(d.name for d in devices)]
  return dataclasses.replace(found, cells=cells)


def totals(run: Run) -> dict[str, int]:
  """Returns what all rounds will move and compute, as summary.json has it.

  If the planner knows only some of the rounds, it is an estimate.
  """
  meter: dict[str, Any] = dict.fromkeys(
    ('uplink', 'downlink', 'flops', 'simulated_us'), 0
  )
  rounds, num = run.setup.planner.rounds, run.setup.experiment.rounds
  for members in rounds:
    meter = run.charge(meter, members)
  return {
    name: int(value) * num // len(rounds) for name, value in meter.items()
  }


def memory(run: Run) -> dict[str, int]:
  """Returns the bytes that a simulated round takes on the device, by cause.

  `step` is the largest program's scratch, as the compiler says; the batches
  are those of the running round and of the next one, which is planned early.
  """

  def size(tree: Tree) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))

  setup = run.setup
  model = setup.algorithm.model
  scratch = run.engine.programs.temp_bytes().values()
  return {
    'model': size(model.base) + size(model.theta),
    'batches': 2
    * sum(
      width * size(run.batch_shapes[sig]) for sig, width in run.widths.items()
    ),
    'step': max(scratch),
  }


def process(run: Run) -> int:
  """Returns about how many bytes the run's process takes at its peak.

  This process has read and compiled what the run will, so its memory includes
  the interpreter, JAX, data, model and programs. Its peak also includes the
  compiler, unless programs came from the cache; in the run they then will too.
  A round's batches and scratch are added if the CPU computes.
  """
  now, most = capacity.process_memory()
  needed = memory(run)
  added = needed['batches']
  if jax.default_backend() == 'cpu':
    added += needed['step']
  return max(most, now + added + _LATER_BYTES)


def _lines(run: Run) -> dict[str, str]:
  e, setup, found = run.setup.experiment, run.setup, run.setup.algorithm.model
  trainable = num_params(found.theta)
  params = trainable + num_params(found.base)
  sizes, steps = setup.partition.sizes(), setup.planner.feed.steps
  able = setup.algorithm.able(e.rounds - 1, len(sizes))
  eligible = int(able.sum())
  several = isinstance(found, federation.Federation)
  models = ', '.join(found.tiers) if several else e.model.weights
  bytes_, needed, total = tables.human_bytes, memory(run), totals(run)
  counted = tables.counted
  causes = ', '.join(f'{k} {bytes_(v)}' for k, v in needed.items())
  return {
    'experiment': f'{e.method}, {counted(e.rounds, "round")}, seed {e.seed}',
    'model': f'{models}, {counted(found.depth, "block")}',
    'parameters': f'{tables.human_count(params)}, trainable'
    f' {tables.human_count(trainable)} ({100 * trainable / params:.2f}%)',
    'data': f'{e.data.name}{_form(run)}: {len(setup.train)} train and'
    f' {len(setup.test)} test examples,'
    f' {counted(len(setup.train.domain_names), "domain")},'
    f' {len(setup.train.class_names)} classes',
    'clients': f'{len(sizes)}, {eligible} may take part; partition'
    f' {e.clients.partition}, cohort {e.clients.cohort}',
    'examples each': f'{_span(sizes)}, median {np.median(sizes):g}',
    'local steps': f'{_span(steps)} of {e.local.batch_size} examples',
    'compiles': f'{len(run.widths)}, one client program per signature',
    'arrays here': f'{bytes_(sum(needed.values()))}: {causes}',
    'process here': f'about {bytes_(process(run))} at its peak, with Python, JAX'
    ' and programs',
    'whole run': f'up {bytes_(total["uplink"])},'
    f' down {bytes_(total["downlink"])},'
    f' training {tables.human_flops(total["flops"])}',
  }


def _form(run: Run) -> str:
  data, train = run.setup.experiment.data, run.setup.train
  if train.lengths is None:
    return f' at {data.image_size} px'
  cut = np.mean(train.lengths >= max(data.lengths))
  return f' cut to {max(data.lengths)} tokens ({cut:.0%} are as long)'


def _span(counts: np.ndarray) -> str:
  low, high = counts.min(), counts.max()
  return f'{low}' if low == high else f'{low} to {high}'

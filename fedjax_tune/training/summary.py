"""Writes `summary.json` and the plots of a finished run."""

from collections.abc import Iterator
import datetime
import pathlib
import re

import numpy as np

from fedjax_tune import endings
from fedjax_tune.report import tables
from fedjax_tune.report import writer as reporting
from fedjax_tune.training import build, clock, stopping
from fedjax_tune.training.run import Run
from fedjax_tune.typing import Json

SUMMARY = 'summary.json'
# What always answers the class that clients have most of.
_LARGEST = 'largest class'


def write_results(run: Run, workdir: str, clients: Json) -> Json:
  """Writes the plots and `summary.json` of a finished run, and returns it.

  Args:
    run: The run.
    workdir: Its folder.
    clients: How clients fare; {} if nobody asked.
  """
  with endings.storing(workdir):
    draw(run.setup, workdir)
  summary = summarize(run, workdir)
  if clients:
    summary['clients'] = clients
  reporting.write_json(pathlib.Path(workdir) / SUMMARY, summary)
  return summary


def draw(setup: build.Setup, workdir: str) -> None:
  """Plots the rounds that a run has written."""
  # Here and not above: Matplotlib and SciPy take half a second.
  from fedjax_tune.report import plots

  metric = tables.spoken(setup.train.task.primary)
  plots.plot_run(workdir, setup.test.domain_names, chance(setup), metric)


def summarize(run: Run, workdir: str) -> Json:
  """Sums a finished run up from what it wrote."""
  rows = reporting.read_metrics(workdir)
  last, e, best = rows[-1], run.setup.experiment, stopping.standing(rows)
  prefix = 'eval/accuracy/'
  others = {
    name.removeprefix('eval/').removesuffix('/accuracy'): value
    for name, value in last.items()
    if re.fullmatch('eval/[^/]+/accuracy', name)
  }
  rates = [row['time/client_steps_per_s'] for row in rows]
  wall, shares = clock.shares(rows)
  rejected = [k for row in rows for k in row.get('train/rejected_clients', ())]
  return {
    'method': e.method,
    'seed': e.seed,
    'rounds': len(rows),
    'ended_early': len(rows) < e.rounds,
    'accuracy': last['eval/accuracy'],
    'best_accuracy': rows[best.rnd]['eval/accuracy'],
    'best_round': best.rnd + 1,
    'chance': chance(run.setup),
    'accuracy_by_domain': {
      name.removeprefix(prefix): value
      for name, value in last.items()
      if name.startswith(prefix)
    },
    'other_accuracies': others,
    'metric': run.setup.train.task.primary,
    'other_metrics': {
      name.removeprefix('metric/'): value
      for name, value in last.items()
      if name.startswith('metric/')
    },
    **({'best_validation': best.score} if stopping.VALIDATION in last else {}),
    'train_loss': last['train/loss'],
    'rejected': len(rejected),
    'rejected_clients': sorted(set(rejected)),
    'client_steps_per_s': float(np.median(rates)),
    'compiles': len(run.engine.programs.compiled),
    'uplink_bytes': last['cost/uplink_bytes'],
    'downlink_bytes': last['cost/downlink_bytes'],
    'train_flops': last['cost/train_flops'],
    'simulated_s': last['time/simulated_s'],
    'wall_s': wall,
    'time_shares': shares,
  }


def closing(found: Json, workdir: str) -> Iterator[str]:
  """Yields the last lines of a run, given its summary and its folder."""
  yield (
    f'{tables.measured([found])} {found["accuracy"]:.1%} after'
    f' {tables.counted(found["rounds"], "round")};'
    f' results, accuracy.png and coverage.png in {workdir}'
  )
  largest = found['chance'].get(_LARGEST, 0)
  if found['accuracy'] <= largest:
    yield (
      f'Always answering the largest class gets {largest:.1%}: the run has'
      ' learned nothing that shows. More rounds or another local.lr may help.'
    )
  if found['time_shares']:
    whole = datetime.timedelta(seconds=round(found['wall_s']))
    yield f'{whole} in all: {clock.describe(found["time_shares"])}'
  if found['rejected']:
    clients = ', '.join(map(str, found['rejected_clients']))
    yield (
      f'{found["rejected"]} updates were not finite and did not count, of'
      f' clients {clients}; metrics.jsonl has the rounds'
    )


def chance(setup: build.Setup) -> dict[str, float]:
  """Returns the accuracies of models that have learned nothing, by name.

  One answers a random class, one always the class that clients have most of. {}
  if the run does not report the accuracy of classes.
  """
  train, test = setup.train, setup.test
  if train.task.kind != 'classification' or train.task.primary != 'accuracy':
    return {}
  classes = train.task.num_outputs
  held = train.labels[setup.partition.indices.positions]
  most = np.bincount(held, minlength=classes).argmax()
  always = np.full(len(test), most)
  found = test.score({'class': always, 'finite': np.ones(len(test), bool)})
  return {
    f'1 of {classes} classes': 1 / classes,
    _LARGEST: float(np.mean(found['accuracy'])),
  }

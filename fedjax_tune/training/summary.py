"""What `summary.json` says of a finished run, and its plots."""

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


def write_results(run: Run, workdir: str, clients: Json) -> Json:
  """Writes the plots and `summary.json` of a finished run, and returns it.

  Args:
    run: The run.
    workdir: Its folder.
    clients: How they fare; {} where nobody asked.
  """
  # Here and not above: Matplotlib and SciPy take half a second.
  from fedjax_tune.report import plots

  with endings.storing(workdir):
    floor = chance(run.setup)
    metric = tables.spoken(run.setup.train.task.primary)
    plots.plot_run(workdir, run.setup.test.domain_names, floor, metric)
  summary = summarize(run, workdir)
  if clients:
    summary['clients'] = clients
  reporting.write_json(pathlib.Path(workdir) / SUMMARY, summary)
  return summary


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


def chance(setup: build.Setup) -> dict[str, float]:
  """Returns accuracies of what has learned nothing, by what they are called.

  Of a class drawn at random, and of always the class that clients have most of;
  {} where what counts is not the accuracy of classes.
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
    'largest class': float(np.mean(found['accuracy'])),
  }

"""A run, from an experiment to its results on disk."""

import dataclasses
import pathlib
import re
import time
from typing import Any

import jax
import numpy as np
from rich import console as rich_console

from fedjax_tune import build as building
from fedjax_tune import checkpoint, config, unread
from fedjax_tune.engine.plan import RoundPlan, prefetch
from fedjax_tune.report import costs, plots
from fedjax_tune.report import metrics as reporting
from fedjax_tune.report.progress import RoundProgress
from fedjax_tune.run import Run


def train(
  experiment: config.Experiment,
  workdir: str,
  *,
  resume: bool = False,
  fetch: bool = False,
  console: rich_console.Console | None = None,
) -> dict[str, Any]:
  """Runs an experiment and writes everything about it to `workdir`.

  Args:
    experiment: What to run.
    workdir: A new folder, or with `resume` that of the same experiment.
    resume: Continue from the newest checkpoint, bit for bit.
    fetch: Fetch data and weights that are not there; else nothing uses a
      network.
    console: Where the cost table and the progress bar are shown; standard
      output by default.

  Returns:
    What `summary.json` holds.

  Raises:
    ValueError: Something in the experiment is wrong, or `workdir` holds
      another one.
    FileNotFoundError: Data or weights are not where they should be; the message
      has the command that fetches them.
  """
  fields = dataclasses.asdict(experiment)
  checkpoint.check_workdir(workdir, fields, resume)
  setup = building.build(experiment, fetch=fetch)
  checkpoint.experiment_guard(workdir, fields, resume)
  console = console or rich_console.Console()
  tell_unread(setup, console)
  with console.status('Compiling a program for each class of clients'):
    run = Run(setup)
  classes = run.class_costs()
  console.print(costs.cost_table(classes))
  write_setup(run, classes, workdir)
  key = jax.random.key(experiment.seed)
  with checkpoint.Checkpoints(workdir, experiment.checkpoint_every) as saved:
    state, meter, start = run.start(saved)
    rounds = range(start, experiment.rounds)
    label = f'{experiment.method} seed {experiment.seed}'
    with (
      reporting.MetricsWriter(workdir, start) as writer,
      RoundProgress(experiment.rounds, start, label, console) as progress,
    ):
      for plan in prefetch(setup.planner.plan, rounds):
        begin = time.perf_counter()
        lr = building.learning_rate(experiment.local, plan.rnd)
        state, sums = run.engine.round(state, plan, key, lr)
        sums = jax.device_get(sums)
        seconds = time.perf_counter() - begin
        meter = run.charge(meter, plan.members)
        record = round_record(plan, sums, meter, seconds)
        record |= run.evaluate(state, plan.rnd)
        writer.write(plan.rnd, record)
        saved.save(
          plan.rnd + 1,
          {'state': state, 'meter': meter},
          force=plan.rnd + 1 == experiment.rounds,
        )
        progress.advance(
          loss=record['train/loss'],
          client_steps_per_s=record['time/client_steps_per_s'],
          accuracy=record.get('eval/accuracy'),
        )
  plots.plot_run(workdir, setup.test.domain_names)
  summary = summarize(run, workdir)
  reporting.write_json(pathlib.Path(workdir) / 'summary.json', summary)
  return summary


def tell_unread(setup: building.Setup, console: rich_console.Console) -> None:
  """Prints the options that nothing reads, and what is odd about the data."""
  images = setup.train.lengths is None
  lines = unread.in_vain(setup.experiment, images)
  for line in (*lines, *setup.train.notes, *setup.test.notes):
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def round_record(
  plan: RoundPlan,
  sums: dict[str, np.ndarray],
  meter: dict[str, Any],
  seconds: float,
) -> dict[str, Any]:
  """Returns what is written about a round."""
  count = max(float(sums['count']), 1.0)
  return {
    'train/loss': float(sums['loss']) / count,
    'train/accuracy': float(sums['correct']) / count,
    'time/round_s': seconds,
    'time/client_steps_per_s': plan.client_steps / seconds,
    'cost/uplink_bytes': int(meter['uplink']),
    'cost/downlink_bytes': int(meter['downlink']),
    'cost/train_flops': int(meter['flops']),
    'time/simulated_s': int(meter['simulated_us']) / 1e6,
    'coverage/layers': plan.owners,
  }


def write_setup(run: Run, classes: list[costs.ClassCost], workdir: str) -> None:
  """Writes what is known before the first round: costs and partition."""
  setup, folder = run.setup, pathlib.Path(workdir)
  (folder / 'costs.md').write_text(costs.cost_markdown(classes))
  as_dicts = [dataclasses.asdict(row) for row in classes]
  reporting.write_json(folder / 'costs.json', as_dicts)
  if setup.train.class_names:
    plots.plot_partition(
      setup.partition.histogram(setup.train),
      [str(k) for k in range(len(setup.budgets))],
      setup.train.class_names,
      folder / 'partition.png',
    )
  reporting.write_json(
    folder / 'partition.json',
    {'indices': setup.partition.indices, 'budgets': setup.budgets},
  )


def summarize(run: Run, workdir: str) -> dict[str, Any]:
  """Sums a finished run up from what it wrote."""
  rows = reporting.read_metrics(workdir)
  last, e = rows[-1], run.setup.experiment
  prefix = 'eval/accuracy/'
  others = {
    name.removeprefix('eval/').removesuffix('/accuracy'): value
    for name, value in last.items()
    if re.fullmatch('eval/[^/]+/accuracy', name)
  }
  rates = [row['time/client_steps_per_s'] for row in rows]
  return {
    'method': e.method,
    'seed': e.seed,
    'rounds': e.rounds,
    'accuracy': last['eval/accuracy'],
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
    'train_loss': last['train/loss'],
    'client_steps_per_s': float(np.median(rates)),
    'compiles': len(run.engine.programs.compiled),
    'uplink_bytes': last['cost/uplink_bytes'],
    'downlink_bytes': last['cost/downlink_bytes'],
    'train_flops': last['cost/train_flops'],
    'simulated_s': last['time/simulated_s'],
  }

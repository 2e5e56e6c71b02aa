"""A run, from an experiment to its results on disk."""

from collections.abc import Sequence
import dataclasses
import math
import pathlib
import time
from typing import Any

import jax
import numpy as np
from rich import console as rich_console

from fedjax_tune import config, endings, plugins
from fedjax_tune.config import unread
from fedjax_tune.costs import table
from fedjax_tune.data import arrays
from fedjax_tune.engine import local_optimizer
from fedjax_tune.engine.plan import RoundPlan, prefetch
from fedjax_tune.report import writer as reporting
from fedjax_tune.report.progress import RoundProgress
from fedjax_tune.training import build as building
from fedjax_tune.training import (
  checkpoint,
  clock,
  folders,
  health,
  identity,
  interrupts,
  resuming,
  snapshot,
  stopping,
  summary,
)
from fedjax_tune.training import workdir as folder
from fedjax_tune.training.run import Run


def train(
  experiment: config.Experiment,
  workdir: str,
  *,
  resume: bool = False,
  fetch: bool = False,
  inexact: bool = False,
  console: rich_console.Console | None = None,
  data: arrays.Arrays | None = None,
  partition: Sequence[np.ndarray] | None = None,
) -> dict[str, Any]:
  """Runs an experiment and writes everything about it to `workdir`.

  Args:
    experiment: What to run.
    workdir: A new folder, or with `resume` that of the same experiment.
    resume: Continue from the newest whole checkpoint, bit for bit.
    fetch: Fetch data and weights that are not there; else nothing uses a
      network.
    inexact: Resume on another machine or with other packages, too, where the
      last bits may differ.
    console: Where the cost table and the progress bar are shown; standard
      output by default.
    data: From `from_arrays`, in place of the data set that `data.name` names.
    partition: For each client the positions of its training examples; None
      divides them as `clients.partition` says.

  Returns:
    What `summary.json` holds.

  Raises:
    ValueError: Something in the experiment is wrong, `workdir` holds another
      one, or data, weights or settings are not those that it began with.
    FileNotFoundError: Data or weights are not where they should be; the message
      has the command that fetches them.
    RuntimeError: Another process writes to `workdir`.
    StorageError: `workdir` can no longer be written.
    Interrupted: A signal came; what was done until then is saved.
    Diverged: The server's state or an evaluation is not finite, or no client's
      update is. What is not finite is neither saved nor evaluated.
  """
  workdir = str(folders.local('workdir', workdir))
  console = console or rich_console.Console()
  if data is not None:
    own = dataclasses.replace(experiment.data, name=arrays.NAME)
    experiment = dataclasses.replace(experiment, data=own)
  fields = dataclasses.asdict(experiment)
  folder.check(workdir, fields, resume)
  with interrupts.Interrupts() as signals, clock.Clock() as watch:
    setup = building.build(experiment, fetch=fetch, data=data, parts=partition)
    with folder.claim(workdir) as claim:
      folder.check_begun(workdir, fields, resume)
      own = identity.of(setup)
      kept = resuming.find(workdir, own, console, inexact) if resume else None
      if kept:
        own = identity.follow(kept.run, own, kept.rounds)
      resuming.check_partition(workdir, setup)
      tell_unread(setup, console)
      with (
        watch.section('compile'),
        console.status('Compiling a program for each class of clients'),
      ):
        run = Run(setup)
      classes = run.class_costs()
      # Nothing is refused from here on: the folder is this experiment's.
      folder.write_config(workdir, fields)
      console.print(table.cost_table(classes))
      if kept and kept.rounds >= experiment.rounds:
        console.print(f'All {kept.rounds} rounds are done; none is left.')
      with signals.patient(), endings.storing(workdir, only_full=True):
        write_setup(run, classes, workdir)
        train_rounds(run, kept, own, claim, signals, workdir, console, watch)
        return summary.write_results(run, workdir)


def train_rounds(
  run: Run,
  kept: snapshot.Snapshot | None,
  own: identity.Identity,
  claim: folder.Claim,
  signals: interrupts.Interrupts,
  workdir: str,
  console: rich_console.Console,
  watch: clock.Clock,
) -> None:
  """Trains the rounds that are left, and writes each.

  Args:
    run: What to train.
    kept: Where to go on from; None starts at round 0.
    own: What identifies the run.
    claim: The claim on the folder.
    signals: Those that ask to stop.
    workdir: The run's folder.
    console: Where the progress is shown.
    watch: Tells what each round's row says of time.

  Raises:
    Interrupted: A signal came; the round under way was finished and saved.
    StorageError: The folder can no longer be written.
    Diverged: Something is not finite, see `health.py`.
  """
  setup, experiment = run.setup, run.setup.experiment
  state, meter, best = run.start(kept)
  start, rows = (kept.rounds, kept.rows) if kept else (0, '')
  health.check_state(state, f'after {start} rounds')
  now = stopping.standing(reporting.parse(rows))
  over = now.over(experiment.patience)
  done, last = start, start if over else experiment.rounds
  if start < last:
    # Its presence would say that the run is finished.
    (pathlib.Path(workdir) / summary.SUMMARY).unlink(missing_ok=True)
  key = jax.random.key(experiment.seed)
  label = f'{experiment.method} seed {experiment.seed}'
  with (
    checkpoint.Checkpoints(workdir, experiment.checkpoint_every, own) as saved,
    reporting.MetricsWriter(workdir, rows) as writer,
    RoundProgress(last, start, label, console) as progress,
  ):
    for plan in watch.waits(prefetch(setup.planner.plan, range(start, last))):
      begin = time.perf_counter()
      lr = local_optimizer.learning_rate(experiment.local, plan.rnd)
      with watch.section('training'):
        state, sums = run.engine.round(state, plan, key, lr)
        sums = jax.device_get(sums)
      if not sums['finite']:
        health.check_state(state, f'round {plan.rnd}')
      seconds = time.perf_counter() - begin
      meter = run.charge(meter, plan.members)
      record = round_record(plan, sums, meter, seconds)
      with watch.section('evaluation'):
        record |= run.evaluate(state, plan.rnd)
      done = plan.rnd + 1
      claim.check()
      record |= watch.lap()
      writer.write(plan.rnd, record)
      now = now.after(plan.rnd, record.get('eval/accuracy'))
      best = state if now.rnd == plan.rnd else best
      over = now.over(experiment.patience)
      ends = signals.asked or over or done == last
      if not record['train/clients']:
        able = setup.algorithm.able(plan.rnd, len(setup.budgets))
        eligible = np.flatnonzero(able).tolist()
        health.check_progress(writer.rows, eligible, over=done == last)
      memory = run.memory(state, meter, best)
      with watch.section('checkpoint'):
        saved.save(done, memory, writer.rows, force=bool(ends))
      progress.advance(
        loss=record['train/loss'],
        client_steps_per_s=record['time/client_steps_per_s'],
        accuracy=record.get('eval/accuracy'),
        rejected=record['train/rejected_clients'],
      )
      if plan.rnd == start:
        draw_setup(setup, workdir)
      if ends:
        break
  if over:
    console.print(
      f'Ended after round {done} of {experiment.rounds}: {now.since} evaluations'
      f' in a row were below that of round {now.rnd + 1}.',
      highlight=False,
      soft_wrap=True,
    )
  elif done < last:
    raise endings.Interrupted(
      f'{signals.asked} after round {done} of {last}, which is saved in'
      f' {workdir}; --resume goes on from there.'
    )


def tell_unread(setup: building.Setup, console: rich_console.Console) -> None:
  """Prints options set in vain, and what is odd about data and weights."""
  images = setup.train.lengths is None
  lines = unread.in_vain(
    setup.experiment, images, plugins.registered(setup.experiment)
  )
  notes = (*setup.train.notes, *setup.test.notes, *setup.notes)
  for line in (*lines, *notes):
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def round_record(
  plan: RoundPlan,
  sums: dict[str, Any],
  meter: dict[str, Any],
  seconds: float,
) -> dict[str, Any]:
  """Returns what is written about a round."""
  # Without examples there is no mean.
  count = float(sums['count']) or math.nan
  rejected, owners = health.rejected(plan, sums['rejected'])
  return {
    'train/loss': float(sums['loss']) / count,
    'train/accuracy': float(sums['correct']) / count,
    'train/clients': len(plan.members) - len(rejected),
    'train/rejected': len(rejected),
    'train/rejected_clients': rejected,
    'time/round_s': seconds,
    'time/client_steps_per_s': plan.client_steps / seconds,
    'cost/uplink_bytes': int(meter['uplink']),
    'cost/downlink_bytes': int(meter['downlink']),
    'cost/train_flops': int(meter['flops']),
    'time/simulated_s': int(meter['simulated_us']) / 1e6,
    'coverage/layers': owners,
  }


def write_setup(run: Run, classes: list[table.ClassCost], workdir: str) -> None:
  """Writes what is known before the first round: costs and partition."""
  place = pathlib.Path(workdir)
  reporting.write_text(place / 'costs.md', table.cost_markdown(classes))
  as_dicts = [dataclasses.asdict(row) for row in classes]
  reporting.write_json(place / 'costs.json', as_dicts)
  written = identity.partition(run.setup)
  reporting.write_json(place / resuming.PARTITION, written)


def draw_setup(setup: building.Setup, workdir: str) -> None:
  """Draws the partition; a second, for which no first round should wait."""
  path = pathlib.Path(workdir) / 'partition.png'
  if setup.train.class_names:
    # Here and not above: Matplotlib and SciPy take half a second.
    from fedjax_tune.report import plots

    with endings.storing(path):
      plots.plot_partition(
        setup.partition.histogram(setup.train),
        [str(k) for k in range(len(setup.budgets))],
        setup.train.class_names,
        path,
      )

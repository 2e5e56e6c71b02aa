"""A run, from an experiment to its results on disk."""

from collections.abc import Sequence
import dataclasses
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
from fedjax_tune.engine.plan import prefetch
from fedjax_tune.engine.server import ServerState
from fedjax_tune.report import clients as reporting_clients
from fedjax_tune.report import writer as reporting
from fedjax_tune.report import writers as writing
from fedjax_tune.report.progress import RoundProgress
from fedjax_tune.training import build as building
from fedjax_tune.training import (
  checkpoint,
  client_report,
  clock,
  folders,
  health,
  identity,
  interrupts,
  ledger,
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
  writers: Sequence[writing.Writer] = (),
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
    writers: Objects with `write(round, metrics)`, which are told of each round;
      what has a `close` is closed at the end.

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
        with writing.opened(
          experiment.writers, writers, workdir, fields
        ) as others:
          books = train_rounds(
            run, kept, own, claim, signals, workdir, console, watch, others
          )
        clients = _report_clients(books, workdir, console)
        return summary.write_results(run, workdir, clients)


def train_rounds(
  run: Run,
  kept: snapshot.Snapshot | None,
  own: identity.Identity,
  claim: folder.Claim,
  signals: interrupts.Interrupts,
  workdir: str,
  console: rich_console.Console,
  watch: clock.Clock,
  others: Sequence[writing.Writer] = (),
) -> ledger.Ledger:
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
    others: Are told of each round, too.

  Returns:
    The books, of all rounds.

  Raises:
    Interrupted: A signal came; the round under way was finished and saved.
    StorageError: The folder can no longer be written.
    Diverged: Something is not finite, see `health.py`.
  """
  experiment = run.setup.experiment
  state, meter, best = run.start(kept)
  start, rows = (kept.rounds, kept.rows) if kept else (0, '')
  health.check_state(state, f'after {start} rounds')
  if experiment.eval_start:
    _judge_start(run, workdir, anew=kept is None)
  now = stopping.standing(reporting.parse(rows))
  last = start if now.over(experiment.patience) else experiment.rounds
  if start < last:
    # Its presence would say that the run is finished.
    (pathlib.Path(workdir) / summary.SUMMARY).unlink(missing_ok=True)
  label = f'{experiment.method} seed {experiment.seed}'
  with (
    checkpoint.Checkpoints(workdir, experiment.checkpoint_every, own) as saved,
    reporting.MetricsWriter(workdir, rows) as writer,
    RoundProgress(last, start, label, console) as progress,
  ):
    outputs = ledger.Outputs(claim, saved, writer, progress, watch, others)
    books = ledger.Ledger(
      run, signals, outputs, last, start, meter, now, best, state
    )
    _compute(run, state, books, workdir)
  if books.over:
    now = books.now
    console.print(
      f'Ended after round {books.done} of {experiment.rounds}: {now.since}'
      f' evaluations in a row were below that of round {now.rnd + 1}.',
      highlight=False,
      soft_wrap=True,
    )
  elif books.done < last:
    raise endings.Interrupted(
      f'{signals.asked} after round {books.done} of {last}, which is saved in'
      f' {workdir}; --resume goes on from there.'
    )
  return books


def _judge_start(run: Run, workdir: str, *, anew: bool) -> None:
  """Writes how good a run is before its first round, if it is not there."""
  path = pathlib.Path(workdir) / reporting.START
  if anew or not path.exists():
    found = run.judge(run.engine.init(), 'before the first round')
    reporting.write_json(path, found)


def _report_clients(
  books: ledger.Ledger, workdir: str, console: rich_console.Console
) -> dict[str, Any]:
  """Tells how each client fares, where that is asked for; else {}."""
  if not books.run.setup.experiment.clients.report:
    return {}

  def check() -> None:
    if asked := books.signals.asked:
      raise endings.Interrupted(
        f'{asked} after the last round, which is saved in {workdir}; --resume'
        ' judges the clients, and ends the run.'
      )

  with console.status('Judging models for each client'):
    state, rnd = books.kept
    found = client_report.write(books.run, state, rnd, workdir, check)
  console.print(reporting_clients.class_table(found))
  return found


def _compute(
  run: Run, state: ServerState, books: ledger.Ledger, workdir: str
) -> None:
  """Has the device compute rounds until the books say that the run ends.

  A round is settled when the next one has begun, so that the device need not
  wait. One with an evaluation is settled at once: that may end the run, and
  would else have to wait for the next round's programs. Should the run end
  with a round, nothing of the one begun after it is kept.
  """
  experiment, planner = run.setup.experiment, run.setup.planner
  key, watch = jax.random.key(experiment.seed), books.outputs.watch
  first, waiting = books.done, []

  def settle() -> bool:
    ends = books.settle(waiting.pop())
    if books.done == first + 1:
      draw_setup(run.setup, workdir)
    return ends

  plans = prefetch(planner.plan, range(books.done, books.last))
  for plan, plan_next in watch.waits(plans):
    run.prepare(plan)
    begin = time.perf_counter()
    lr = local_optimizer.learning_rate(
      experiment.local, plan.rnd, experiment.rounds
    )
    with watch.section('training'):
      state, sums = run.engine.round(state, plan, key, lr)
    if waiting and settle():
      return
    plan_next()
    waiting.append(ledger.Begun(plan, state, sums, begin))
    if run.is_due(plan.rnd) and settle():
      return


def tell_unread(setup: building.Setup, console: rich_console.Console) -> None:
  """Prints options set in vain, and what is odd about data and weights."""
  images = setup.train.lengths is None
  lines = unread.in_vain(
    setup.experiment, images, plugins.registered(setup.experiment)
  )
  notes = (*setup.train.notes, *setup.test.notes, *setup.notes)
  for line in (*lines, *notes):
    console.print(line, markup=False, highlight=False, soft_wrap=True)


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
      owned = setup.partition
      shown = plots.shown_clients(len(owned), len(setup.train.class_names))
      plots.plot_partition(
        owned.histogram(setup.train, shown),
        [str(k) for k in shown],
        setup.train.class_names,
        path,
        owned.sizes(),
      )

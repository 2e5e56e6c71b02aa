"""A run, from an experiment to its results on disk."""

from collections.abc import Sequence
import contextlib
import copy
import dataclasses
import functools
import pathlib
import time
from typing import Any

import jax
import numpy as np
from rich import console as rich_console

from fedjax_tune import config, endings
from fedjax_tune.costs import table
from fedjax_tune.data import arrays
from fedjax_tune.engine import hosts, local_optimizer
from fedjax_tune.engine.plan import prefetch
from fedjax_tune.engine.server import ServerState
from fedjax_tune.files import mirror
from fedjax_tune.report import clients as reporting_clients
from fedjax_tune.report import tables
from fedjax_tune.report import writer as reporting
from fedjax_tune.report import writers as writing
from fedjax_tune.report.progress import RoundProgress, waiting
from fedjax_tune.training import (
  apart,
  checkpoint,
  client_report,
  clock,
  defaults,
  health,
  identity,
  interrupts,
  ledger,
  opening,
  resuming,
  snapshot,
  stopping,
  summary,
)
from fedjax_tune.training import build as building
from fedjax_tune.training import workdir as folder
from fedjax_tune.training.interim import Interim
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

  On several hosts, joined by `jax.distributed.initialize`, each host calls it
  with the same arguments; only the first one writes.

  Args:
    experiment: What to run.
    workdir: A new folder, or with `resume` that of the same experiment; or an
      address, such as gs://bucket/run, to which the folder is sent after each
      checkpoint.
    resume: Continue from the newest whole checkpoint, bit for bit.
    fetch: Fetch missing data and weights; otherwise nothing uses a network.
    inexact: Allow resuming on another machine or with other packages, where the
      last bits may differ.
    console: Where the cost table and the progress bar are shown; standard
      output by default.
    data: Data from `from_arrays`, in place of the set that `data.name` names.
    partition: For each client the positions of its training examples; None
      divides them as `clients.partition` says.
    writers: Objects with `write(round, metrics)`, which is called for each
      round; if they have a method `close`, it is called at the end.

  Returns:
    What `summary.json` holds.

  Raises:
    ValueError: Something in the experiment is wrong, `workdir` holds another
      run or is inside the data, or data, weights or settings are not those that
      the run began with.
    FileNotFoundError: Data or weights are not where they should be; the message
      has the command that fetches them.
    RuntimeError: Another process writes to `workdir`.
    StorageError: `workdir` can no longer be written.
    Interrupted: A signal came, and the work so far is saved; or another host is
      gone.
    Diverged: The server's state or an evaluation is not finite, or no client's
      update is. What is not finite is neither saved nor evaluated.
  """
  console = console or rich_console.Console()
  if not hosts.is_first():
    console = rich_console.Console(quiet=True)
  if data is not None:
    # Copies keep what is no field, which is refused below.
    experiment = copy.copy(experiment)
    experiment.data = copy.copy(experiment.data)
    experiment.data.name = arrays.NAME
  with (
    hosts.noticing(),
    interrupts.Interrupts() as signals,
    clock.Clock() as watch,
    contextlib.ExitStack() as stack,
  ):
    opened = hosts.alone(
      lambda: stack.enter_context(mirror.opened('workdir', workdir))
    )
    # Other hosts use no file of it.
    place = opened or mirror.Place(pathlib.Path(workdir))
    hosts.alone(
      lambda: apart.check_data(
        place.shown, getattr(experiment.data, 'name', None)
      )
    )
    hosts.alone(place.fetch)
    workdir = str(place.folder)
    experiment = hosts.each(
      lambda: defaults.resolve(experiment, data, partition)
    )
    fields = dataclasses.asdict(experiment)
    hosts.alone(lambda: folder.check(workdir, fields, resume))
    setup = hosts.each(
      lambda: building.build(
        experiment, fetch=fetch, data=data, parts=partition
      )
    )
    claim = hosts.alone(
      lambda: stack.enter_context(folder.claim(workdir, place.send))
    )
    if claim and not claim.locked:
      console.print(
        f'The file system of {workdir} has no locks: see to it that no other run'
        ' writes there.',
        soft_wrap=True,
      )
    hosts.alone(lambda: folder.check_begun(workdir, fields, resume))
    own = identity.of(setup)
    identity.check_hosts(own)
    kept = hosts.told(
      lambda: resuming.find(place, own, console, inexact) if resume else None
    )
    if kept:
      own = identity.follow(kept.run, own, kept.rounds)
    hosts.alone(lambda: resuming.check_partition(workdir, setup))
    opening.tell_unread(setup, console, data)
    with (
      watch.section('compile'),
      waiting(console, 'Compiling a program for each class of clients'),
    ):
      run = Run(setup)
    classes = run.class_costs()
    # Nothing is refused from here on: the folder is this experiment's.
    hosts.alone(lambda: folder.write_config(workdir, fields))
    hosts.alone(place.send)
    console.print(table.cost_table(classes))
    if kept and kept.rounds >= experiment.rounds:
      console.print(f'All {kept.rounds} rounds are done; none is left.')
    with signals.patient(), endings.storing(workdir, only_full=True):
      hosts.alone(lambda: opening.write(run, classes, workdir))
      # The first host alone tells what a user has installed.
      named, given = (
        (experiment.writers, writers) if hosts.is_first() else ((), ())
      )
      with writing.opened(named, given, workdir, fields) as others:
        books = train_rounds(
          run, kept, own, claim, signals, workdir, console, watch, others
        )
      return hosts.told(
        lambda: summary.write_results(
          run, workdir, _report_clients(books, workdir, console)
        )
      )


def train_rounds(
  run: Run,
  kept: snapshot.Snapshot | None,
  own: identity.Identity,
  claim: folder.Claim | None,
  signals: interrupts.Interrupts,
  workdir: str,
  console: rich_console.Console,
  watch: clock.Clock,
  others: Sequence[writing.Writer] = (),
) -> ledger.Ledger:
  """Trains the rounds that are left, and writes each.

  Args:
    run: What to train.
    kept: The checkpoint to continue from; None starts at round 0.
    own: What identifies the run.
    claim: The claim on the folder; None if another host writes there.
    signals: The signals that ask to stop.
    workdir: The run's folder.
    console: Where the progress is shown.
    watch: The clock that adds times to each round's row.
    others: Other writers, called for each round.

  Returns:
    The ledger after the last round.

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
    _judge_start(run, workdir, console, anew=kept is None)
  now = stopping.standing(reporting.parse(rows))
  last = start if now.over(experiment.patience) else experiment.rounds
  label = f'{experiment.method} seed {experiment.seed}'
  metric = tables.spoken(run.setup.train.task.primary)
  with contextlib.ExitStack() as stack:
    saved, writer, interim = None, reporting.Rows(rows), None
    if claim:
      draw = functools.partial(summary.draw, run.setup, workdir)
      before = reporting.read_start(workdir)
      interim = Interim(workdir, experiment, rows, metric, draw, start=before)
      others = [interim, *others]
      if start < last:
        # Its presence would say that the run is finished.
        (pathlib.Path(workdir) / summary.SUMMARY).unlink(missing_ok=True)
      every = experiment.checkpoint_every
      saved = stack.enter_context(
        checkpoint.Checkpoints(workdir, every, own, claim.send)
      )
      writer = stack.enter_context(reporting.MetricsWriter(workdir, rows))
    progress = stack.enter_context(
      RoundProgress(last, start, label, console, metric)
    )
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
    if interim:
      interim.draw()
    asked = signals.asked or 'a signal to another host'
    raise endings.Interrupted(
      f'{asked} after round {books.done} of {last}, which is saved in'
      f' {workdir}; --resume goes on from there.'
    )
  return books


def _judge_start(
  run: Run, workdir: str, console: rich_console.Console, *, anew: bool
) -> None:
  """Evaluates a run before its first round, if that was not done yet."""
  path = pathlib.Path(workdir) / reporting.START
  if hosts.told(lambda: anew or not path.exists()):
    found = run.judge(run.engine.init(), 'before the first round')
    hosts.alone(lambda: reporting.write_json(path, found))
    metric = tables.spoken(run.setup.train.task.primary)
    console.print(
      f'round 0/{run.setup.experiment.rounds}   {metric}'
      f' {found["eval/accuracy"]:.1%}',
      highlight=False,
    )


def _report_clients(
  books: ledger.Ledger, workdir: str, console: rich_console.Console
) -> dict[str, Any]:
  """Reports how each client fares, if that is asked for; else {}."""
  if not books.run.setup.experiment.clients.report:
    return {}

  def check() -> None:
    if asked := books.signals.asked:
      raise endings.Interrupted(
        f'{asked} after the last round, which is saved in {workdir}; --resume'
        ' judges the clients, and ends the run.'
      )

  with waiting(console, 'Judging models for each client'):
    state, rnd = books.kept
    found = client_report.write(books.run, state, rnd, workdir, check)
  console.print(reporting_clients.class_table(found))
  return found


def _compute(
  run: Run, state: ServerState, books: ledger.Ledger, workdir: str
) -> None:
  """Computes rounds on the device until the ledger says that the run ends.

  A round is settled when the next one has begun, so that the device need not
  wait. A round with an evaluation is settled at once: it may end the run, and
  would otherwise have to wait for the next round's programs. If the run ends
  with a round, nothing of the round begun after it is kept.
  """
  experiment, planner = run.setup.experiment, run.setup.planner
  key, watch = jax.random.key(experiment.seed), books.outputs.watch
  first, waiting = books.done, []

  def settle() -> bool:
    ends = books.settle(waiting.pop())
    if books.done == first + 1 and hosts.is_first():
      opening.draw(run.setup, workdir)
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
    if hosts.count() > 1:
      plan_next()  # Settling waits for the other hosts, so for this round.
    if waiting and settle():
      return
    plan_next()
    waiting.append(ledger.Begun(plan, state, sums, begin))
    if run.is_due(plan.rnd) and settle():
      return

"""How good models are for each client, at the end of a run."""

from collections.abc import Callable
import dataclasses
import pathlib

import jax
import numpy as np

from fedjax_tune import config, endings
from fedjax_tune.engine import local_optimizer
from fedjax_tune.engine.cohort import Member
from fedjax_tune.engine.each_client import EachClient, Subjects
from fedjax_tune.engine.randomness import host_rng
from fedjax_tune.engine.schedule import Schedule
from fedjax_tune.engine.server import ServerState
from fedjax_tune.engine.step import Shared
from fedjax_tune.report import clients as reporting
from fedjax_tune.report import tables, writer
from fedjax_tune.training.run import Run
from fedjax_tune.typing import Json

# Clients at a time on hardware that likes many.
_WIDTH = 16


def write(
  run: Run,
  state: ServerState,
  rnd: int,
  workdir: str,
  check: Callable[[], None],
) -> Json:
  """Writes `clients.csv` and its picture, and returns a summary of them.

  It depends on the state and the seeds alone, so a resumed run writes the same.

  Args:
    run: The run.
    state: The server's state, which is judged.
    rnd: The round after that state; clients hold what they would hold there.
    workdir: The run's folder.
    check: Raises an error if the work must end.
  """
  setup, options = run.setup, run.setup.experiment.clients
  planner = dataclasses.replace(
    setup.planner, experiment=_with_steps(setup.experiment)
  )
  chosen = sample(options, len(setup.partition))
  corpus, rows = setup.own_data(chosen)
  cohort = planner.gather(rnd, chosen)
  judge = EachClient(
    setup.algorithm,
    planner,
    local_optimizer.build(setup.experiment.local),
    local_optimizer.schedule(setup.experiment.local),
    lambda tier: corpus.view(setup.readers.get(tier, 0)),
    setup.experiment.data.lengths,
    _width(setup.experiment.engine),
    check,
  )
  scores = judge.judge(
    _shared(run, state, rnd), state, Subjects(rnd, cohort, rows)
  )
  found = []
  for i, member in enumerate(cohort.members):
    about = _about(run, member) | {'judged_by': len(rows[i])}
    models = {name: float(x[i]) for name, x in scores._asdict().items()}
    found.append(about | models)
  place = pathlib.Path(workdir)
  writer.write_text(place / reporting.FILE, reporting.to_csv(found))
  # Here and not above: Matplotlib and SciPy take half a second.
  from fedjax_tune.report import client_plots

  with endings.storing(place):
    metric = tables.spoken(setup.train.task.primary)
    client_plots.plot_run(found, place / 'clients.png', metric)
  return {
    'reported': len(chosen),
    'of': len(setup.partition),
    'judged_by': _judged_by(options.held_out),
    'steps': options.report_steps or 'as in a round',
    **reporting.summarize(found),
  }


def sample(options: config.Clients, clients: int) -> list[int]:
  """Returns which clients are reported, the same for all methods and seeds."""
  if options.report >= clients:
    return list(range(clients))
  rng = host_rng('report', options.seed, 0)
  chosen = rng.choice(clients, options.report, replace=False)
  return sorted(chosen.tolist())


def _judged_by(held_out: float) -> str:
  if held_out:
    return 'examples of their own that trained nobody'
  return 'test examples of their domain and classes'


def _with_steps(experiment: config.Experiment) -> config.Experiment:
  """Returns the experiment whose clients take the report's steps."""
  steps = experiment.clients.report_steps
  if not steps:
    return experiment
  local = dataclasses.replace(experiment.local, steps=steps)
  return dataclasses.replace(experiment, local=local)


def _width(engine: config.Engine) -> int:
  platform = jax.default_backend()
  return Schedule.choose(
    engine.mode, engine.chunk, _WIDTH, platform=platform
  ).chunk


def _shared(run: Run, state: ServerState, rnd: int) -> Shared:
  """Returns what the clients of the next round would be given.

  The learning rate is `local.lr`, since a rate that has fallen to zero would
  tune nothing.
  """
  e = run.setup.experiment
  return Shared(
    run.engine.base(state),
    state.theta,
    state.memory,
    jax.random.fold_in(jax.random.key(e.seed), rnd),
    np.float32(e.local.lr),
    np.int32(rnd),
  )


def _about(run: Run, member: Member) -> Json:
  """Returns who a client is, and what it costs."""
  setup, client, sig = run.setup, member.client, member.sig
  domain, cost = int(setup.partition.domains[client]), run.cost(sig)
  names = setup.train.domain_names
  return {
    'client': client,
    'class': run.class_name(sig),
    'domain': names[domain] if domain >= 0 else '',
    'examples': len(setup.partition.indices[client]),
    'params': cost.base_params + cost.theta_params,
    'flops_per_step': cost.flops,
    'uplink_bytes': run.traffic([member])[sig].uplink,
  }

"""The folder of a finished run: its experiment, summary and last checkpoint."""

from collections.abc import Mapping
import dataclasses
import os
import pathlib

import jax

from fedjax_tune import commands, config, plugins
from fedjax_tune.data import json_files
from fedjax_tune.engine import server, store
from fedjax_tune.engine.algorithm import Algorithm
from fedjax_tune.files import paths
from fedjax_tune.report import writer
from fedjax_tune.training import (
  checkpoint,
  snapshot,
  stopping,
  summary,
)
from fedjax_tune.training import workdir as folder
from fedjax_tune.typing import Record, Tree


@dataclasses.dataclass(frozen=True)
class Results:
  """The results of a finished run.

  Attributes:
    workdir: The run's folder.
    experiment: The run's experiment.
    summary: What `summary.json` holds.
  """

  workdir: pathlib.Path
  experiment: config.Experiment
  summary: Record

  @property
  def here(self) -> config.Experiment:
    """The experiment for this machine's devices, with the model undivided."""
    engine = dataclasses.replace(
      self.experiment.engine, devices=0, fsdp=False, cache_frozen=False
    )
    return dataclasses.replace(self.experiment, engine=engine)

  def last(self) -> snapshot.Snapshot:
    """Reads the checkpoint after the last round.

    Raises:
      ValueError: There is no checkpoint, it is damaged, or it belongs to
        another run.
    """
    found = checkpoint.find(self.workdir)
    if found.newest is None or not _is_last(found.newest, self.experiment):
      why = found.describe() or 'it is not there'
      raise ValueError(
        f'workdir={self.workdir} has no whole checkpoint of round'
        f' {self.experiment.rounds} ({why}); `{commands.start_of("train")}'
        ' --resume` makes it again.'
      )
    fields = dataclasses.asdict(self.experiment)
    there = found.newest.run['experiment']
    folder.check_same(there, fields, False, self.where)
    return found.newest

  @property
  def where(self) -> str:
    """Names the last checkpoint, for messages."""
    return f'The last checkpoint in {self.workdir}'


def read(workdir: str | os.PathLike[str]) -> Results:
  """Reads a run's results, and checks that it is finished.

  Raises:
    FileNotFoundError: There is no run, or it is not finished.
    ValueError: It is not finished, or a file is not what a run writes.
  """
  workdir = paths.here('workdir', workdir)
  found = []
  for name in ('config.json', summary.SUMMARY):
    path = workdir / name
    if not path.exists():
      what = 'has no run' if name == 'config.json' else 'is not a finished run'
      raise FileNotFoundError(f'workdir={workdir} {what}: no {name}.')
    found.append(json_files.read_object(path))
  fields, said = found
  experiment = config.Experiment()
  path = workdir / 'config.json'
  _fill(experiment, fields, str(path))
  try:
    plugins.check(experiment)
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from error
  done = said.get('rounds')
  if type(done) is not int:
    raise ValueError(
      f'{workdir / summary.SUMMARY}: rounds={done!r} must be a whole number.'
    )
  if done < experiment.rounds and not said.get('ended_early'):
    raise ValueError(
      f'workdir={workdir} is not a finished run: {done} of'
      f' {experiment.rounds} rounds; go on with `{commands.start_of("train")}'
      ' --resume`.'
    )
  return Results(workdir, experiment, said)


def restore(
  results: Results, kept: snapshot.Snapshot, algorithm: Algorithm
) -> server.ServerState:
  """Returns the final state of a run: the best one if the run kept that.

  State that only training reads is left out: the optimizer's, and most memory.

  Raises:
    ValueError: The checkpoint does not fit the algorithm's model.
  """
  aggregator, theta = algorithm.aggregator, algorithm.model.theta
  memory = aggregator.init(theta)
  memory = memory if aggregator.frozen_delta(memory) else ()
  which = 'best' if results.experiment.keep_best else 'state'
  clients: Tree = ()
  if algorithm.ending is not None:
    count = checkpoint.length(kept, f"['{which}'].clients['ids']")
    clients = store.packed_like(count, algorithm.client.state)
  template = {which: server.ServerState(theta, (), memory, clients)}
  state = checkpoint.fit(kept, template, part=True)[which]
  return state._replace(clients=store.unpack(state.clients))


def added(algorithm: Algorithm, state: server.ServerState) -> Tree:
  """Returns what the server added to frozen kernels, {} if nothing."""
  if not jax.tree.leaves(state.memory):
    return {}
  return algorithm.aggregator.frozen_delta(state.memory)


def _is_last(kept: snapshot.Snapshot, experiment: config.Experiment) -> bool:
  if kept.rounds == experiment.rounds:
    return True
  now = stopping.standing(writer.parse(kept.rows))
  return now.over(experiment.patience)


def _fill(section: object, fields: Mapping[str, object], place: str) -> None:
  """Sets fields read from JSON; their types are found by validation."""
  for name, value in fields.items():
    # A file must not set any other attribute, such as __class__.
    if name not in vars(section):
      raise ValueError(f'{place}: {name!r} is not a field.')
    held = getattr(section, name)
    if dataclasses.is_dataclass(held) != isinstance(value, dict):
      raise ValueError(f'{place}: {name!r} must be like {held!r:.60}.')
    if isinstance(value, dict):
      _fill(held, value, f'{place}: {name}')
    else:
      value = tuple(value) if isinstance(value, list) else value
      setattr(section, name, value)

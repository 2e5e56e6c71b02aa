"""The model of a finished run, loaded as one plain model."""

from collections.abc import Mapping
import dataclasses
import math
import os
import pathlib

from flax import nnx
import jax

from fedjax_tune import config, endings, plugins, selection
from fedjax_tune.data import json_files
from fedjax_tune.engine import finite, server
from fedjax_tune.methods.raffm import salience
from fedjax_tune.models import backbone, export, foundation, sizes
from fedjax_tune.report import writer
from fedjax_tune.training import (
  build,
  checkpoint,
  folders,
  identity,
  snapshot,
  stopping,
)
from fedjax_tune.training import workdir as folder
from fedjax_tune.typing import Allocation, AnyArray, Tree


@dataclasses.dataclass(frozen=True)
class Trained:
  """A finished run's model: one tree of parameters, adapters folded in.

  Attributes:
    setup: What the run was made of.
    config: The model's sizes.
    model: Its structure; `theta` has all parameters, in float32.
    sizes: Size of each axis along which it can be cut.
  """

  setup: build.Setup
  config: sizes.Config
  model: foundation.Foundation
  sizes: Mapping[str, int]

  @property
  def params(self) -> Tree:
    """All parameters."""
    return self.model.theta

  def held(self, row: Allocation) -> dict[str, int]:
    """Returns how much a subnetwork has of every axis."""
    return {axis: int(row.get(axis, n)) for axis, n in self.sizes.items()}

  def num_params(self, row: Allocation) -> int:
    """Counts a subnetwork's parameters, embedding and head included."""
    held = self.held(row)

    def count(leaf: AnyArray, names: tuple[str, ...]) -> int:
      shape: tuple[int, ...] = leaf.shape
      pairs = zip(names, shape, strict=True)
      return math.prod(held.get(name, n) for name, n in pairs)

    return sum(
      jax.tree.leaves(jax.tree.map(count, self.params, self.model.axes))
    )

  def rank(self, scope: str) -> salience.Order:
    """Ranks hidden channels; `scope` is a key of `salience.SCOPES`."""
    return salience.rank(
      self.params['blocks'], self.model.axes['blocks'], scope
    )

  def reorder(self, order: salience.Order) -> Tree:
    """Returns the parameters with their hidden channels in another order."""
    return salience.reorder(self.params, self.model.axes, order)


def load(workdir: str | os.PathLike[str], test_examples: int = 0) -> Trained:
  """Loads a finished run, with its data.

  Args:
    workdir: The run's folder.
    test_examples: How many test examples of each domain to keep; 0 leaves it
      to the run's `data.test_examples`.

  Raises:
    FileNotFoundError: There is no run, or its data or weights are gone.
    ValueError: The run is not finished, its last checkpoint is damaged or was
      trained on other data or weights, or its result is not one plain model.
    Diverged: A parameter of the model is not finite.
  """
  workdir = folders.local('workdir', workdir)
  experiment = _read_experiment(workdir)
  if (tune := experiment.model.tune) in ('prompt', 'prefix'):
    raise ValueError(
      f'model.tune={tune!r} does not end with one plain model (its trained'
      ' tokens have no place in a Hugging Face folder); it cannot be deployed.'
    )
  setup = build.build(experiment)
  _check_plain(setup)
  kept = _last(workdir, experiment)
  identity.check_content(
    kept.run, identity.of(setup), f'The last checkpoint in {workdir}'
  )
  if test_examples:
    experiment.data.test_examples = test_examples
    setup = build.build(experiment)
  # Leaves out what only training reads: optimizer, most memory, the meter.
  aggregator, theta = setup.algorithm.aggregator, setup.algorithm.model.theta
  memory = aggregator.init(theta)
  memory = memory if aggregator.frozen_delta(memory) else ()
  which = 'best' if experiment.keep_best else 'state'
  template = {which: server.ServerState(theta, (), memory)}
  state = checkpoint.fit(kept, template, part=True)[which]
  added = aggregator.frozen_delta(state.memory) if memory else {}
  frozen = foundation.add_frozen(setup.algorithm.model.base, added)
  return _assemble(setup, frozen, state.theta)


def _last(
  workdir: pathlib.Path, experiment: config.Experiment
) -> snapshot.Snapshot:
  """Reads the checkpoint after the last round."""
  found = checkpoint.find(workdir)
  if found.newest is None or not _is_last(found.newest, experiment):
    why = found.describe() or 'it is not there'
    raise ValueError(
      f'workdir={workdir} has no whole checkpoint of round {experiment.rounds}'
      f' ({why}); launch.train --resume makes it again.'
    )
  where = f'The last checkpoint in {workdir}'
  fields = dataclasses.asdict(experiment)
  folder.check_same(found.newest.run['experiment'], fields, False, where)
  return found.newest


def _is_last(kept: snapshot.Snapshot, experiment: config.Experiment) -> bool:
  if kept.rounds == experiment.rounds:
    return True
  now = stopping.standing(writer.parse(kept.rows))
  return now.over(experiment.patience)


def _read_experiment(workdir: pathlib.Path) -> config.Experiment:
  found = []
  for name in ('config.json', 'summary.json'):
    path = workdir / name
    if not path.exists():
      what = 'has no run' if name == 'config.json' else 'is not a finished run'
      raise FileNotFoundError(f'workdir={workdir} {what}: no {name}.')
    found.append(json_files.read_object(path))
  fields, summary = found
  experiment = config.Experiment()
  path = workdir / 'config.json'
  _fill(experiment, fields, str(path))
  try:
    plugins.check(experiment)
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from error
  done = summary.get('rounds')
  if type(done) is not int:
    raise ValueError(
      f'{workdir / "summary.json"}: rounds={done!r} must be a whole number.'
    )
  if done < experiment.rounds and not summary.get('ended_early'):
    raise ValueError(
      f'workdir={workdir} is not a finished run: {done} of'
      f' {experiment.rounds} rounds; go on with launch.train --resume.'
    )
  return experiment


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


def _check_plain(setup: build.Setup) -> None:
  """Refuses what no Hugging Face folder can hold."""
  method, tune = setup.experiment.method, setup.experiment.model.tune
  if tune not in ('lora', 'full', 'head'):
    raise ValueError(
      f"model.tune={tune!r} must be 'lora', 'full' or 'head' to deploy a run: what it"
      ' adds has no place in a Hugging Face folder.'
    )
  if not setup.algorithm.plain:
    raise ValueError(
      f'method={method!r} does not end with one plain model (it has other'
      ' classifiers, blocks or factors besides); it cannot be deployed.'
    )


def _assemble(setup: build.Setup, frozen: Tree, theta: Tree) -> Trained:
  """Folds the adapters in, and drops what the method's model does not use."""
  found, lora = setup.algorithm.model, setup.experiment.lora
  assert isinstance(found, foundation.Foundation)
  trained = found.merge(frozen, theta)
  cfg = dataclasses.replace(trained.embed.config, full=True)
  shapes = nnx.eval_shape(lambda: backbone.build_model(cfg, rngs=nnx.Rngs(0)))
  whole = foundation.split(shapes, cfg.depth)
  # The first is *the* model: AllSmall's, for one, has fewer blocks.
  row = next(iter(setup.algorithm.evaluation.models.values()))
  params = export.fuse(frozen, theta, lora.alpha / lora.rank)
  params = jax.device_put(selection.select_within(params, whole.axes, row))
  if names := finite.where_not(params):
    raise endings.Diverged(
      f'the model of the run must be finite, but its {", ".join(names[:3])} is'
      ' not: training diverged, and nothing can be deployed.'
    )
  amounts = sizes.axis_sizes(cfg) | {a: int(n) for a, n in row.items()}
  return Trained(
    setup,
    dataclasses.replace(cfg, depth=amounts['layer']),
    dataclasses.replace(whole, theta=params, depth=amounts['layer']),
    amounts,
  )

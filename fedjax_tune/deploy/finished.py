"""A model of a finished run, loaded as one plain model."""

from collections.abc import Mapping
import dataclasses
import math
import os

import jax

from fedjax_tune import commands, selection
from fedjax_tune.data.corpus import Corpus
from fedjax_tune.deploy import folded, formats, models, results
from fedjax_tune.engine import server
from fedjax_tune.methods.raffm import salience
from fedjax_tune.models import bottleneck, flax_folder, foundation, sizes
from fedjax_tune.training import aligned, build, identity
from fedjax_tune.typing import Allocation, AnyArray, Axes, Tree


@dataclasses.dataclass(frozen=True)
class Trained:
  """A finished run's model: one tree of parameters, LoRA folded in.

  Attributes:
    setup: The run's setup.
    found: The model as it is exported.
    form: The format, one of `formats.FORMATS`: 'hf' if that can hold the model,
      else 'flax'.
    config: The model's sizes.
    model: The model's structure; `theta` has all parameters, in float32.
    sizes: Size of each axis along which the model can be cut.
  """

  setup: build.Setup
  found: models.Model
  form: str
  config: sizes.Config
  model: foundation.Foundation
  sizes: Mapping[str, int]

  @property
  def params(self) -> Tree:
    """All parameters."""
    return self.model.theta

  @property
  def test(self) -> Corpus:
    """The run's test data, as this model reads them."""
    return self.setup.test.view(self.setup.readers.get(self.found.tier, 0))

  @property
  def tokenizer(self) -> str | None:
    """Folder of the model's tokenizer; None if it reads pictures."""
    known = self.setup.tokenizers
    return known.get(self.found.tier, next(iter(known.values())))

  def held(self, row: Allocation) -> dict[str, int]:
    """Returns how much a subnetwork has of every axis."""
    return {axis: int(row.get(axis, n)) for axis, n in self.sizes.items()}

  def part(self, row: Allocation, params: Tree) -> models.Model:
    """Returns a subnetwork as a model to be written.

    Args:
      row: How much of each axis it has, from the first on.
      params: All parameters, in any order of hidden channels.
    """
    held = self.held(row)
    return dataclasses.replace(
      self.found,
      config=dataclasses.replace(self.found.config, depth=held['layer']),
      adapters=_beside(self.found),
      base={},
      added={},
      theta=selection.select_within(params, self.model.axes, held),
    )

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


def load(
  workdir: str | os.PathLike[str], test_examples: int = 0, name: str = ''
) -> Trained:
  """Loads a finished run, with its data.

  Args:
    workdir: The run's folder.
    test_examples: How many test examples of each domain to keep; 0 takes the
      run's `data.test_examples`.
    name: Name of the model, if the run ends with several, such as tiers.

  Raises:
    FileNotFoundError: There is no run, or its data or weights are gone.
    ValueError: The run is not finished, its last checkpoint is damaged or was
      trained on other data or weights, its result is not one plain model and no
      name is given, or there is no model with this name.
    Diverged: A parameter of the model is not finite.
  """
  found = results.read(workdir)
  experiment = found.experiment
  if (tune := experiment.model.tune) in ('prompt', 'prefix'):
    raise ValueError(
      f'model.tune={tune!r} does not end with one plain model (its trained'
      ' tokens have no place in a Hugging Face folder); it cannot be deployed.'
    )
  here, values = found.here, aligned.read(workdir)
  setup = build.build(here, values=values)
  _check_plain(setup, name)
  kept = found.last()
  identity.check_content(kept.run, identity.of(setup), found.where)
  if test_examples:
    here.data.test_examples = test_examples
    setup = build.build(here, values=values)
  state = results.restore(found, kept, setup.algorithm)
  return _assemble(setup, state, name)


def _check_plain(setup: build.Setup, name: str) -> None:
  """Refuses a run without a single plain model, unless a model is named."""
  method, tune = setup.experiment.method, setup.experiment.model.tune
  if name:
    return
  if setup.algorithm.ending is not None:
    known = setup.algorithm.alone(setup.algorithm.model.theta, {})
    listed = ', '.join(filter(None, known)) or 'launch.export lists them'
    raise ValueError(
      f'method={method!r} does not end with one plain model (it has other'
      ' classifiers, blocks or factors besides): name one of those that it ends'
      f' with (--model): {listed}. `{commands.start_of("export")}` writes each as a'
      ' folder.'
    )
  if tune not in ('lora', 'full', 'head'):
    raise ValueError(
      f"model.tune={tune!r} must be 'lora', 'full' or 'head' to deploy a run: what it"
      ' adds has no place in a Hugging Face folder.'
    )


def _assemble(
  setup: build.Setup, state: server.ServerState, name: str = ''
) -> Trained:
  """Folds LoRA in, and drops what the method's model does not use."""
  ends = models.take_apart(setup.algorithm, state)
  if name not in ends:
    listed = ', '.join(ends) if any(ends) else "'': the run has one model"
    raise ValueError(f'model={name!r} must be of {listed}.')
  found, form = ends[name], 'flax'
  if not formats.FORMATS['hf'].why_not(found, setup.algorithm.task):
    found, form = folded.fold(found), 'hf'
  cfg = dataclasses.replace(found.config, full=True)
  whole = flax_folder.build(cfg, _beside(found))
  axes = foundation.flat(whole.base_axes) | foundation.flat(whole.axes)
  params = jax.device_put(found.params)
  plain = dataclasses.replace(
    whole, theta=params, base={}, axes=foundation.nest(axes), base_axes={}
  )
  return Trained(setup, found, form, cfg, plain, _amounts(cfg, params, axes))


def _beside(model: models.Model) -> dict[str, bottleneck.Bottleneck]:
  """Returns a model's bottleneck adapters, which kernels cannot take in."""
  kinds = model.adapters.items()
  return {n: a for n, a in kinds if isinstance(a, bottleneck.Bottleneck)}


def _amounts(cfg: sizes.Config, params: Tree, axes: Axes) -> dict[str, int]:
  """Returns the size of each axis of a model, which may be below `cfg`'s."""
  found: dict[str, int] = {}
  for path, leaf in foundation.flat(params).items():
    found |= dict(zip(axes[path], leaf.shape, strict=True))
  return {axis: found[axis] for axis in sizes.axis_sizes(cfg)}

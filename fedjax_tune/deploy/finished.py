"""The model of a finished run, loaded as one plain model."""

from collections.abc import Mapping
import dataclasses
import math
import os

from flax import nnx
import jax

from fedjax_tune import commands
from fedjax_tune.deploy import models, results
from fedjax_tune.engine import server
from fedjax_tune.methods.raffm import salience
from fedjax_tune.models import backbone, foundation, sizes
from fedjax_tune.training import build, identity
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
  found = results.read(workdir)
  experiment = found.experiment
  if (tune := experiment.model.tune) in ('prompt', 'prefix'):
    raise ValueError(
      f'model.tune={tune!r} does not end with one plain model (its trained'
      ' tokens have no place in a Hugging Face folder); it cannot be deployed.'
    )
  here = found.here
  setup = build.build(here)
  _check_plain(setup)
  kept = found.last()
  identity.check_content(kept.run, identity.of(setup), found.where)
  if test_examples:
    here.data.test_examples = test_examples
    setup = build.build(here)
  state = results.restore(found, kept, setup.algorithm)
  return _assemble(setup, state)


def _check_plain(setup: build.Setup) -> None:
  """Refuses what no Hugging Face folder can hold."""
  method, tune = setup.experiment.method, setup.experiment.model.tune
  if tune not in ('lora', 'full', 'head'):
    raise ValueError(
      f"model.tune={tune!r} must be 'lora', 'full' or 'head' to deploy a run: what it"
      ' adds has no place in a Hugging Face folder.'
    )
  if setup.algorithm.ending is not None:
    raise ValueError(
      f'method={method!r} does not end with one plain model (it has other'
      ' classifiers, blocks or factors besides); it cannot be deployed.'
      f' `{commands.start_of("export")}` writes each of its models as a folder.'
    )


def _assemble(setup: build.Setup, state: server.ServerState) -> Trained:
  """Folds the adapters in, and drops what the method's model does not use."""
  (model,) = models.take_apart(setup.algorithm, state).values()
  cfg = dataclasses.replace(model.config, full=True)
  shapes = nnx.eval_shape(lambda: backbone.build_model(cfg, rngs=nnx.Rngs(0)))
  whole = foundation.split(shapes, cfg.depth)
  row = next(iter(setup.algorithm.evaluation.models.values()))
  amounts = sizes.axis_sizes(cfg) | {a: int(n) for a, n in row.items()}
  params = jax.device_put(model.params)
  return Trained(setup, cfg, dataclasses.replace(whole, theta=params), amounts)

"""Which client has which model, and which shared parts it holds."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_tune import config
from fedjax_tune.engine.slabs import Signature
from fedjax_tune.models import tiers
from fedjax_tune.models.federation import SITE, tier_axis
from fedjax_tune.selection import Selection

T = TypeVar('T')


@dataclasses.dataclass(frozen=True)
class Tiers:
  """Which client has which model, and what it holds; this is the rule.

  Attributes:
    of_client: The tier of each client, by name.
    held: What a client of each tier holds: everything of its tier.
    adapters: The bottleneck of each tier's model.
  """

  of_client: tuple[str, ...]
  held: Mapping[str, Selection]
  adapters: Mapping[str, config.Fedadapter]

  @property
  def axes(self) -> frozenset[str]:
    """The axes of the tiers, of blocks and of branches."""
    return frozenset().union(*self.held.values())

  def draw(self, rnd: int, cohort: Sequence[int]) -> list[Selection]:
    """Returns what each client of the cohort holds."""
    del rnd
    return [self.held[self.of_client[k]] for k in cohort]

  def name(self, sig: Signature) -> str:
    """Names the tier of a signature's clients."""
    (name,) = (name for name in self.held if sig[tier_axis(name)])
    return name

  def only_own(
    self, name: str, leaf: jax.Array, others: jax.Array
  ) -> jax.Array:
    """Replaces the branches of other tiers in a leaf [site, branch, ...].

    Args:
      name: The tier whose branch stays.
      leaf: Cores, or their biases.
      others: What the others become, shaped like `leaf`.
    """
    names = list(self.held)
    own = np.arange(len(names)) == names.index(name)
    return jnp.where(own.reshape(-1, *[1] * (leaf.ndim - 2)), leaf, others)


def make_tiers(
  experiment: config.Experiment, sizes: Mapping[str, int], clients: int
) -> Tiers:
  """Says which client has which model.

  Args:
    experiment: The configuration.
    sizes: For each tier, under `tier_axis`, its number of blocks.
    clients: Number of clients.
  """
  names = tiers.names(experiment.tiers)
  unique = tuple(dict.fromkeys(names))
  branches = dict(zip(names, experiment.heterotune.branches, strict=False))
  if not branches:
    deepest = sorted(unique, key=lambda name: -sizes[tier_axis(name)])
    branches = {name: len(unique) - i for i, name in enumerate(deepest)}
  adapters, held = {}, {}
  for name in unique:
    adapters[name], part = _adapter(experiment, branches, name)
    membership = {tier_axis(other): int(other == name) for other in unique}
    depth = sizes[tier_axis(name)]
    if _shares_by_index(experiment):
      part[SITE] = depth
    held[name] = Selection.of({'layer': depth, **membership, **part})
  of_client = tuple(turn(names, k) for k in range(clients))
  return Tiers(of_client, held, adapters)


def _shares_by_index(experiment: config.Experiment) -> bool:
  """Whether each block of a tier has its own core, the first of all cores."""
  options, adapted = experiment.heterotune, experiment.model.tune == 'adapter'
  return options.share and adapted and options.mapping == 'index'


def turn(values: Sequence[T], client: int) -> T:
  """Returns the value of a client if clients take values in turn."""
  return values[client % len(values)]


def _adapter(
  experiment: config.Experiment, branches: Mapping[str, int], name: str
) -> tuple[config.Fedadapter, dict[str, int]]:
  """Returns a tier's bottleneck, and which part of the cores it has."""
  cfg, options = experiment.fedadapter, experiment.heterotune
  most = max(branches.values())
  if experiment.model.tune == 'head':
    return cfg, {}
  if options.reading == 'own':
    return dataclasses.replace(cfg, branches=len(branches)), {}
  if options.reading == 'nested':
    held = {'branch': branches[name]}
    return dataclasses.replace(cfg, branches=branches[name]), held
  rank, rest = divmod(cfg.rank * branches[name], most)
  if rest:
    raise ValueError(
      f'fedadapter.rank={cfg.rank} must be a multiple of {most}, the most of '
      "heterotune.branches, with heterotune.reading='width'."
    )
  return dataclasses.replace(cfg, branches=1, rank=rank), {'bottleneck': rank}

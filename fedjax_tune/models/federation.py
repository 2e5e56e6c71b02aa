"""Several foundation models that share part of what they train.

A tier is a model and the clients that have it. A tier's own parameters get a
first axis 'tier:NAME' of size 1, of which the tier's clients hold 1 and all
others 0; shared parameters have no such axis. So a client is still one
selection of one tree, and dispatch, aggregation and coverage need to know
nothing more.
"""

from collections.abc import Collection, Mapping
import dataclasses

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from fedjax_tune.models import bottleneck, foundation
from fedjax_tune.models.foundation import Foundation, Model
from fedjax_tune.typing import Allocation, Axes, Path, Tree

# Shared parameters are stacked on 'site' where a model stacks them on 'layer'.
SITE = 'site'
SHARED = 'shared'


@dataclasses.dataclass(frozen=True)
class Sites:
  """The sites at which the blocks of a model find their shared parameters.

  Block l of L, counted from 1, has the site ceil(l G / L) of G: blocks at the
  same relative depth of two models share a site.

  Attributes:
    depth: Blocks L.
    num: Sites G, at most L.
    every_block: Whether all blocks have adapters; otherwise only the last block
      of each site has one.
  """

  depth: int
  num: int
  every_block: bool = True

  @property
  def of_block(self) -> np.ndarray:
    """The site of each block int32 [L], from 0; G for a block without any."""
    block = np.arange(1, self.depth + 1)
    site = -(-block * self.num // self.depth) - 1
    if not self.every_block:
      site[~np.isin(block - 1, self.blocks)] = self.num
    return site.astype(np.int32)

  @property
  def blocks(self) -> np.ndarray:
    """The blocks that have adapters, int32 [L or G], from 0."""
    if self.every_block:
      return np.arange(self.depth, dtype=np.int32)
    site = np.arange(1, self.num + 1)
    return (site * self.depth // self.num - 1).astype(np.int32)

  def spread(self, leaf: jax.Array) -> jax.Array:
    """Gives each block its site's row of a leaf [G, ...], or zeros."""
    return jnp.take(leaf, self.of_block, axis=0, mode='fill', fill_value=0)

  def private(self, leaf: jax.Array, names: tuple[str, ...]) -> jax.Array:
    """Returns a tier's own part of a leaf, with the tier's axis first."""
    kept = leaf[self.blocks] if names[0] == 'layer' else leaf
    return kept[None]


@dataclasses.dataclass(frozen=True)
class Federation:
  """Models and what they share; takes the place of a `Foundation`.

  Attributes:
    tiers: The models, by name.
    sites: Their sites, by name.
    theta: {'shared': ..., NAME: what only tier NAME has}; without 'shared' if
      nothing is shared.
    axes: The axes of theta: 'tier:NAME' comes first unless a leaf is shared,
      and a shared leaf has 'site' if it is stacked.
  """

  tiers: Mapping[str, Foundation]
  sites: Mapping[str, Sites]
  theta: Tree
  axes: Axes

  @property
  def base(self) -> Tree:
    """Frozen parameters of each tier."""
    return {name: tier.base for name, tier in self.tiers.items()}

  @property
  def depth(self) -> int:
    """Blocks of the deepest model."""
    return max(tier.depth for tier in self.tiers.values())

  def held(self, base: Tree, alloc: Allocation) -> Tree:
    """Returns the frozen parameters of a client."""
    return base[self._name(alloc)]

  def assemble(self, base: Tree, local: Tree, alloc: Allocation) -> Model:
    """Builds the model that a client of a tier runs; see `Foundation`."""
    name = self._name(alloc)
    tier = self.tiers[name]
    return tier.assemble(
      base[name], self.own(local, name), {'layer': tier.depth}
    )

  def own(self, local: Tree, name: str) -> Tree:
    """Returns what a tier's model trains, given what its clients hold."""
    tier, sites = self.tiers[name], self.sites[name]
    axes = foundation.flat(tier.axes)
    leaves = {}
    for path, leaf in foundation.flat(local.get(name, {})).items():
      apart = axes[path][0] == 'layer' and not sites.every_block
      leaves[path] = sites.spread(leaf[0]) if apart else leaf[0]
    for path, leaf in foundation.flat(local.get(SHARED, {})).items():
      stacked = axes[path][0] == 'layer'
      leaves[path] = sites.spread(leaf) if stacked else leaf
    return traverse_util.unflatten_dict(leaves)

  def _name(self, alloc: Allocation) -> str:
    """Returns the tier to which an allocation belongs."""
    (name,) = (tier for tier in self.tiers if alloc[tier_axis(tier)] == 1)
    return name


def tier_axis(name: str) -> str:
  """Names the axis of a tier: its clients hold 1 of it, all others 0."""
  return f'tier:{name}'


def federate(
  tiers: Mapping[str, Foundation],
  shared: Collection[str],
  sites: int = 0,
  *,
  every_block: bool = True,
  by_index: bool = False,
) -> Federation:
  """Joins models that share leaves.

  Args:
    tiers: The models, by name.
    shared: Names of the shared leaves, or of modules all of whose leaves are
      shared. Their axes must not depend on a model's sizes, except for the
      layers on which they may be stacked. If an axis is shorter in one model,
      it is the beginning of the largest model's axis.
    sites: How many of each are shared; 0 takes the number of blocks of the
      shallowest model.
    every_block: See `Sites`.
    by_index: See `find_sites`.

  Raises:
    ValueError: See `find_sites`; or a tier is called 'shared', or no model has
      the largest size of every axis of a shared leaf.
  """
  if SHARED in tiers:
    raise ValueError("tiers.weights: a tier must not be called 'shared'.")
  places = find_sites(tiers, sites, every_block=every_block, by_index=by_index)
  theta: dict[str, dict[Path, jax.Array]] = {SHARED: {}}
  axes: dict[str, dict[Path, tuple[str, ...]]] = {SHARED: {}}
  for name, tier in tiers.items():
    leaves, names = foundation.flat(tier.theta), foundation.flat(tier.axes)
    own = [path for path in leaves if not _is_shared(path, shared)]
    theta[name] = {p: places[name].private(leaves[p], names[p]) for p in own}
    axes[name] = {
      p: (tier_axis(name), *(f'{name}.{axis}' for axis in names[p]))
      for p in own
    }
    for path in leaves.keys() - set(own):
      # The largest model's, so that every smaller one has a part of it.
      leaf, largest = leaves[path], theta[SHARED].get(path)
      stacked = names[path][0] == 'layer'
      leaf = leaf[: places[name].num] if stacked else leaf
      if largest is None or leaf.size > largest.size:
        leaf, largest = largest, leaf
        theta[SHARED][path] = largest
        of_site = (SITE, *names[path][1:])
        axes[SHARED][path] = of_site if stacked else names[path]
      if leaf is not None and np.any(np.array(leaf.shape) > largest.shape):
        raise ValueError(
          'heterotune.branches: no tier must have more than a deeper one with'
          " heterotune.mapping='index'."
        )
  nest = lambda tree: {
    part: traverse_util.unflatten_dict(leaves)
    for part, leaves in tree.items()
    if leaves
  }
  return Federation(tiers, places, nest(theta), nest(axes))


def find_sites(
  tiers: Mapping[str, Foundation],
  sites: int = 0,
  *,
  every_block: bool = True,
  by_index: bool = False,
) -> dict[str, Sites]:
  """Returns the sites of each model.

  Args:
    tiers: The models, by name.
    sites: Number of sites; 0 takes the number of blocks of the shallowest
      model.
    every_block: See `Sites`.
    by_index: Whether a block shares a core with the block of the same number in
      every other model, rather than with those at its relative depth. Then each
      model has as many sites as blocks, the first sites of the deepest model.

  Raises:
    ValueError: There are more sites than blocks.
  """
  if by_index:
    return {name: Sites(tier.depth, tier.depth) for name, tier in tiers.items()}
  shallowest = min(tiers, key=lambda name: tiers[name].depth)
  least = tiers[shallowest].depth
  if sites > least:
    raise ValueError(
      f'heterotune.sites={sites} must be at most {least}, the blocks of tier '
      f'{shallowest!r}.'
    )
  num = sites or least
  return {n: Sites(t.depth, num, every_block) for n, t in tiers.items()}


def _is_shared(path: Path, shared: Collection[str]) -> bool:
  """Whether a leaf, or a module that contains it, is shared."""
  return bottleneck.PRIVATE not in path and not set(path).isdisjoint(shared)

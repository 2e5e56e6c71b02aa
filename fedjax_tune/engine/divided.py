"""Frozen weights divided among devices, each block whole only while it runs.

This is known as FSDP or ZeRO-3. Every device keeps a part of each leaf, along
one of the leaf's named axes. At any time clients on different devices are at
different blocks, so blocks are assembled by an exchange in which each device
gets the block that its clients are at.
"""

import dataclasses

import jax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjax_tune import selection
from fedjax_tune.models.federation import Federation
from fedjax_tune.models.foundation import Foundation, Models
from fedjax_tune.typing import Allocation, Axes, Tree

# The axis of the mesh, which is that of the clients.
_MESH = 'clients'


def base_axes(model: Models) -> Axes:
  """Returns the names of the axes of each frozen leaf."""
  if isinstance(model, Federation):
    return {name: tier.base_axes for name, tier in model.tiers.items()}
  assert isinstance(model, Foundation)
  return model.base_axes


def divide(model: Models, mesh: Mesh) -> Models:
  """Returns a model whose frozen parameters are divided on a mesh."""
  if isinstance(model, Federation):
    tiers = {n: _divide(tier, mesh) for n, tier in model.tiers.items()}
    return dataclasses.replace(model, tiers=tiers)
  assert isinstance(model, Foundation)
  return _divide(model, mesh)


def _divide(model: Foundation, mesh: Mesh) -> Foundation:
  where = places(model.base, model.base_axes, mesh)
  return dataclasses.replace(model, base=jax.device_put(model.base, where))


def places(base: Tree, axes: Axes, mesh: Mesh) -> Tree:
  """Returns the sharding of each leaf on a mesh; see `specs`."""
  like = specs(base, axes, mesh.size)
  return jax.tree.map(lambda spec: NamedSharding(mesh, spec), like)


def beside(base: Tree, tree: Tree, *, split: bool = False) -> Tree:
  """Puts arrays on the devices of a base, so that one program reads both.

  Args:
    base: The frozen parameters.
    tree: Arrays on one device or on the host.
    split: Divide them along their first axis, if possible.
  """
  where = getattr(next(iter(jax.tree.leaves(base)), None), 'sharding', None)
  if not isinstance(where, NamedSharding) or where.mesh.size == 1:
    return jax.device_put(tree)
  size, mesh = len(jax.tree.leaves(tree)[0]) if split else 1, where.mesh
  spec = PartitionSpec(_MESH) if size % mesh.size == 0 else PartitionSpec()
  return jax.device_put(tree, NamedSharding(mesh, spec))


def specs(base: Tree, axes: Axes, devices: int) -> Tree:
  """Says how each leaf is divided: along its longest divisible axis.

  It is never divided along 'layer', as a block is exchanged as a whole. A leaf
  without such an axis is on every device.

  Args:
    base: The frozen parameters, or their shapes.
    axes: The names of their axes.
    devices: Number of devices.
  """

  def divide(leaf, names):
    sizes = zip(leaf.shape, names, range(leaf.ndim), strict=True)
    able = [
      (size, -dim)
      for size, name, dim in sizes
      if name != 'layer' and size % devices == 0
    ]
    if not able or devices == 1:
      return PartitionSpec()
    return PartitionSpec(*[None] * -max(able)[1], _MESH)

  return jax.tree.map(divide, base, axes)


@dataclasses.dataclass(frozen=True, eq=False)
class Stack:
  """A leaf [L, ...] of all blocks, divided; this device has one part.

  Attributes:
    part: The part.
    dim: The dimension along which the leaf is divided.
  """

  part: jax.Array
  dim: int

  @property
  def ndim(self) -> int:
    """As of an array."""
    return self.part.ndim

  def __getitem__(self, layer: jax.Array) -> jax.Array:
    """Returns the leaf of a block, which each device may want of another."""
    wanted = lax.all_gather(layer, _MESH)
    parts = self.part[wanted]
    dim = self.dim  # Where [L, ...] has it, [devices, ...] does.
    found = lax.all_to_all(
      parts, _MESH, split_axis=0, concat_axis=dim, tiled=True
    )
    return found[0]


def is_opened(base: Tree) -> bool:
  """Whether any leaf is assembled block by block; see `opened`."""
  return any(isinstance(leaf, Stack) for leaf in jax.tree.leaves(base))


def opened(base: Tree, axes: Axes, like: Tree, held: Allocation) -> Tree:
  """Turns a device's parts into what models read.

  Blocks are assembled one by one, as `models/stack.py` reads them. If clients
  hold parts of blocks, everything is assembled at once.

  Args:
    base: The parts of the frozen parameters that this device has.
    axes: The names of their axes.
    like: How each leaf is divided, see `specs`.
    held: What clients hold.
  """
  by_block = not set(held) & selection.axis_names(axes) - {'layer'}

  def open_leaf(leaf, names, spec):
    if not spec:
      return leaf
    dim = len(spec) - 1
    if by_block and names[0] == 'layer':
      return Stack(leaf, dim)
    return lax.all_gather(leaf, _MESH, axis=dim, tiled=True)

  return jax.tree.map(open_leaf, base, axes, like)

"""How the clients of a slab share the devices of a host."""

import dataclasses
import math

import jax
from jax.sharding import NamedSharding, PartitionSpec


def resolve(mode: str, platform: str) -> str:
  """Returns what `engine.mode` is on a platform.

  'auto' maps on 'cpu', where a vmap over clients was slower in every trial
  (`launch/bench.py`), and vmaps on accelerators.
  """
  if mode == 'auto':
    return 'map' if platform == 'cpu' else 'vmap'
  return mode


@dataclasses.dataclass(frozen=True)
class Schedule:
  """How the clients of a slab share the device.

  Attributes:
    chunk: Clients under one `vmap`; chunks run one after another. 1 is a
      plain `map`, the slab's width a plain `vmap`.
    devices: Devices among which the slab's clients are split.
    fsdp: Whether the frozen parameters are divided among them (`divided.py`).
  """

  chunk: int
  devices: int = 1
  fsdp: bool = False

  @classmethod
  def choose(
    cls,
    mode: str,
    chunk: int,
    width: int,
    devices: int = 1,
    fsdp: bool = False,
    *,
    platform: str,
  ) -> 'Schedule':
    """Resolves `engine.mode` for slabs of one width.

    It uses as many of the `devices` as divide the width.
    """
    mode = resolve(mode, platform)
    devices = math.gcd(width, devices)
    part = width // devices
    wanted = min(part, {'map': 1, 'chunk': chunk, 'vmap': part}[mode])
    chunk = max(c for c in range(1, wanted + 1) if part % c == 0)
    return cls(chunk, devices, fsdp and devices > 1)

  @property
  def shardings(self) -> tuple[NamedSharding, NamedSharding]:
    """The placement of shared arrays, and of each client's own."""
    return (
      NamedSharding(self.mesh, PartitionSpec()),
      NamedSharding(self.mesh, PartitionSpec('clients')),
    )

  @property
  def mesh(self) -> jax.sharding.Mesh:
    """The devices, along one axis named 'clients'."""
    return clients_mesh(self.devices)


def clients_mesh(devices: int) -> jax.sharding.Mesh:
  """Returns the first devices of this host, along one axis 'clients'."""
  return jax.make_mesh(
    (devices,),
    ('clients',),
    axis_types=(jax.sharding.AxisType.Auto,),
    devices=jax.local_devices()[:devices],
  )

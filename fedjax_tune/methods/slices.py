"""RaFFM's physical subnetworks: whose is how small."""

from collections.abc import Collection, Mapping, Sequence
import dataclasses

from fedjax_tune import config
from fedjax_tune.engine.group import Row
from fedjax_tune.methods import resources, spaces
from fedjax_tune.randomness import host_rng
from fedjax_tune.typing import Allocation, Tree


@dataclasses.dataclass(frozen=True)
class Slices:
  """Narrower models; a client computes with nothing else.

  Attributes:
    sizes: Size of each axis of the model.
    space: What a subnetwork can be.
    sandwich: Whether one client of a round has the smallest.
    by_device: For each client the shares of its subnetwork; () draws them.
  """

  sizes: Mapping[str, int]
  space: spaces.Space
  sandwich: bool
  by_device: tuple[tuple[float, ...], ...] = ()

  def allocate(self, seed: int, rnd: int, cohort: Sequence[int]) -> list[Row]:
    """Returns the subnetwork of each client of the cohort."""
    if self.by_device:
      shares = [self.by_device[k] for k in cohort]
    else:
      # Who has the full model is drawn; cohorts are sorted.
      roles = host_rng('roles', seed, rnd).permutation(len(cohort))
      shares = [
        self._draw(seed, rnd, k, int(role))
        for k, role in zip(cohort, roles, strict=True)
      ]
    return [spaces.row_of(share, self.sizes) for share in shares]

  def _draw(
    self, seed: int, rnd: int, client: int, role: int
  ) -> tuple[float, ...]:
    if role == 0:
      return (1.0,) * len(spaces.AXES)
    if role == 1 and self.sandwich:
      return self.space.smallest()
    return self.space.draw(host_rng('allocation', seed, rnd, client))

  def notes(self) -> Collection[str]:
    """Names nothing: rows hold axes alone."""
    return ()

  def smallest(self) -> Row:
    """Returns the smallest subnetwork of the space."""
    return spaces.row_of(self.space.smallest(), self.sizes)

  def view(self, local: Tree, alloc: Allocation) -> Tree:
    """Returns a client's parameters, all of which train."""
    del alloc
    return local


def build(
  experiment: config.Experiment, sizes: Mapping[str, int], num_clients: int
) -> Slices:
  """Builds the slices that an experiment asks for.

  Raises:
    ValueError: The space is contradictory, or a device can hold no subnetwork
      of it in time.
  """
  options = experiment.raffm
  space = spaces.make_space(options)
  by_device = ()
  if options.sampling == 'resource':
    by_device = resources.fit(experiment, space, sizes, num_clients)
  return Slices(sizes, space, options.sampling == 'sandwich', by_device)

"""RaFFM's physical subnetworks: how large each client's is."""

from collections.abc import Mapping, Sequence
import dataclasses

from fedjax_tune import config
from fedjax_tune.engine.randomness import host_rng
from fedjax_tune.methods.raffm import spaces
from fedjax_tune.selection import Selection


@dataclasses.dataclass(frozen=True)
class Slices:
  """Narrower models; a client computes with nothing else.

  With random and sandwich sampling one client of a round has the full model.
  With sandwich sampling another has the smallest. All others have a random one.

  Attributes:
    sizes: Size of each axis of the model.
    space: What a subnetwork can be.
    seed: Seed of the run.
    sandwich: Whether one client of a round has the smallest.
    by_device: For each client the shares of its subnetwork; () draws them.
    purpose: Purpose of the draws, for `host_rng`.
  """

  sizes: Mapping[str, int]
  space: spaces.Space
  seed: int
  sandwich: bool
  by_device: tuple[tuple[float, ...], ...] = ()
  purpose: str = 'allocation'

  @property
  def axes(self) -> frozenset[str]:
    """All axes that a space may narrow."""
    names = (name for axes in spaces.AXES.values() for name in axes)
    return frozenset(name for name in names if name in self.sizes)

  def draw(self, rnd: int, cohort: Sequence[int]) -> list[Selection]:
    """Returns the subnetwork of each client of the cohort."""
    if self.by_device:
      shares = [self.by_device[k] for k in cohort]
    else:
      # Who has the full model is drawn; cohorts are sorted.
      roles = host_rng('roles', self.seed, rnd).permutation(len(cohort))
      shares = [
        self._draw(rnd, k, int(role))
        for k, role in zip(cohort, roles, strict=True)
      ]
    return [self.held(share) for share in shares]

  def _draw(self, rnd: int, client: int, role: int) -> tuple[float, ...]:
    if role == 0:
      return (1.0,) * len(spaces.AXES)
    if role == 1 and self.sandwich:
      return self.space.smallest()
    return self.space.draw(host_rng(self.purpose, self.seed, rnd, client))

  def held(self, shares: tuple[float, ...]) -> Selection:
    """Returns what a subnetwork holds."""
    return Selection.of(spaces.row_of(shares, self.sizes))


def build(
  experiment: config.Experiment,
  sizes: Mapping[str, int],
  by_device: tuple[tuple[float, ...], ...] = (),
) -> Slices:
  """Builds the slices that an experiment asks for.

  Args:
    experiment: The configuration.
    sizes: Size of each axis of the model.
    by_device: For each client what fits its device, with resource sampling.

  Raises:
    ValueError: The space is contradictory.
  """
  options = experiment.raffm
  sandwich = options.sampling == 'sandwich'
  space = spaces.make_space(options)
  return Slices(sizes, space, experiment.seed, sandwich, by_device)

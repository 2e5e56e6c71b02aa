"""The models that a run of HeteroTune ends with, and what each is made of.

For each tier this is the frozen model with what its clients ended with. If
clients keep their own parts (`keeping.py`), there is no such model of a tier:
each client that ever took part has a model. With a common head each tier has an
additional one, with the initial values of the parts that clients keep: this is
what a new client gets.
"""

import dataclasses

from fedjax_tune import config
from fedjax_tune.engine.algorithm import Alone
from fedjax_tune.methods.heterotune.membership import Tiers
from fedjax_tune.models.federation import Federation
from fedjax_tune.selection import select_within
from fedjax_tune.typing import Tree

# What became of the projections, after 'its'.
_PROJECTIONS = {
  'aligned': 'projections were computed from public inputs and never trained',
  'random': 'projections were drawn and never trained',
}


@dataclasses.dataclass(frozen=True)
class Leaving:
  """Takes the models of a federation apart.

  Attributes:
    experiment: The run's experiment.
    model: Its models.
    each: The tier of each client.
  """

  experiment: config.Experiment
  model: Federation
  each: Tiers

  def tiers(self, theta: Tree) -> dict[str, Alone]:
    """Returns the models of the tiers."""
    return self._each(theta, 'is the mean over the clients of its own tier')

  def newcomers(self, theta: Tree) -> dict[str, Alone]:
    """Returns the tiers' models for new clients.

    Args:
      theta: Trained parameters, with initial values of the parts that clients
        keep.
    """
    if self.experiment.tiers.head == 'own':
      return {}
    rest = 'is as every client begins with it, and then keeps it'
    return self._each(theta, rest)

  def _each(self, theta: Tree, rest: str) -> dict[str, Alone]:
    return {name: self._one(theta, name, rest) for name in self.each.held}

  def client(self, theta: Tree, client: int) -> Alone:
    """Returns the model of a client.

    Args:
      theta: Trained parameters, with what the client has kept in place of its
        tier's.
      client: The client's id.
    """
    name = self.each.of_client[client]
    return self._one(theta, name, f'is what client {client} has kept to itself')

  def _one(self, theta: Tree, name: str, rest: str) -> Alone:
    held = select_within(theta, self.model.axes, self.each.held[name])
    own, depth = self.model.own(held, name), self.model.tiers[name].depth
    about = self._describe(name, rest if name in theta else '')
    return Alone(own, {'layer': depth}, name, about)

  def _describe(self, name: str, rest: str) -> str:
    """Describes what a model is made of; `rest` describes unshared parts."""
    e, adapted = self.experiment, self.experiment.model.tune == 'adapter'
    shared = []
    if adapted and e.heterotune.share:
      shared.append("its adapters' cores")
    if e.tiers.head != 'own' and e.heterotune.share:
      shared.append('its head')
    parts = []
    if shared:
      parts.append(f'{" and ".join(shared)} learned from all tiers')
    if adapted and e.fedadapter.projections in _PROJECTIONS:
      parts.append(f'its {_PROJECTIONS[e.fedadapter.projections]}')
    if rest:
      parts.append(f'what {"else " if parts else ""}trains {rest}')
    return f'Tier {name} of {", ".join(self.each.held)}: {"; ".join(parts)}.'

"""FedRolex: a window of every width that rolls with the rounds.

Alam, Liu, Yan, Zhang, "FedRolex: Model-Heterogeneous Federated Learning with
Rolling Sub-Model Extraction", NeurIPS 2022, arXiv 2212.01548; the authors'
code is github.com/AIoT-MLSys-Lab/FedRolex (resnet_server.py,
transformer_server.py, config.yml).
"""

from collections.abc import Mapping
import dataclasses
from typing import TypeVar

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from fedjax_tune import config
from fedjax_tune.engine.algorithm import Algorithm, Client, Context, LossAndSums
from fedjax_tune.engine.client import Batch
from fedjax_tune.methods import refusals
from fedjax_tune.methods.facts import Facts
from fedjax_tune.methods.width import heterofl, rates
from fedjax_tune.models.foundation import Model
from fedjax_tune.selection import Selection

# A round, on the host or on the device.
T = TypeVar('T', int, jax.Array)

# Axes inside heads, of queries and keys, and of values.
_IN_HEADS = ('qk_dim', 'v_dim')


@dataclasses.dataclass(frozen=True)
class Rolling(rates.Prefix):
  """A window of every axis that rolls by one in each round.

  All clients of a round share the roll, so the narrower of two windows is
  inside the wider. The window is the beginning of `torch.roll(arange(n), round
  % n)` and moves backwards: half of 12 is 0 to 5 at first, then 11, 0, 1, 2, 3,
  4.

  Attributes:
    roll: 'backward', or 'forward', which starts at position `rnd`.
  """

  roll: str = 'backward'

  def choose(
    self, rnd: int, client: int, amounts: Mapping[str, int]
  ) -> Mapping[str, np.ndarray | int]:
    """Returns the windows, which wrap around the end."""
    del client
    shift = self.shift(rnd)
    return {
      axis: (np.arange(amount) - shift) % self.sizes[axis]
      for axis, amount in amounts.items()
    }

  def shift(self, rnd: T) -> T:
    """Returns how far axes are rolled in a round, as `torch.roll` counts."""
    return -rnd if self.roll == 'forward' else rnd


def mixing(client: Client, widths: Rolling) -> Client:
  """Returns the client whose heads are assembled as in the authors' code."""

  def loss(
    model: Model, batch: Batch, context: Context, key: jax.Array
  ) -> LossAndSums:
    shift = widths.shift(context.rnd)
    mixed = _mix_heads(model, context.held, widths.sizes, shift)
    return client.loss(mixed, batch, context, key)

  return dataclasses.replace(client, loss=loss)


def _mix_heads(
  model: Model, held_by: Selection, sizes: Mapping[str, int], shift: jax.Array
) -> Model:
  """Returns a model whose heads are cut from a rolled, flat axis.

  Channel j of head h comes from position h n + j - shift of the flat axis,
  where n is the width of a head. That is channel (j - shift) mod n, the one
  that the client holds in this place, of the head floor((j - shift) / n) after
  h.
  """
  graph, state = nnx.split(model)
  is_variable = lambda v: isinstance(v, nnx.Variable)

  def mix(variable):
    names = variable.get_metadata('axes')
    inside = [axis for axis in _IN_HEADS if axis in names and axis in sizes]
    if not inside:
      return variable
    (axis,), x = inside, variable[...]
    heads, channels = names.index('heads'), names.index(axis)
    n, count = sizes[axis], x.shape[channels]
    held = held_by.get(axis, count)
    channel = jnp.arange(held) if isinstance(held, int) else jnp.asarray(held)
    place = jnp.mod(channel + shift, n)
    after = jnp.floor_divide(place - shift, n)
    at = jnp.mod(
      jnp.arange(x.shape[heads])[:, None] + after[None], x.shape[heads]
    )
    shape = [1] * x.ndim
    shape[heads], shape[channels] = at.shape
    at = (at if heads < channels else at.T).reshape(shape)
    return variable.replace(jnp.take_along_axis(x, at, axis=heads))

  mixed = jax.tree.map(mix, state, is_leaf=is_variable)
  return nnx.merge(graph, mixed)


def build(facts: Facts) -> Algorithm:
  """Builds FedRolex: HeteroFL whose prefixes roll by one in each round.

  Like their configuration (`scale: 1, mask: 1`) and their servers' `combine`,
  it scales activations, masks the loss and averages the head by class. The full
  model is evaluated: a window is another one in each round.

  Where this departs from the authors' code:
    - They roll flattened queries, keys and values. So from the second round on
      each head of a client, even of one that holds everything, mixes channels
      of two different heads. Here windows roll within heads;
      `width.across_heads` does what they do. The channels that a round trains
      are the same.
    - They weight clients by how often a coordinate was updated. Clients that
      hold a coordinate share that number, except that clients later in the loop
      find it already raised; the mean here is uniform.
    - Their option `overlap` is not supported.
  """
  options = facts.experiment.width
  widths = Rolling(*rates.of(facts), options.roll)
  client = heterofl.client(facts, widths)
  if options.across_heads:
    client = mixing(client, widths)
  return dataclasses.replace(
    rates.fedavg(facts, widths),
    client=client,
    aggregator=heterofl.aggregator(facts),
  )


def check(
  experiment: config.Experiment,
  sizes: Mapping[str, int],
  budgets: tuple[int, ...],
) -> None:
  """Checks the options.

  Raises:
    ValueError: See `rates.check`; or `width.across_heads` is set for a model
      with rotary positions, or where whole heads are cut.
  """
  section = experiment.width
  if section.across_heads:
    field = 'width.across_heads=True'
    refusals.decoder(sizes, field, 'it mixes the channels of its heads')
    if 'heads' in section.axes:
      raise ValueError(
        f'{field} must be False where width.axes={section.axes} cuts heads.'
      )
  rates.check(experiment, sizes, budgets)

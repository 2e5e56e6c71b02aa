"""FedRolex: a window of every width that rolls with the rounds.

Alam, Liu, Yan, Zhang, "FedRolex: Model-Heterogeneous Federated Learning with
Rolling Sub-Model Extraction", NeurIPS 2022, arXiv 2212.01548; the authors'
code is github.com/AIoT-MLSys-Lab/FedRolex (resnet_server.py,
transformer_server.py, config.yml).
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from fedjax_tune import config
from fedjax_tune.engine.client import Batch
from fedjax_tune.engine.group import Row, Signature
from fedjax_tune.methods import base, heterofl, width
from fedjax_tune.typing import Allocation

# Axes inside heads, of queries and keys, and of values.
_IN_HEADS = ('qk_dim', 'v_dim')


@dataclasses.dataclass(frozen=True)
class FedRolex(heterofl.HeteroFL):
  """HeteroFL whose prefixes roll by one in each round.

  Like their configuration (`scale: 1, mask: 1`) and their servers' `combine`,
  it scales activations, masks the loss and averages the head by class. All
  clients of a round share the roll, so the narrower of two windows lies within
  the wider.

  The window is the beginning of `torch.roll(arange(n), round % n)` and moves
  backwards: of 12 a half is 0 to 5 at first, then 11, 0, 1, 2, 3, 4.

  Where this departs from the authors' code:
    - They roll flattened queries, keys and values, so that from the second
      round on each head of a client, a full one's too, is put together from
      channels of two heads that never met. Here windows roll within heads;
      `across_heads` is theirs. Which channels a round trains is the same.
    - They weight clients by how often a coordinate was updated. Clients that
      hold a coordinate share that number, but for those that come later in
      the loop and find it already raised; the mean here is uniform.
    - Their option `overlap` is not here.

  Attributes:
    roll: 'backward', or 'forward': from position `rnd` on.
    across_heads: Put a client's heads together as their code does.
  """

  roll: str = 'backward'
  across_heads: bool = False

  def choose(self, rnd: int, client: int, amounts: Mapping[str, int]) -> Row:
    """Returns the windows, around the end."""
    del client
    shift = rnd if self.roll == 'forward' else -rnd
    return {
      axis: (np.arange(amount) + shift) % self.sizes[axis]
      for axis, amount in amounts.items()
    }

  def evaluations(self) -> dict[str, Row]:
    """Evaluates the full model: a window is another one in each round."""
    return base.Method.evaluations(self)

  def loss(
    self,
    sig: Signature,
    model: Any,
    alloc: Allocation,
    batch: Batch,
    key: jax.Array,
    rnd: jax.Array,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """HeteroFL's loss; with `across_heads` of the model with mixed heads."""
    if self.across_heads:
      model = _mix_heads(model, alloc, self.sizes, rnd)
    return super().loss(sig, model, alloc, batch, key, rnd)


def _mix_heads(
  model: Any, alloc: Allocation, sizes: Mapping[str, int], rnd: jax.Array
) -> Any:
  """Returns a model whose heads are cut from a rolled, flat axis.

  Head h of the client has what stands at h n + j - rnd of the flat axis, n the
  width of a head: channel (j - rnd) mod n, which is the one that it holds in
  this place, of the head floor((j - rnd) / n) after its own.
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
    held = alloc.get(axis, count)
    channel = jnp.arange(held) if isinstance(held, int) else jnp.asarray(held)
    place = jnp.mod(channel + rnd, n)
    after = jnp.floor_divide(place - rnd, n)
    at = jnp.mod(
      jnp.arange(x.shape[heads])[:, None] + after[None], x.shape[heads]
    )
    shape = [1] * x.ndim
    shape[heads], shape[channels] = at.shape
    at = (at if heads < channels else at.T).reshape(shape)
    return variable.replace(jnp.take_along_axis(x, at, axis=heads))

  mixed = jax.tree.map(mix, state, is_leaf=is_variable)
  return nnx.merge(graph, mixed)


def build(
  experiment: config.Experiment,
  sizes: Mapping[str, int],
  budgets: tuple[int, ...],
) -> FedRolex:
  """Builds FedRolex from an experiment.

  Raises:
    ValueError: `width.across_heads` for a model with rotary positions, or
      where whole heads are cut.
  """
  section = experiment.width
  if section.across_heads:
    field = 'width.across_heads=True'
    base.refuse_decoder(sizes, field, 'it mixes the channels of its heads')
    if 'heads' in section.axes:
      raise ValueError(
        f'{field} must be False where width.axes={section.axes} cuts heads.'
      )
  return FedRolex(
    *width.common(experiment, sizes, budgets),
    **heterofl.options(experiment),
    roll=section.roll,
    across_heads=section.across_heads,
  )

"""Clients that keep for themselves what their tier would otherwise average.

Their projections, gates and heads are client state, unless these are shared or
frozen; only what all tiers share is sent. In the same way Co-LoRA (FedMosaic,
arXiv 2506.11024) leaves a LoRA with each client.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_tune.engine.algorithm import (
  Aggregator,
  Algorithm,
  Alone,
  Context,
  CountTraffic,
  Sent,
  Traffic,
)
from fedjax_tune.engine.slabs import Signature
from fedjax_tune.methods import compose
from fedjax_tune.methods.heterotune.leaving import Leaving
from fedjax_tune.methods.heterotune.membership import Tiers
from fedjax_tune.models.federation import SHARED
from fedjax_tune.models.foundation import num_params
from fedjax_tune.typing import Tree


@dataclasses.dataclass(frozen=True)
class Flat:
  """The own parts of tiers as vectors, padded to the length of the longest.

  So clients of every tier remember arrays of the same shape.

  Attributes:
    parts: For each tier, what its clients start with.
  """

  parts: Mapping[str, Tree]

  @property
  def size(self) -> int:
    """The length of the vectors."""
    return max(map(num_params, self.parts.values()))

  def pack(self, part: Tree) -> jax.Array:
    """Returns a tier's part as a vector."""
    flat = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(part)])
    return jnp.pad(flat, (0, self.size - flat.size))

  def unpack(self, name: str, vector: jax.Array) -> Tree:
    """Returns the part of a tier."""
    leaves, treedef = jax.tree.flatten(self.parts[name])
    ends = np.cumsum([leaf.size for leaf in leaves])
    pieces = jnp.split(vector[: ends[-1]], ends[:-1])
    shaped = [p.reshape(x.shape) for p, x in zip(pieces, leaves, strict=True)]
    return jax.tree.unflatten(treedef, shaped)


def keep(algorithm: Algorithm, each: Tiers, leaves: Leaving) -> Algorithm:
  """Returns HeteroTune whose clients keep the own parts of their tier.

  Args:
    algorithm: HeteroTune that averages these parts within each tier.
    each: The tiers.
    leaves: Splits the federation into its models.

  Raises:
    ValueError: A tier has nothing of its own.
  """
  theta, client = algorithm.model.theta, algorithm.client
  if lacking := [name for name in each.held if name not in theta]:
    raise ValueError(
      f'heterotune.personal=True must be False: tier {lacking[0]!r} trains'
      ' nothing that is not shared.'
    )
  flat = Flat({name: theta[name] for name in each.held})
  first = {n: np.asarray(flat.pack(part)) for n, part in flat.parts.items()}

  def init(held: Tree, context: Context, key: jax.Array) -> Tree:
    name = each.name(context.sig)
    started = client.init(held, context, key)
    return {**started, name: flat.unpack(name, context.state)}

  def finish(
    start: Tree, delta: Tree, steps: jax.Array, context: Context
  ) -> Sent:
    sent, name = (
      client.finish(start, delta, steps, context),
      each.name(context.sig),
    )
    end = jax.tree.map(jnp.add, start[name], delta[name])
    return sent._replace(tree={SHARED: sent.tree[SHARED]}, state=flat.pack(end))

  def own(name: str, theta: Tree, vector: jax.Array) -> Tree:
    return {**theta, name: flat.unpack(name, vector)}

  def ending(theta: Tree, clients: Mapping[int, Tree]) -> dict[str, Alone]:
    name = each.of_client
    return leaves.newcomers(theta) | {
      f'client{k}': leaves.client(own(name[k], theta, vector), k)
      for k, vector in sorted(clients.items())
    }

  return dataclasses.replace(
    algorithm,
    client=dataclasses.replace(
      client,
      init=init,
      finish=finish,
      state=lambda k: first[each.of_client[k]],
    ),
    aggregator=_without(algorithm.aggregator, tuple(each.held)),
    evaluation=dataclasses.replace(algorithm.evaluation, personal=own),
    ending=ending,
    traffic=_of_shared(algorithm.traffic),
  )


def _without(aggregator: Aggregator, names: Sequence[str]) -> Aggregator:
  """Returns an aggregator that neither sums nor changes some parts of theta."""
  return compose.partition(dict.fromkeys(names, compose.PRIVATE), aggregator)


def _of_shared(count: CountTraffic) -> CountTraffic:
  """Counts the bytes of the shared parts only."""

  def traffic(
    sig: Signature,
    cohort: Sequence[Signature],
    held: Callable[[Signature], Tree],
  ) -> Traffic:
    return count(sig, cohort, lambda s: {SHARED: held(s)[SHARED]})

  return traffic

"""A head alone, on features that the frozen model below it has computed."""

import dataclasses
from typing import Any

from flax import nnx
import jax
from jaxtyping import Array, Float

from fedjax_tune.models.foundation import Foundation, Model
from fedjax_tune.typing import Allocation, AnyArray, Tree


class Head(nnx.Module):
  """A classifier of features."""

  def __init__(self, head: Any) -> None:
    self.head = head

  def __call__(
    self,
    features_BxD: Float[Array, 'B D'],
    layers_N: AnyArray,
    *,
    key: jax.Array | None = None,
  ) -> Float[Array, 'B K']:
    """Returns the logits; the blocks have run before."""
    del layers_N, key
    return self.head(features_BxD)


@dataclasses.dataclass(frozen=True)
class Probe(Foundation):
  """A model that trains only its head, on features.

  It holds and counts the frozen parameters like any model, since a client needs
  them to compute its features; but its local steps do not use them.

  Attributes:
    whole: The model that makes the features.
  """

  whole: Foundation

  def assemble(self, base: Tree, local: Tree, alloc: Allocation) -> Model:
    """Builds the head that a client trains."""
    del base, alloc
    return nnx.merge(self.graph, nnx.State(local))


def probe(whole: Foundation) -> Probe:
  """Returns the head of a model, which reads features.

  Raises:
    ValueError: More than the head trains.
  """
  if set(whole.theta) != {'head'}:
    raise ValueError(
      "engine.cache_frozen=True: the head alone must train, as model.tune='head'"
      f' has it; here trains {", ".join(whole.theta)}.'
    )
  model = whole.merge(whole.base, whole.theta)
  graph, _ = nnx.split(Head(model.head))
  return Probe(
    graph,
    whole.theta,
    whole.base,
    whole.axes,
    whole.base_axes,
    whole.depth,
    whole,
  )

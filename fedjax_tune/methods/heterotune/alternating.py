"""Clients that train shared parts and their own parts in turn.

H2Tune (arXiv 2507.22633; its abstract and its code were read,
github.com/AntarcticLu/H2Tune) puts a matrix T between the A and B of a client's
LoRA; T has the same shape in all models. This file takes up its idea: clients
share only T, and train T and their own A and B alternately, each with the other
frozen, so that shared and own knowledge separate. In H2Tune's code, from the
second round on, each batch gives a gradient for T and then one for A and B, and
one step takes both. It adds penalties: the norm of T, its divergence from the
last round's T, and the divergence of the outputs of the second half from those
of the first.

What is ours: the shared part is that of a FedAdapter (cores, and a common
head). The other part has projections, gates and everything else that the
clients of a tier average, or with `heterotune.personal` keep for themselves, as
in H2Tune. The parts train in turn by local step, the shared part first, each
with its own optimizer state. Projections start aligned, where H2Tune draws
them. There are no penalties.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_tune.models.federation import SHARED
from fedjax_tune.typing import Tree


class Turns(NamedTuple):
  """The state of `in_turn`.

  Attributes:
    step: How many steps were taken, int32.
    shared: The optimizer's state of the shared part.
    own: The optimizer's state of the rest.
  """

  step: jax.Array
  shared: Tree
  own: Tree


def in_turn(
  optimizer: optax.GradientTransformation,
) -> optax.GradientTransformation:
  """Returns an optimizer that steps the shared part and the rest in turn.

  Guarantees:
    - The part whose turn it is not does not change, nor does its optimizer
      state, and clipping sees only the gradients of the other part.
  """
  shared = optax.masked(optimizer, lambda tree: _is_shared(tree, True))
  own = optax.masked(optimizer, lambda tree: _is_shared(tree, False))

  def init(params: Tree) -> Turns:
    return Turns(
      jnp.zeros((), jnp.int32), shared.init(params), own.init(params)
    )

  def update(
    grads: Tree, state: Turns, params: Tree = None
  ) -> tuple[Tree, Turns]:
    first = state.step % 2 == 0
    moved, of_shared = shared.update(grads, state.shared, params)
    rest, of_own = own.update(grads, state.own, params)

    def move(is_shared: bool, a: jax.Array, b: jax.Array) -> jax.Array:
      return jnp.where(first, a, 0) if is_shared else jnp.where(first, 0, b)

    updates = jax.tree.map(move, _is_shared(grads, True), moved, rest)
    pick = lambda turn: lambda new, old: jnp.where(turn, new, old)
    return updates, Turns(
      state.step + 1,
      jax.tree.map(pick(first), of_shared, state.shared),
      jax.tree.map(pick(~first), of_own, state.own),
    )

  return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def _is_shared(tree: Tree, answer: bool) -> Tree:
  """Says for each leaf whether it is shared, or whether it is not."""
  return {
    name: jax.tree.map(lambda _, same=(name == SHARED) == answer: same, part)
    for name, part in tree.items()
  }

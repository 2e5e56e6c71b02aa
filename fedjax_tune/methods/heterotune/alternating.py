"""Clients that train what is shared and what is their own in turn.

H2Tune (arXiv 2507.22633; code github.com/AntarcticLu/H2Tune, read) puts between
the A and B of a client's LoRA a matrix T, of one shape in all models, around
which A and B also meet directly. Theirs is what this file takes up: T alone is averaged, and a
client does not train it together with A and B, but one with the other frozen, so that
what is shared and what is a client's own come apart. Its code does both
for each batch, T first, and adds penalties: the norm of T, T's divergence from its
last value, and that of the outputs from those of the first half.

Ours: the shared part is that of a FedAdapter (cores, and a head in common), what is
a tier's own are projections, gates and heads, and with `heterotune.personal` all that
is a client's own, as there. The two take turns by local step, the shared part
first, each with an optimizer state of its own, from projections that are aligned (theirs are
drawn). There are no penalties.
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
    own: That of the rest.
  """

  step: jax.Array
  shared: Tree
  own: Tree


def in_turn(
  optimizer: optax.GradientTransformation,
) -> optax.GradientTransformation:
  """Returns an optimizer that moves the shared part, then the rest, and so on.

  Guarantees:
    - Neither a part that rests nor its optimizer state moves, and
      clipping sees the gradients of the other part alone.
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
  """Says of each leaf whether it is shared, or whether it is not."""
  return {
    name: jax.tree.map(lambda _, same=(name == SHARED) == answer: same, part)
    for name, part in tree.items()
  }

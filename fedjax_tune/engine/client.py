"""The client update: local steps of any optax optimizer, as a pure function."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax

from fedjax_tune.data.tasks import Sums
from fedjax_tune.engine.gradient import Batch as Batch
from fedjax_tune.engine.gradient import Gradient, Objective, Parts, in_parts, of
from fedjax_tune.typing import Tree

# (step, steps) -> factor of the learning rate at a local step of the client's.
RateSchedule = Callable[[jax.Array, jax.Array], jax.Array]


def client_update(
  objective: Objective,
  optimizer: optax.GradientTransformation,
  start: Tree,
  batches: Batch,
  key: jax.Array,
  lr: jax.Array,
  schedule: RateSchedule | None = None,
) -> tuple[Tree, Sums]:
  """Trains one client's selection on its batches.

  Args:
    objective: The loss to differentiate.
    optimizer: Built with learning rate 1; its state is fresh.
    start: The client's part of theta.
    batches: Batches with a leading axis of local steps [S, B, ...]. A step
      without any valid example changes nothing.
    key: The client's key of this round.
    lr: Learning rate of this round.
    schedule: How the rate falls from step to step; None keeps it. A client's
      steps are those with examples, the first of S.

  Returns:
    delta = end - start, and the metrics summed over steps.
  """
  gradient = of(objective)
  return take_steps(gradient, optimizer, start, batches, key, lr, schedule)


def take_steps(
  gradient: Gradient,
  optimizer: optax.GradientTransformation,
  start: Tree,
  batches: Batch,
  key: jax.Array,
  lr: jax.Array,
  schedule: RateSchedule | None = None,
  lengths: Sequence[int] = (),
  parts: Parts | None = None,
) -> tuple[Tree, Sums]:
  """Does what `client_update` does, given the gradient of the loss.

  Args:
    gradient: Returns the gradient of a batch.
    optimizer: See `client_update`, as for the next five.
    start: The client's part of theta.
    batches: The client's batches.
    key: The client's key.
    lr: The learning rate.
    schedule: How the rate falls.
    lengths: Tokens to which parts of batches are padded, ascending.
    parts: The parts of each batch, with an axis of steps; None runs batches
      whole.
  """

  def step(carry, inputs):
    index, batch, own = inputs
    given = (carry[0], batch, jax.random.fold_in(key, index))
    if own is None:
      metrics, grads = gradient(*given)
    else:
      metrics, grads = in_parts(gradient, lengths, own, *given)
    rate = lr if schedule is None else lr * schedule(index, total)

    def move(local, state):
      updates, state = optimizer.update(grads, state, local)
      return jax.tree.map(lambda w, u: w + rate * u, local, updates), state

    # Unlike a choice between old and new numbers, this changes them in place.
    stay = lambda local, state: (local, state)
    return jax.lax.cond(jnp.any(batch.valid), move, stay, *carry), metrics

  steps = jnp.arange(batches.valid.shape[0])
  # Padding is a client, too, of no steps.
  total = jnp.maximum(jnp.sum(jnp.any(batches.valid, -1)), 1)
  carry = (start, optimizer.init(start))
  (end, _), metrics = jax.lax.scan(step, carry, (steps, batches, parts))
  delta = jax.tree.map(jnp.subtract, end, start)
  return delta, jax.tree.map(lambda m: jnp.sum(m, 0), metrics)

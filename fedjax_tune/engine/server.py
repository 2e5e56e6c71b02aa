"""The server: any optax optimizer on the mean delta."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_tune.engine.algorithm import Aggregator, Algorithm, GroupSums
from fedjax_tune.typing import Tree


class ServerState(NamedTuple):
  """Everything that changes from round to round.

  Attributes:
    theta: The shared trainable parameters.
    opt_state: State of the server optimizer.
    memory: What else the server remembers.
    clients: What each client remembers, by its id (`store.py`).
  """

  theta: Tree
  opt_state: optax.OptState
  memory: Tree
  clients: Tree = ()


def build_server_step(
  aggregator: Aggregator, opt: optax.GradientTransformation
) -> Callable[[ServerState, GroupSums], ServerState]:
  """Builds step(state, totals) -> state.

  Guarantees:
    - If nobody held a coordinate, neither it nor its optimizer state changes.
    - If no client counts, nothing changes, not even what the method remembers.
  """

  def step(state, totals):
    update, memory = aggregator.merge(state.theta, totals, state.memory)
    grads = jax.tree.map(jnp.negative, update.delta)
    moves, opt_state = opt.update(grads, state.opt_state, state.theta)
    theta = optax.apply_updates(state.theta, moves)
    # The same rule for what the optimizer remembers of each parameter; its
    # other state (step counts) always moves.
    state_covered = optax.tree.map_params(
      opt,
      lambda _, covered: covered,
      opt_state,
      update.covered,
      transform_non_params=lambda _: True,
    )
    theta = jax.tree.map(jnp.where, update.covered, theta, state.theta)
    opt_state = jax.tree.map(
      jnp.where, state_covered, opt_state, state.opt_state
    )
    some = anybody(totals)
    keep = lambda new, old: jnp.where(some, new, old)
    moved = state._replace(theta=theta, opt_state=opt_state, memory=memory)
    return jax.tree.map(keep, moved, state)

  return step


def anybody(totals: GroupSums) -> jax.Array:
  """Says whether any client counts in sums, a bool scalar."""
  weights = jax.tree.leaves([total.den for total in totals.values()])
  return jnp.any(jnp.stack([jnp.any(w != 0) for w in weights]))


def build_reorder(
  algorithm: Algorithm,
) -> Callable[[ServerState], ServerState]:
  """Builds the step that lets a method reorder parameters between rounds.

  The server optimizer's state of a parameter moves with it.
  """

  def reorder(state):
    find = algorithm.reorder
    move = find and find(state.theta, algorithm.model.axes)
    if move is None:
      return state
    like = jax.tree.structure(state.theta)
    is_like = lambda tree: jax.tree.structure(tree) == like
    carry = lambda tree: move(tree) if is_like(tree) else tree
    theta, opt_state = jax.tree.map(
      carry, (state.theta, state.opt_state), is_leaf=is_like
    )
    return state._replace(theta=theta, opt_state=opt_state)

  return reorder

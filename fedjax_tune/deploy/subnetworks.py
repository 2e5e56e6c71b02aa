"""Chooses the subnetworks of a finished run to deploy or to compare."""

from collections.abc import Iterator, Sequence
import itertools
import math

import jax.numpy as jnp
import numpy as np

from fedjax_tune.deploy import deployment, finished
from fedjax_tune.engine.randomness import host_rng
from fedjax_tune.methods.raffm import spaces
from fedjax_tune.report import scaling
from fedjax_tune.typing import Allocation

# Shares of the head width and of the MLP's, where a run has no space of its
# own; the two together, as one alone would be cut to nothing.
_STEPS = 64
# Of the same shares: the budgets of a curve.
_LEVELS = tuple(k / 8 for k in range(2, 8))
# Least share of the width of heads in a draw: with less, little works in any
# order.
_LEAST = 1 / 4
# A subnetwork at a budget uses at least this share of it.
_USED = 0.98


def parse(text: str, trained: finished.Trained) -> Allocation:
  """Reads a subnetwork, as in 'head_dim=0.5,ffn=0.4'.

  Raises:
    ValueError: A field is unknown or given twice, or its value is no share in
      (0, 1].
  """
  shares: dict[str, float] = {}
  for part in text.split(','):
    name, _, value = part.partition('=')
    if name not in spaces.AXES or name in shares:
      raise ValueError(
        f'space={text!r}: {name!r} must be one of {", ".join(spaces.AXES)},'
        ' and each at most once.'
      )
    try:
      shares[name] = float(value)
    except ValueError:
      shares[name] = 0
    if not 0 < shares[name] <= 1:
      raise ValueError(f'space={text!r}: {part} must be a share in (0, 1].')
  every = tuple(shares.get(name, 1.0) for name in spaces.AXES)
  return trained.held(spaces.row_of(every, trained.sizes))


def count(budget: float, trained: finished.Trained) -> int:
  """Returns a budget in parameters.

  Args:
    budget: A share of the full model's parameters if at most 1, else a number
      of parameters.
    trained: The run.

  Raises:
    ValueError: The budget is not above 0.
  """
  if not budget > 0:
    raise ValueError(
      f'budget={budget:g} must be above 0: a share, or a number of parameters.'
    )
  return int(budget * trained.num_params({}) if budget <= 1 else budget)


def largest(budget: float, trained: finished.Trained) -> Allocation:
  """Returns the largest subnetwork within a budget.

  Candidates are the subnetworks that a run of RaFFM trained, if one of them
  fits. Otherwise heads and MLPs are narrowed by the same share, in steps of
  1/64; a decoder gets fewer heads instead.

  Raises:
    ValueError: No subnetwork is that small.
  """
  limit = count(budget, trained)
  for rows in (_trained_rows(trained), _even_rows(trained)):
    fitting = [row for row in rows if trained.num_params(row) <= limit]
    if fitting:
      return max(fitting, key=trained.num_params)
  least = min(map(trained.num_params, _even_rows(trained)))
  share = least / trained.num_params({})
  raise ValueError(
    f'budget={budget:g} must be at least {least} parameters (a share of'
    f' {share:.3f}), the smallest subnetwork: embedding and head are kept.'
  )


def _trained_rows(trained: finished.Trained) -> list[Allocation]:
  if trained.found.name:
    return []  # Of several models none was trained in parts.
  return [
    trained.held(held)
    for held in trained.setup.algorithm.evaluation.subnetworks
  ]


def _even_rows(trained: finished.Trained) -> list[Allocation]:
  return [_even(k / _STEPS, trained) for k in range(1, _STEPS + 1)]


def _even(share: float, trained: finished.Trained) -> Allocation:
  # Rotary heads keep their width.
  heads = (1.0, share) if 'rotary' in trained.sizes else (share, 1.0)
  shares = (*heads, share, 1.0, 1.0)
  return trained.held(spaces.row_of(shares, trained.sizes))


def draw(
  trained: finished.Trained,
  samples: int,
  seed: int,
  budget: float | None = None,
) -> list[tuple[int, Allocation]]:
  """Draws random subnetworks: widths of queries and keys, values, and MLP.

  Heads keep at least a quarter of their width.

  Args:
    trained: The run.
    samples: How many to draw.
    seed: Seed of the draw.
    budget: All subnetworks use at least 98 % of it. None spreads them evenly
      over the budgets of six models that are narrowed evenly, by eighths.

  Returns:
    For each subnetwork its budget in parameters, and how much it has of each
    axis.

  Raises:
    ValueError: No subnetwork has such a size.
  """
  if budget is not None:
    limits = [count(budget, trained)]
  else:
    limits = [trained.num_params(_even(s, trained)) for s in _LEVELS]
  choices = [_at_budget(limit, trained) for limit in limits]
  if not all(choices):
    raise ValueError(
      f'budget={budget}: no subnetwork to compare has {_USED:.0%} to 100% of'
      f' {limits[0]} parameters; the full model has {trained.num_params({})}.'
    )
  drawn = []
  for i in range(samples):
    level = i % len(limits)
    rng = host_rng('deploy', seed, i)
    row = choices[level][rng.integers(len(choices[level]))]
    drawn.append((limits[level], row))
  return drawn


def _at_budget(limit: int, trained: finished.Trained) -> list[Allocation]:
  """Lists subnetworks that use a budget, one for each pair of head widths."""
  sizes, found = trained.sizes, []
  axes = [axis for axis in ('qk_dim', 'v_dim') if axis in sizes]
  widths = (
    range(math.ceil(_LEAST * sizes[axis]), sizes[axis] + 1) for axis in axes
  )
  one, two = (trained.num_params({'ffn': n}) for n in (1, 2))
  for held in itertools.product(*widths):
    row = {**dict(zip(axes, held, strict=True)), 'ffn': 1}
    # Parameters grow by the same number with each hidden unit.
    more = (limit - trained.num_params(row)) // (two - one)
    row['ffn'] = min(1 + more, sizes['ffn'])
    if row['ffn'] > 0 and trained.num_params(row) >= _USED * limit:
      found.append(trained.held(row))
  return found


def measure(
  trained: finished.Trained,
  drawn: Sequence[tuple[int, Allocation]],
  seed: int,
  scope: str,
) -> Iterator[scaling.Point]:
  """Evaluates subnetworks, cut from three orders of the same parameters.

  The orders are salience, the order that the run left, and a random one, new
  for each subnetwork. The random order is what RaFFM's paper calls "without
  prioritization", since a method that cuts prefixes in training has already
  made the first channels the important ones. None of the orders changes what
  the full model computes.

  Args:
    trained: The run.
    drawn: Budgets and subnetworks, from `draw`.
    seed: Seed of the random orders.
    scope: What is reordered, a key of `salience.SCOPES`; 'none' leaves nothing
      to compare.
  """
  order = trained.rank(scope)
  salient, whole = trained.reorder(order), trained.num_params({})
  for i, (budget, row) in enumerate(drawn):
    rng = host_rng('deploy', seed, i, 0)
    mixed = {
      a: jnp.asarray(rng.permuted(np.asarray(o), axis=-1))
      for a, o in order.items()
    }
    params = {
      'by salience': salient,
      'as trained': trained.params,
      'random order': trained.reorder(mixed),
    }
    run = deployment.build_evaluate(trained, {'one': row})
    found = {
      name: deployment.score(run(p)['one']) for name, p in params.items()
    }
    number = trained.num_params(row)
    yield scaling.Point(
      budget, trained.held(row), number, number / whole, found
    )

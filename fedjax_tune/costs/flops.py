"""Counts the floating-point operations of a program exactly."""

from collections.abc import Callable, Iterator
import math
from typing import Any

import jax
from jax.extend.core import Jaxpr, JaxprEqn
from jax.interpreters import partial_eval

from fedjax_tune.typing import Tree


def count_flops(fn: Callable[..., Tree], *args: Tree) -> int:
  """Counts multiplications and additions of all matrix products in `fn`.

  It reads the traced program after dead-code removal, so that unused gradients
  do not count, and multiplies loop bodies by their trip counts (XLA's own
  analysis counts them once).

  Args:
    fn: A function of arrays.
    *args: Its arguments, arrays or ShapeDtypeStructs.
  """
  return count(trace(fn, *args))


def trace(fn: Callable[..., Tree], *args: Tree) -> Jaxpr:
  """Returns the program of a function, without unused parts.

  Its inputs are the leaves of all arguments.
  """
  closed = jax.make_jaxpr(fn)(*args)
  used = [True] * len(closed.jaxpr.outvars)
  jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, used, instantiate=True)
  return jaxpr


def count(jaxpr: Jaxpr) -> int:
  """Counts the multiplications and additions of a traced program."""
  total = 0
  for eqn in jaxpr.eqns:
    inner = map(count, programs(eqn))
    if eqn.primitive.name == 'dot_general':
      total += _product(eqn)
    elif eqn.primitive.name == 'scan':
      total += eqn.params['length'] * sum(inner)
    elif eqn.primitive.name == 'cond':
      total += max(inner)
    else:
      total += sum(inner)
  return total


def programs(eqn: JaxprEqn) -> Iterator[Jaxpr]:
  """Yields the programs inside an operation: of a loop, a branch, a call."""
  for param in jax.tree.leaves(tuple(eqn.params.values())):
    inner = getattr(param, 'jaxpr', param)
    if hasattr(inner, 'eqns'):
      yield inner


# Any, since the type of an operand says nothing of its shape.
def _product(eqn: Any) -> int:
  (contracted, _), _ = eqn.params['dimension_numbers']
  lhs = eqn.invars[0].aval.shape
  inner = math.prod(lhs[d] for d in contracted)
  return 2 * inner * math.prod(eqn.outvars[0].aval.shape)

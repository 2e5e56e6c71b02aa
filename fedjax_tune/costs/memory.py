"""Estimates how much memory a program takes at its peak, without compiling it.

It walks the traced program as a compiler would lay it out: a value lives from
the operation that makes it to the last one that reads it, elementwise
operations are fused into their readers, and a loop takes the most that one
iteration takes. `tests/memory_test.py` compares the estimate with XLA's own
figure.
"""

import collections
from collections.abc import Sequence
import dataclasses
from typing import NamedTuple

from jax.extend import core

from fedjax_tune.costs import flops

# XLA writes none of these to memory: whoever reads them computes them.
_FREE = frozenset([
  'broadcast_in_dim', 'iota', 'convert_element_type', 'reshape', 'squeeze',
  'expand_dims', 'eq', 'lt', 'gt', 'ge', 'le', 'and', 'or', 'not', 'ne',
  'random_wrap', 'random_unwrap', 'shift_right_logical', 'shift_left', 'xor',
])  # fmt: skip
# Nor these, where a single operation that can be fused reads them.
_ELEMENTWISE = _FREE | frozenset([
  'add', 'sub', 'mul', 'div', 'max', 'min', 'neg', 'exp', 'log', 'tanh',
  'logistic', 'erf', 'erf_inv', 'rsqrt', 'sqrt', 'pow', 'integer_pow',
  'select_n', 'square', 'sign', 'abs', 'add_any', 'stop_gradient', 'copy',
  'cos', 'sin', 'log1p', 'expm1', 'clamp', 'is_finite', 'pad', 'slice',
  'reduce_precision',
])  # fmt: skip
_FUSED = _ELEMENTWISE | {'reduce_sum', 'reduce_max', 'reduce_min', 'argmax'}
_CALLS = frozenset([
  'pjit', 'jit', 'closed_call', 'checkpoint', 'remat2', 'custom_jvp_call',
  'custom_vjp_call',
])  # fmt: skip


@dataclasses.dataclass(eq=False, slots=True)
class _Value:
  """A value of the program, made at any level of nesting."""

  bytes: int


class _Step(NamedTuple):
  """An operation; an input of None is a constant in the program's text."""

  eqn: core.JaxprEqn
  ins: Sequence[_Value | None]
  outs: Sequence[_Value]

  @property
  def name(self) -> str:
    return self.eqn.primitive.name


def peak(jaxpr: core.Jaxpr, fixed: Sequence[bool]) -> int:
  """Returns the most bytes that a program's values take, without its inputs.

  Args:
    jaxpr: The program.
    fixed: For each input, whether it is fixed (weights, indices); values
      computed only from fixed inputs are not counted.
  """
  return _peak(jaxpr, fixed, in_loop=False)


def _peak(jaxpr: core.Jaxpr, fixed: Sequence[bool], *, in_loop: bool) -> int:
  names = {v: _Value(_size(v)) for v in [*jaxpr.invars, *jaxpr.constvars]}
  steps, results = _inline(jaxpr, names)
  given = {names[v] for v, f in zip(jaxpr.invars, fixed, strict=True) if f}
  given |= {names[v] for v in jaxpr.constvars}
  last = _last_uses(steps, results)
  ends = collections.defaultdict(list)
  for value, at in last.items():
    ends[at].append(value)
  held: dict[_Value, int] = {}
  now = most = 0
  for i, step in enumerate(steps):
    known = [v is None or v in given for v in step.ins]
    if all(known) and not in_loop and not step.name.startswith('random'):
      given |= set(step.outs)
    scratch = max(
      (_inner(step, j, known) for j in flops.programs(step.eqn)), default=0
    )
    made = 0
    for value in step.outs:
      free = value in given or value.bytes == 0
      held[value] = 0 if free else value.bytes
      made += held[value]
    # An elementwise result takes the place of an input that dies with it.
    read = {v for v in step.ins if v is not None}
    dying = sum(held.get(v, 0) for v in read if last.get(v) == i)
    reused = min(made, dying) if step.name in _ELEMENTWISE else 0
    most = max(most, now + made - reused + scratch)
    now += made
    now -= sum(held.pop(value, 0) for value in ends[i])
  return most


def _inner(step: _Step, jaxpr: core.Jaxpr, known: Sequence[bool]) -> int:
  """Returns the bytes of one iteration of a loop, or of a branch."""
  if step.name != 'scan':
    same = len(jaxpr.invars) == len(known)
    fixed = known if same else [False] * len(jaxpr.invars)
    return _peak(jaxpr, fixed, in_loop=True)
  # A turn reads its slice of the weights from a place of its own.
  first = step.eqn.params['num_consts'] + step.eqn.params['num_carry']
  slices = sum(
    _size(v)
    for v, is_known in list(zip(jaxpr.invars, known, strict=True))[first:]
    if is_known
  )
  return slices + _peak(jaxpr, known, in_loop=True)


def _last_uses(
  steps: Sequence[_Step], results: Sequence[_Value | None]
) -> dict[_Value, int]:
  """Returns the last operation that needs each value; fused ones become free.

  A value that is read by a fused operation lives as long as that operation's
  readers.
  """
  users = collections.defaultdict(list)
  for i, step in enumerate(steps):
    for value in step.ins:
      users[value].append(i)
  last: dict[_Value, int] = {v: len(steps) for v in results if v is not None}
  for i, step in reversed(list(enumerate(steps))):
    end = i
    for value in step.outs:
      last.setdefault(value, i)
    value = step.outs[0]
    readers = users[value]
    fusible = all(steps[u].name in _FUSED for u in readers)
    once = step.name in _ELEMENTWISE and len(readers) == 1 and fusible
    if last[value] < len(steps) and (step.name in _FREE or once):
      value.bytes, end = 0, last[value]
    for value in step.ins:
      if value is not None:
        last[value] = max(last.get(value, 0), end)
  return last


def _inline(
  jaxpr: core.Jaxpr, names: dict[core.Var, _Value]
) -> tuple[list[_Step], list[_Value | None]]:
  """Returns a program's operations, with called programs inlined."""
  steps: list[_Step] = []
  find = lambda v: None if isinstance(v, core.Literal) else names[v]
  for eqn in jaxpr.eqns:
    ins, inner = [find(v) for v in eqn.invars], list(flops.programs(eqn))
    is_call = eqn.primitive.name in _CALLS and len(inner) == 1
    if is_call and len(inner[0].invars) == len(ins):
      (called,) = inner
      own = {v: _Value(_size(v)) for v in [*called.constvars, *called.invars]}
      own |= {
        v: value
        for v, value in zip(called.invars, ins, strict=True)
        if value is not None
      }
      done, outs = _inline(called, own)
      steps += done
      outs = [out or _Value(0) for out in outs]
    else:
      outs = [_Value(_size(v)) for v in eqn.outvars]
      steps.append(_Step(eqn, ins, outs))
    names.update(zip(eqn.outvars, outs, strict=True))
  return steps, [find(v) for v in jaxpr.outvars]


def _size(var: core.Var) -> int:
  aval = var.aval
  size, dtype = getattr(aval, 'size', 0), getattr(aval, 'dtype', None)
  return size * dtype.itemsize if dtype is not None else 0

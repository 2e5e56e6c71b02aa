"""How fast this machine multiplies matrices, in each `model.dtype`."""

from collections.abc import Mapping
import time

import jax
import jax.numpy as jnp

from fedjax_tune.models import primitives

# Tokens of a batch by the width of a small transformer, and its MLP.
_SHAPE = (1024, 384, 1536)
_SECONDS = 0.025  # Of each type, once compiled.
_NOTABLE = 1.2


def rates() -> dict[str, float]:
  """Measures the products of `primitives.dense`, in FLOP/s by type.

  It takes a twentieth of a second, and as long again to compile. The result
  depends on what else the machine does, so nothing in a run may depend on it.
  """
  rows, ins, outs = _SHAPE
  x, found = jnp.ones((rows, ins)), {}
  for dtype in ('float32', 'bfloat16'):
    kernel = jnp.ones((ins, outs), dtype)
    run = jax.jit(primitives.dense).lower(x, kernel).compile()
    jax.block_until_ready(run(x, kernel))
    spent, best = 0.0, float('inf')
    while spent < _SECONDS:
      begin = time.perf_counter()
      jax.block_until_ready(run(x, kernel))
      took = time.perf_counter() - begin
      spent, best = spent + took, min(best, took)
    found[dtype] = 2 * rows * ins * outs / best
  return found


def advice(
  found: Mapping[str, float], dtype: str, flag: str = '--config.model.dtype'
) -> str:
  """Says whether the other type is faster here, or nothing.

  Args:
    found: What `rates` returns.
    dtype: `model.dtype` of the configuration.
    flag: The flag that sets it.

  >>> advice({'float32': 2e11, 'bfloat16': 5e11}, 'float32')
  'products of bfloat16 run 2.5 times as fast here: --config.model.dtype=bfloat16'
  >>> advice({'float32': 2e11, 'bfloat16': 5e11}, 'bfloat16')
  ''
  """
  (other,) = found.keys() - {dtype}
  ratio = found[other] / found[dtype]
  if ratio < _NOTABLE:
    return ''
  return (
    f'products of {other} run {ratio:.1f} times as fast here: {flag}={other}'
  )

"""Products with factors in bfloat16 and sums in float32."""

import collections
import dataclasses
import functools

from flax import nnx
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from fedjax_tune.config import unread
from fedjax_tune.data.tasks import Task
from fedjax_tune.models import (
  backbone,
  factored,
  foundation,
  linear,
  peft,
  primitives,
  sizes,
)
from fedjax_tune.models.lora import Lora
from fedjax_tune.typing import Tokens

_ROUNDED = 2**-8  # Of one factor, relative.


def _normal(seed, *shape):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.normal(size=shape), jnp.float32)


def _lora(x, kernel):
  a, b = _normal(2, 32, 3), _normal(3, 3, 16)
  return primitives.lora_dense(x, kernel, a, b, jnp.zeros(2, 'uint32'), 1, 0)


@pytest.mark.parametrize('dense', [primitives.dense, _lora])
def test_only_the_factors_are_rounded(dense):
  x, kernel = _normal(0, 24, 32), _normal(1, 32, 16)
  narrow = kernel.astype(jnp.bfloat16)
  value, pull = jax.vjp(lambda x: dense(x, narrow), x)
  assert value.dtype == jnp.float32
  # What float32 makes of the rounded factors, but for the order of the sums.
  seen = x.astype(jnp.bfloat16).astype(jnp.float32)
  wide = narrow.astype(jnp.float32)
  want = dense(x, kernel) - x @ kernel + seen @ wide
  np.testing.assert_allclose(value, want, atol=2e-5)
  dy = _normal(4, 24, 16)
  (dx,), (full,) = pull(dy), jax.vjp(lambda x: dense(x, kernel), x)[1](dy)
  rounded = dy.astype(jnp.bfloat16).astype(jnp.float32)
  np.testing.assert_allclose(
    dx, full - dy @ kernel.T + rounded @ wide.T, atol=2e-5
  )
  assert np.abs(dx - full).max() > 1e-3


def _rounded(x):
  return x.astype(jnp.bfloat16).astype(jnp.float32)


def test_a_trained_kernel_stays_float32():
  x, kernel, dy = _normal(0, 24, 32), _normal(1, 32, 16), _normal(4, 24, 16)
  mixed = lambda x, kernel: primitives.dense(x, kernel, mixed=True)
  value, pull = jax.vjp(mixed, x, kernel)
  close = functools.partial(np.testing.assert_allclose, atol=2e-5)
  close(value, _rounded(x) @ _rounded(kernel))
  dx, dkernel = pull(dy)
  close(dx, _rounded(dy) @ _rounded(kernel).T)
  close(dkernel, _rounded(x).T @ _rounded(dy))
  assert {a.dtype for a in (value, dx, dkernel)} == {jnp.dtype('float32')}
  assert np.abs(dkernel - x.T @ dy).max() > 1e-3
  # Several clients, each with a kernel of its own.
  many = jax.vmap(jax.grad(lambda w, x: jnp.sum(mixed(x, w) * dy)))
  both = many(jnp.stack([kernel, 2 * kernel]), jnp.stack([x, 3 * x]))
  close(both[0], dkernel)
  close(both[1], _rounded(3 * x).T @ _rounded(dy))


def test_products_with_the_transpose():
  x, kernel, dy = _normal(0, 24, 32), _normal(1, 16, 32), _normal(4, 24, 16)
  for given, mixed in (
    (kernel, False),
    (kernel, True),
    (kernel.astype(jnp.bfloat16), False),
  ):
    there = lambda x, w: primitives.dense(x, w.T, mixed=mixed)  # noqa: B023
    back = lambda x, w: primitives.dense(x, w, mixed=mixed, back=True)  # noqa: B023
    (want, pull), (got, pull_back) = (
      jax.vjp(f, x, given) for f in (there, back)
    )
    for one, other in zip(
      (want, *pull(dy)), (got, *pull_back(dy)), strict=True
    ):
      assert one.dtype == other.dtype
      np.testing.assert_allclose(one, other, atol=2e-5)


def test_other_types_are_not_rounded_to_bfloat16():
  x, kernel = _normal(0, 24, 32), _normal(1, 32, 16)
  half = x.astype(jnp.float16)
  got = primitives.dense(half, kernel)
  np.testing.assert_allclose(got, half.astype('float32') @ kernel, rtol=1e-2)


_MODELS = {
  'vit': sizes.ViTConfig(2, 32, 2, 64, 4, 8, num_classes=3),
  'bert': sizes.TextConfig(2, 32, 2, 64, 50, 8, family='bert', num_classes=3),
  'llama': sizes.DecoderConfig(2, 32, 2, 64, 50, 8, group=2, head_dim=8),
}
_each_model = pytest.mark.parametrize(
  'name', ['vit', pytest.param('bert', marks=pytest.mark.slow), 'llama']
)


def _inputs(name):
  if name == 'vit':
    return _normal(5, 4, 8, 8, 3)
  ids = np.random.default_rng(5).integers(1, 50, (4, 6)).astype(np.int32)
  return Tokens(ids, np.zeros_like(ids))


def _build(name, *, full=False):
  adapter = Lora(2, 1.0, 0.0)
  adapters = {} if full else {'attn.q': adapter, 'attn.proj': adapter}
  cfg = dataclasses.replace(_MODELS[name], full=full)
  model = backbone.build_model(cfg, adapters, rngs=nnx.Rngs(0))
  found = foundation.split(model, 2)
  noise = lambda i, x: x + 0.1 * _normal(i, *x.shape)
  leaves, tree = jax.tree.flatten((found.theta, found.base))
  moved = [noise(i, x) for i, x in enumerate(leaves)]
  return found, *jax.tree.unflatten(tree, moved)


def _mixed(found):
  model = found.merge(found.base, found.theta)
  foundation.mix(model)
  return foundation.split(model, found.depth)


def _products(jaxpr):
  """Yields the types of factors and results of every product."""
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'dot_general':
      yield tuple(str(v.aval.dtype) for v in (*eqn.invars, *eqn.outvars))
    for inner in jax.extend.core.jaxprs_in_params(eqn.params):
      yield from _products(inner)


@_each_model
def test_a_model_in_bfloat16(name):
  found, theta, base = _build(name)
  stored = foundation.store(base, 'bfloat16')
  flat = jax.tree.leaves_with_path(stored)
  narrow = {p[-1].key for p, x in flat if x.dtype == jnp.bfloat16}
  assert narrow == ({'kernel'} if name == 'vit' else {'kernel', 'word'})
  run = _runner(found, _inputs(name))
  _check_close(run(theta, base), run(theta, stored))
  types = set(_products(jax.make_jaxpr(run)(theta, stored).jaxpr))
  # What trains, and attention, multiplies float32.
  assert types == {_NARROW, _WIDE}


_NARROW, _WIDE = ('bfloat16', 'bfloat16', 'float32'), ('float32',) * 3


def _runner(found, inputs):
  """Returns what computes a loss, with its outputs and its gradient."""

  def loss(theta, base):
    held = {'layer': np.arange(2)}
    logits = found.assemble(base, theta, held)(inputs, np.arange(2))
    return jnp.mean(jax.nn.logsumexp(logits, -1) - logits[..., 0]), logits

  return jax.jit(jax.value_and_grad(loss, has_aux=True))


def _check_close(exact, mixed):
  """Checks that results differ as rounded factors make them differ."""
  ((full, want), slopes), ((loss, got), slopes_mixed) = exact, mixed
  assert got.dtype == jnp.float32
  assert 0 < np.abs(got - want).max() < 30 * _ROUNDED
  assert abs(loss - full) < 3 * _ROUNDED
  for one, other in zip(
    jax.tree.leaves(slopes), jax.tree.leaves(slopes_mixed), strict=True
  ):
    assert other.dtype == jnp.float32
    off = np.linalg.norm(one - other)
    assert off < 0.1 * np.linalg.norm(one) + 1e-6


# Six or seven maps in each of two blocks, and one outside them: the patches,
# the pooler, or the words that the logits are read from.
_KERNELS = {'vit': 13, 'bert': 13, 'llama': 15}


@_each_model
def test_a_model_that_trains_whole_in_bfloat16(name):
  found, theta, base = _build(name, full=True)
  mixed = _mixed(found)
  types = {x.dtype for x in jax.tree.leaves(mixed.theta)}
  assert types == {jnp.dtype('float32')}
  runs = [_runner(f, _inputs(name)) for f in (found, mixed)]
  _check_close(*(run(theta, base) for run in runs))
  wide, narrow = (
    collections.Counter(_products(jax.make_jaxpr(run)(theta, base).jaxpr))
    for run in runs
  )
  assert wide.keys() == {_WIDE}
  # Forward, backward, and its gradient. Attention and the head stay as they
  # are.
  assert narrow[_NARROW] == 3 * _KERNELS[name]
  assert narrow[_WIDE] > 0


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('tune', ['full', 'lora'])
def test_what_the_configuration_asks_for(tune, dtype):
  e = tiny.experiment(model={'tune': tune, 'dtype': dtype})
  assert unread.is_read(e, 'model.dtype')
  task = Task('classification', 3)
  found = peft.shapes(e, _MODELS['vit'], task)
  model = found.merge(found.base, found.theta)
  kinds = {'full': linear.Tuned, 'lora': linear.Frozen}
  narrow = tune == 'full' and dtype == 'bfloat16'
  kernel = model.blocks.mlp.fc1.kernel
  assert type(kernel) is (linear.Mixed if narrow else kinds[tune])
  # What does not multiply, and what is new.
  assert type(model.blocks.mlp.fc1.bias) is kinds[tune]
  assert type(model.head.kernel) is nnx.Param


def test_kernels_that_are_factored():
  """PriSM's; they multiply as the map that they come from."""
  one = linear.Linear(
    (('embed', 8),),
    (('ffn', 12),),
    stack=(('layer', 2),),
    kind=linear.Mixed,
    rngs=nnx.Rngs(0),
  )
  one.kernel[...] = _normal(6, 2, 8, 12)
  one.bias[...] = _normal(8, 2, 12)
  graph, state = nnx.split(factored.Factored(one, 'singular'))

  def run(state, x):
    block = jax.tree.map(lambda p: p[0], state)
    return nnx.merge(graph, block)(x)

  x = _normal(7, 3, 5, 8)
  u, v = (_rounded(f[0]) for f in factored.decompose(one.kernel[...]))
  want = _rounded(_rounded(x) @ u) @ v + one.bias[0]
  # A sum at the edge of two bfloat16 numbers may fall to either side.
  np.testing.assert_allclose(run(state, x), want, atol=0.02)
  assert set(_products(jax.make_jaxpr(run)(state, x).jaxpr)) == {_NARROW}


def test_no_stack_is_copied_to_float32():
  """XLA widens a slice of bfloat16 on a CPU, and with it the whole stack."""
  shape = sizes.ViTConfig(5, 24, 2, 56, 4, 8, num_classes=3)
  found = foundation.split(
    backbone.build_model(
      shape, {'attn.q': Lora(2, 1.0, 0.0)}, rngs=nnx.Rngs(0)
    ),
    5,
  )

  def loss(theta, base, images):
    model = found.assemble(base, theta, {'layer': np.arange(5)})
    return jnp.sum(model(images, np.arange(5)) ** 2)

  def program(dtype):
    base = foundation.store(found.base, dtype)
    run = jax.jit(jax.grad(loss)).lower(
      found.theta, base, _normal(0, 4, 8, 8, 3)
    )
    return run.compile().as_text() or ''

  assert 'f32[5,24,56]' in program('float32')
  narrow = program('bfloat16')
  assert 'bf16[5,24,56]' in narrow
  assert 'f32[5,24,56]' not in narrow

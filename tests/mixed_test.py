"""Products with factors in bfloat16 and sums in float32."""

from flax import nnx
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_tune.models import backbone, foundation, primitives, sizes
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


_MODELS = {
  'vit': sizes.ViTConfig(2, 32, 2, 64, 4, 8, num_classes=3),
  'bert': sizes.TextConfig(2, 32, 2, 64, 50, 8, family='bert', num_classes=3),
  'llama': sizes.DecoderConfig(2, 32, 2, 64, 50, 8, group=2, head_dim=8),
}


def _inputs(name):
  if name == 'vit':
    return _normal(5, 4, 8, 8, 3)
  ids = np.random.default_rng(5).integers(1, 50, (4, 6)).astype(np.int32)
  return Tokens(ids, np.zeros_like(ids))


def _build(name):
  adapter = Lora(2, 1.0, 0.0)
  adapters = {'attn.q': adapter, 'attn.proj': adapter}
  model = backbone.build_model(_MODELS[name], adapters, rngs=nnx.Rngs(0))
  found = foundation.split(model, 2)
  noise = lambda i, x: x + 0.1 * _normal(i, *x.shape)
  leaves, tree = jax.tree.flatten((found.theta, found.base))
  moved = [noise(i, x) for i, x in enumerate(leaves)]
  return found, *jax.tree.unflatten(tree, moved)


def _products(jaxpr):
  """Yields the types of factors and results of every product."""
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'dot_general':
      yield tuple(str(v.aval.dtype) for v in (*eqn.invars, *eqn.outvars))
    for inner in jax.extend.core.jaxprs_in_params(eqn.params):
      yield from _products(inner)


@pytest.mark.parametrize('name', _MODELS)
def test_a_model_in_bfloat16(name):
  found, theta, base = _build(name)
  stored = foundation.store(base, 'bfloat16')
  flat = jax.tree.leaves_with_path(stored)
  narrow = {p[-1].key for p, x in flat if x.dtype == jnp.bfloat16}
  assert narrow == ({'kernel'} if name == 'vit' else {'kernel', 'word'})
  inputs = _inputs(name)

  def loss(theta, base):
    held = {'layer': np.arange(2)}
    logits = found.assemble(base, theta, held)(inputs, np.arange(2))
    return jnp.mean(jax.nn.logsumexp(logits, -1) - logits[..., 0]), logits

  run = jax.jit(jax.value_and_grad(loss, has_aux=True))
  (full, want), slopes = run(theta, base)
  (mixed, got), slopes_mixed = run(theta, stored)
  assert got.dtype == jnp.float32
  assert 0 < np.abs(got - want).max() < 30 * _ROUNDED
  assert abs(mixed - full) < 3 * _ROUNDED
  for one, other in zip(
    jax.tree.leaves(slopes), jax.tree.leaves(slopes_mixed), strict=True
  ):
    assert other.dtype == jnp.float32
    off = np.linalg.norm(one - other)
    assert off < 0.1 * np.linalg.norm(one) + 1e-6
  types = set(_products(jax.make_jaxpr(run)(theta, stored).jaxpr))
  # What trains, and attention, multiplies float32.
  assert types == {
    ('bfloat16', 'bfloat16', 'float32'),
    ('float32', 'float32', 'float32'),
  }


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

"""Primitives against the plain formula and its automatic derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from fedjax_tune.models import primitives


def _normal(seed, *shape):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.normal(size=shape).astype(np.float32))


_SEED = jnp.asarray([123456789, 987654321], jnp.uint32)


@pytest.mark.parametrize('rate', [0.0, 0.3])
def test_lora_dense_is_the_plain_formula(rate):
  n, i, o, r, scale = 7, 5, 4, 3, 1.7
  args = _normal(0, n, i), _normal(1, i, o), _normal(2, i, r), _normal(3, r, o)
  keep = np.ones((n, i), bool)
  if rate:
    keep = np.asarray(primitives.keep_mask(_SEED, (n, i), rate))
    assert 0 < keep.sum() < keep.size

  def plain(x, kernel, a, b):
    dropped = jnp.where(keep, x / (1 - rate), 0)
    return x @ kernel + scale * (dropped @ a @ b)

  def fast(*args):
    return primitives.lora_dense(*args, _SEED, scale, rate)

  weigh = lambda fn: lambda *args: jnp.sum(jnp.sin(fn(*args)))
  np.testing.assert_allclose(fast(*args), plain(*args), rtol=1e-5, atol=1e-5)
  every = (0, 1, 2, 3)
  got = jax.jit(jax.grad(weigh(fast), every))(*args)
  want = jax.jit(jax.grad(weigh(plain), every))(*args)
  tiny.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_lora_dense_vmap_is_a_loop():
  x, kernel = _normal(0, 3, 6, 5), _normal(1, 5, 4)
  a, b = _normal(2, 3, 5, 2), _normal(3, 3, 2, 4)
  seeds = jnp.arange(6, dtype=jnp.uint32).reshape(3, 2)

  def grad(x, a, b, seed):
    dense = lambda a, b: primitives.lora_dense(x, kernel, a, b, seed, 0.5, 0.4)
    loss = lambda *ab: jnp.sum(jnp.square(dense(*ab)))
    return jax.grad(loss, (0, 1))(a, b)

  got = jax.jit(jax.vmap(grad))(x, a, b, seeds)
  one = jax.jit(grad)
  want = [one(x[c], a[c], b[c], seeds[c]) for c in range(3)]
  tiny.assert_close(
    got, jax.tree.map(lambda *g: jnp.stack(g), *want), rtol=1e-4
  )


def test_keep_mask_rate():
  count = 1 << 16
  for seed in range(4):
    words = jax.random.bits(jax.random.key(seed), (2,))
    for rate in (0.1, 0.5, 0.9):
      mask = np.asarray(primitives.keep_mask(words, (256, 256), rate))
      spread = np.sqrt(rate * (1 - rate) / count)
      assert abs(np.mean(~mask) - rate) < 5 * spread
      # No row or column stands out.
      for axis in (0, 1):
        means = np.mean(~mask, axis)
        assert np.abs(means - rate).max() < 5 * 16 * spread


def test_keep_masks_are_independent():
  """Masks of other seeds, and shifted positions, are uncorrelated."""
  count, rate = 1 << 16, 0.5
  near = [[word, 7] for word in range(5)]
  drawn = [jax.random.bits(jax.random.key(k), (2,)) for k in range(5)]
  for seeds in (jnp.asarray(near, jnp.uint32), jnp.stack(drawn)):
    draw = jax.vmap(lambda s: primitives.keep_mask(s, (count,), rate))
    signs = 2.0 * np.asarray(draw(seeds)) - 1
    correlation = signs @ signs.T / count
    off = correlation[~np.eye(len(seeds), dtype=bool)]
    assert np.abs(off).max() < 5 / np.sqrt(count)
    for shift in (1, 2, 16, 64, 197):
      lagged = np.mean(signs * np.roll(signs, shift, 1), 1)
      assert np.abs(lagged).max() < 5 / np.sqrt(count)


@pytest.mark.parametrize('kind', ['dropout', 'lora_dense', 'attention'])
def test_examples_with_keys_drop_alike_whatever_is_beside_them(kind):
  """Fewer examples in another order, padded less far, drop the same."""
  x, rows, most = _normal(0, 4, 7, 6), np.array([2, 0]), 5
  keys = jax.vmap(jax.random.key)(jnp.arange(4))

  def run(x, keys):
    if kind == 'dropout':
      return primitives.dropout(x, keys, 0.4)
    if kind == 'attention':
      q = x.reshape(*x.shape[:2], 2, 3)
      real = jnp.broadcast_to(jnp.arange(x.shape[1]) < most, x.shape[:2])
      return primitives.attention(q, q, q, real, key=keys, rate=0.4)
    flat, seeds = x.reshape(-1, 6), primitives.words(keys)
    given = (_normal(1, 6, 5), _normal(2, 6, 2), _normal(3, 2, 5))
    y: jax.Array = primitives.lora_dense(flat, *given, seeds, 1.7, 0.4)
    return y.reshape(*x.shape[:2], -1)

  def outputs_and_grads(x, keys):
    loss = lambda x: jnp.sum(jnp.sin(run(x, keys)[:, :most]))
    return run(x, keys), jax.grad(loss)(x)

  want = [y[rows, :most] for y in outputs_and_grads(x, keys)]
  got = outputs_and_grads(x[rows, :most], keys[rows])
  tiny.assert_close(list(got), want, rtol=1e-4, atol=1e-6)
  # Each example, and each head, has a mask of its own.
  same = run(jnp.broadcast_to(x[:1], x.shape), keys)
  assert not np.allclose(same[0], same[1])


def test_gelu():
  x = jnp.linspace(-6, 6, 101)
  np.testing.assert_allclose(
    primitives.gelu(x), jax.nn.gelu(x, approximate=False), atol=1e-6
  )
  slope = jax.vmap(jax.grad(primitives.gelu))(x)
  want = jax.vmap(jax.grad(lambda t: jax.nn.gelu(t, approximate=False)))(x)
  np.testing.assert_allclose(slope, want, atol=1e-6)


def test_layer_norm():
  x, scale, bias = _normal(0, 3, 4, 8) * 5 + 2, _normal(1, 8), _normal(2, 8)

  def plain(x, scale, bias):
    spread = jnp.sqrt(jnp.var(x, -1, keepdims=True) + 1e-5)
    return (x - jnp.mean(x, -1, keepdims=True)) / spread * scale + bias

  fast = lambda *args: primitives.layer_norm(*args, eps=1e-5)
  args = x, scale, bias
  tiny.assert_close(fast(*args), plain(*args), rtol=1e-4, atol=1e-5)
  grads = [
    jax.grad(lambda *a, f=f: jnp.sum(jnp.sin(f(*a))), (0, 1, 2))(*args)
    for f in (fast, plain)
  ]
  tiny.assert_close(*grads, rtol=1e-3, atol=1e-5)


def test_layer_norm_keeps_the_type():
  x = _normal(0, 2, 8).astype(jnp.bfloat16)
  got = primitives.layer_norm(x, jnp.ones(8), jnp.zeros(8), 1e-6)
  assert got.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.mean(got.astype(np.float32), -1), 0, atol=0.01)


@pytest.mark.parametrize('rate', [0.0, 0.3])
@pytest.mark.parametrize('masks', [False, True])
def test_attention(rate, masks):
  q, k, v = (
    _normal(0, 2, 3, 2, 4),
    _normal(1, 2, 5, 2, 4),
    _normal(2, 2, 5, 2, 6),
  )
  real = jnp.arange(5) < jnp.array([[5], [3]])
  seen = jnp.tri(3, 5, 1, bool)
  key = jax.random.key(1)
  kept = 1.0
  if rate:
    words = jax.random.bits(key, (2,))
    mask = primitives.keep_mask(words, (4, 3, 5), rate)
    kept = mask.reshape(2, 2, 3, 5) / (1 - rate)

  def plain(q, k, v):
    scores = jnp.einsum('bthe,bshe->bhts', q, k) / 2
    if masks:
      scores = jnp.where(real[:, None, None] & seen, scores, -jnp.inf)
    weights = jax.nn.softmax(scores) * kept
    return jnp.einsum('bhts,bshe->bthe', weights, v)

  def fast(q, k, v):
    given = (real, seen) if masks else ()
    return primitives.attention(q, k, v, *given, key=key, rate=rate)

  args = q, k, v
  tiny.assert_close(fast(*args), plain(*args), rtol=1e-4, atol=1e-5)
  grads = [
    jax.jit(jax.grad(lambda *a, f=f: jnp.sum(jnp.sin(f(*a))), (0, 1, 2)))(*args)
    for f in (fast, plain)
  ]
  tiny.assert_close(*grads, rtol=1e-3, atol=1e-5)

"""Differentiable primitives that XLA alone schedules badly.

Each has an exact hand-written backward pass or a fusion barrier. On a CPU they
double the speed of a LoRA step (see `launch/bench.py`); elsewhere they cost
nothing. Gradients equal automatic differentiation; the tests say so.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt32
import numpy as np

# Added to the scores of padding; finite, so that a row of padding alone has
# no NaN.
_HIDDEN = -1e9
# Positions from one query to the next in the masks of attention's weights: more
# than any text has tokens.
_TOKENS = 2**16


def fold_in(key: jax.Array, data: Array | int) -> jax.Array:
  """Folds a number into a key, or into each of several."""
  fold = jax.random.fold_in
  return jax.vmap(fold, (0, None))(key, data) if key.ndim else fold(key, data)


def words(
  key: jax.Array, shape: tuple[int, ...] = ()
) -> UInt32[Array, '... 2']:
  """Draws two random words, or an array of pairs, from each key."""
  draw = lambda key: jax.random.bits(key, (*shape, 2))
  return jax.vmap(draw)(key) if key.ndim else draw(key)


def keep_mask(
  seeds: UInt32[Array, '... 2'],
  shape: tuple[int, ...],
  rate: float,
  stride: int = 0,
) -> Array:
  """Draws a dropout mask, True with probability 1 - rate.

  It uses a counter-based integer hash (two rounds of multiply and xor-shift,
  constants of C. Wellons' lowbias32) instead of threefry, which on a CPU would
  take longer than the matrix products of the adapter. The mask depends only on
  the seed and the element's position, so `vmap` and `map` over clients agree.

  Args:
    seeds: Two random words, for each mask.
    shape: Shape of a mask.
    rate: Probability of False, in [0, 1).
    stride: Positions from one row of a matrix to the next; 0 leaves no gap.

  Returns:
    The masks, with the axes of the seeds and then `shape`.
  """
  count = jax.lax.iota(jnp.uint32, int(np.prod(shape))).reshape(shape)
  if stride:
    row, column = (
      jax.lax.broadcasted_iota(jnp.uint32, shape, i) for i in (0, 1)
    )
    count = row * np.uint32(stride) + column
  lead = seeds.shape[:-1]
  first, second = (
    seeds[..., i].reshape(*lead, *[1] * len(shape)) for i in (0, 1)
  )
  bits = (count * np.uint32(0x9E3779B9)) ^ first
  for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
    bits = (bits ^ (bits >> shift)) * np.uint32(factor)
    bits = bits + second
  bits = bits ^ (bits >> 16)
  return bits >= np.uint32(rate * 2**32)


def _drop(x: Array, seeds: Array, rate: float, stride: int = 0) -> Array:
  """Drops elements of x; its first axis has one part for each seed."""
  if rate == 0.0:
    return x
  lead, shape = seeds.shape[:-1], x.shape
  if lead:
    shape = x.shape[1:] if stride else (x.size // lead[0],)
  keep = keep_mask(seeds, shape, rate, stride if lead else 0).reshape(x.shape)
  return jnp.where(keep, x * np.asarray(1 / (1 - rate), x.dtype), 0)


def dropout(
  x: Float[Array, '...'], key: jax.Array | None, rate: float
) -> Float[Array, '...']:
  """Zeroes elements with probability `rate`, and scales up the others.

  Args:
    x: Any array.
    key: Key of the draw, or one for each example along the first axis. None,
      in evaluation, changes nothing.
    rate: The rate in [0, 1); 0 changes nothing.
  """
  if key is None or rate == 0.0:
    return x
  return _drop(x, words(key), rate)


def _times(x: Array, kernel_IxO: Array, *, back: bool = False) -> Array:
  """Computes x W, or x W^T, with factors of W's type, summed in that of x."""
  if x.dtype == kernel_IxO.dtype:
    return x @ (kernel_IxO.T if back else kernel_IxO)
  # As one product: XLA's CPU library for bfloat16 takes no transposed factor.
  return jax.lax.dot_general(
    x.astype(kernel_IxO.dtype),
    kernel_IxO,
    (((1,), (int(back),)), ((), ())),
    preferred_element_type=x.dtype,
  )


def dense(
  x_NxI: Float[Array, 'N I'],
  kernel: Float[Array, 'I O'] | Float[Array, 'O I'],
  *,
  mixed: bool = False,
  back: bool = False,
) -> Float[Array, 'N O']:
  """Computes x W, or x W^T.

  If W is stored in bfloat16, the factors of this product and of the one that
  gives dx are bfloat16, and sums stay float32; then W gets no gradient. A CPU
  with bfloat16 instructions has a fast library for this form, but none for
  products with a bfloat16 result, for a W that is transposed outside, or for
  the gradient of a kernel.

  Args:
    x_NxI: Inputs.
    kernel: W, frozen or trained.
    mixed: Round the factors to bfloat16 although W is stored in float32, also
      those of its gradient, which is float32 as all sums are.
    back: Compute x W^T.
  """
  if mixed or x_NxI.dtype != kernel.dtype:
    return _mixed(x_NxI, kernel, mixed, back)
  return x_NxI @ (kernel.T if back else kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _mixed(x_NxI: Array, kernel: Array, trains: bool, back: bool) -> Array:
  factor = kernel.astype(jnp.bfloat16) if trains else kernel
  return _times(x_NxI, factor, back=back)


def _mixed_forward(x_NxI, kernel, trains, back):
  read_NxI = x_NxI.astype(jnp.bfloat16) if trains else None
  return _mixed(x_NxI, kernel, trains, back), (read_NxI, kernel)


def _mixed_backward(trains, back, saved, dy_NxO):
  read_NxI, kernel = saved
  dx_NxI = _mixed(dy_NxO, kernel, trains, not back)
  if not trains:
    return dx_NxI, jnp.zeros_like(kernel)
  factors = read_NxI, dy_NxO.astype(jnp.bfloat16)
  dkernel = jnp.einsum(
    'ni,no->oi' if back else 'ni,no->io',
    *factors,
    preferred_element_type=kernel.dtype,
  )
  return dx_NxI, dkernel


_mixed.defvjp(_mixed_forward, _mixed_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def lora_dense(
  x_NxI: Float[Array, 'N I'],
  kernel_IxO: Float[Array, 'I O'],
  a_IxR: Float[Array, 'I R'],
  b_RxO: Float[Array, 'R O'],
  seeds: UInt32[Array, '... 2'],
  scale: float,
  rate: float,
) -> Float[Array, 'N O']:
  """Computes x W + scale * dropout(x) A B (LoRA, arXiv 2106.09685).

  The backward pass transposes rank-R arrays only; left to itself XLA
  transposes the activations.

  Args:
    x_NxI: Inputs.
    kernel_IxO: Frozen or trainable weight; only frozen if it is bfloat16, see
      `dense`.
    a_IxR: Down projection.
    b_RxO: Up projection.
    seeds: Seeds of the dropout on the adapter's input: [2], or [B, 2] for B
      examples with N/B rows each.
    scale: alpha / rank.
    rate: Dropout rate; 0 turns dropout off.
  """
  return _lora_forward(x_NxI, kernel_IxO, a_IxR, b_RxO, seeds, scale, rate)[0]


def _lora_forward(x_NxI, kernel_IxO, a_IxR, b_RxO, seeds, scale, rate):
  h_NxR = _drop(x_NxI, seeds, rate) @ a_IxR
  y_NxO = _times(x_NxI, kernel_IxO) + scale * (h_NxR @ b_RxO)
  return y_NxO, (x_NxI, kernel_IxO, a_IxR, b_RxO, seeds, h_NxR)


def _lora_backward(scale, rate, saved, dy_NxO):
  x_NxI, kernel_IxO, a_IxR, b_RxO, seeds, h_NxR = saved
  g_NxR = scale * (dy_NxO @ b_RxO.T)
  dropped_NxI = _drop(x_NxI, seeds, rate)
  # Behind the barrier, as XLA would make one slow product of this and `.T`.
  da_RxI = jnp.einsum('nr,ni->ri', g_NxR, dropped_NxI)
  da_IxR = jax.lax.optimization_barrier(da_RxI).T
  db_RxO = scale * jnp.einsum('nr,no->ro', h_NxR, dy_NxO)
  dx_NxI = _times(dy_NxO, kernel_IxO, back=True) + _drop(
    g_NxR @ a_IxR.T, seeds, rate
  )
  # Dead code, and removed by XLA, where the kernel is frozen.
  dkernel_IxO = jnp.einsum('ni,no->io', x_NxI, dy_NxO)
  dkernel_IxO = dkernel_IxO.astype(kernel_IxO.dtype)
  dseed = np.zeros(seeds.shape, jax.dtypes.float0)
  return dx_NxI, dkernel_IxO, da_IxR, db_RxO, dseed


lora_dense.defvjp(_lora_forward, _lora_backward)


@jax.custom_vjp
def gelu(x: Float[Array, '...']) -> Float[Array, '...']:
  """Exact GELU that saves its derivative in the forward pass."""
  return _gelu_forward(x)[0]


def _gelu_forward(x):
  cdf = 0.5 * (1 + jax.lax.erf(x * np.asarray(np.sqrt(0.5), x.dtype)))
  pdf = jnp.exp(-0.5 * x * x) * np.asarray(1 / np.sqrt(2 * np.pi), x.dtype)
  return x * cdf, cdf + x * pdf


def _gelu_backward(slope, dy):
  return (dy * slope,)


gelu.defvjp(_gelu_forward, _gelu_backward)


def layer_norm(
  x: Float[Array, '... D'],
  scale_D: Float[Array, ' D'],
  bias_D: Float[Array, ' D'],
  eps: float,
) -> Float[Array, '... D']:
  """LayerNorm in float32, kept apart from its neighbours by barriers.

  Without them XLA recomputes the normalisation inside every transposed
  product that uses it.
  """
  x32 = jax.lax.optimization_barrier(x.astype(jnp.float32))
  mean = jnp.mean(x32, -1, keepdims=True)
  centred = x32 - mean
  inverse = jax.lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + eps)
  y = centred * inverse * scale_D + bias_D
  return jax.lax.optimization_barrier(y.astype(x.dtype))


def rms_norm(
  x: Float[Array, '... D'], scale_D: Float[Array, ' D'], eps: float
) -> Float[Array, '... D']:
  """RMSNorm (arXiv 1910.07467) in float32, behind barriers as `layer_norm`."""
  x32 = jax.lax.optimization_barrier(x.astype(jnp.float32))
  inverse = jax.lax.rsqrt(jnp.mean(x32**2, -1, keepdims=True) + eps)
  y = x32 * inverse * scale_D
  return jax.lax.optimization_barrier(y.astype(x.dtype))


def attention(
  q_BxTxHxE: Float[Array, 'B T H E'],
  k_BxSxHxE: Float[Array, 'B S H E'],
  v_BxSxHxV: Float[Array, 'B S H V'],
  real_BxS: Bool[Array, 'B S'] | None = None,
  seen_TxS: Bool[Array, 'T S'] | None = None,
  *,
  key: jax.Array | None = None,
  rate: float = 0.0,
) -> Float[Array, 'B T H V']:
  """Softmax attention; T queries over S keys.

  Heads are moved next to the batch as one contiguous batch axis, behind a
  barrier, so that the batched products run on contiguous matrices.

  Args:
    q_BxTxHxE: Queries.
    k_BxSxHxE: Keys.
    v_BxSxHxV: Values; their width may differ from the keys'.
    real_BxS: False marks padding, to which nothing attends.
    seen_TxS: Which keys each query may attend to; None is all.
    key: Key of the dropout on attention's weights, or one for each example,
      [B].
    rate: Rate of this dropout.
  """
  B, T, H, _ = q_BxTxHxE.shape

  def pack(x):
    packed = jnp.moveaxis(x, 2, 1).reshape(B * H, x.shape[1], x.shape[3])
    return jax.lax.optimization_barrier(packed)

  q, k, v = pack(q_BxTxHxE), pack(k_BxSxHxE), pack(v_BxSxHxV)
  bias = jnp.zeros((1, 1, 1))
  if real_BxS is not None:
    bias_BxS = jnp.where(real_BxS, 0.0, _HIDDEN)
    bias = jnp.repeat(bias_BxS, H, 0)[:, None]
  if seen_TxS is not None:
    bias = bias + jnp.where(seen_TxS, 0.0, _HIDDEN)
  seeds = jnp.zeros(2, jnp.uint32)
  if key is not None and rate:
    seeds = words(key, (H,)).reshape(B * H, 2) if key.ndim else words(key)
  out = _attend(q, k, v, bias, seeds, 0.0 if key is None else rate)
  out = jax.lax.optimization_barrier(out).reshape(B, H, T, -1)
  return jnp.moveaxis(out, 1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(
  q_NxTxE: Array,
  k_NxSxE: Array,
  v_NxSxV: Array,
  bias: Array,
  seeds: Array,
  rate: float,
) -> Array:
  """Attends within N pairs of example and head; `bias` adds to the scores.

  The backward pass transposes weights first and then multiplies them, because a
  batched product that sums over rows is three times as slow on a CPU.
  """
  return _attend_forward(q_NxTxE, k_NxSxE, v_NxSxV, bias, seeds, rate)[0]


def _attend_forward(q, k, v, bias, seeds, rate):
  scores = jnp.einsum('nte,nse->nts', q, k) * np.float32(q.shape[-1] ** -0.5)
  weights = jax.nn.softmax(scores + bias, -1)
  dropped = _drop(weights, seeds, rate, _TOKENS)
  out = jnp.einsum('nts,nse->nte', dropped, v)
  return out, (q, k, v, bias, seeds, weights)


def _attend_backward(rate, saved, dout):
  q, k, v, bias, seeds, weights = saved
  transpose = lambda x: jax.lax.optimization_barrier(jnp.swapaxes(x, 1, 2))
  drop = lambda x: _drop(x, seeds, rate, _TOKENS)
  dv = transpose(drop(weights)) @ dout
  dweights = drop(jnp.einsum('nte,nse->nts', dout, v))
  mean = jnp.sum(dweights * weights, -1, keepdims=True)
  dscores = weights * (dweights - mean) * np.float32(q.shape[-1] ** -0.5)
  dq, dk = dscores @ k, transpose(dscores) @ q
  dseed = np.zeros(seeds.shape, jax.dtypes.float0)
  return dq, dk, dv, jnp.zeros_like(bias), dseed


_attend.defvjp(_attend_forward, _attend_backward)

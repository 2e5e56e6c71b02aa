"""Computes what the adapters and the head of a model read for some inputs."""

from collections.abc import Mapping
import functools
from typing import Any, NamedTuple

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp
import numpy as np

from fedjax_tune.data import covers
from fedjax_tune.data.public import Shown
from fedjax_tune.models.block import Keys
from fedjax_tune.models.foundation import Foundation
from fedjax_tune.typing import Inputs, Tree

# Inputs at a time.
_BATCH = 64
# Tokens of an input, so that what is read of many inputs fits into memory.
TOKENS = 8
# Of which tokens of an input its rows are made: 'some', one each; all real ones, its
# 'mean'; or weights float32 [N, m, T].
Weights = str | np.ndarray


class Reads(NamedTuple):
  """What is read for N inputs.

  Attributes:
    adapters: For each adapted sublayer what the adapter of each block reads,
      float32 [L, M, D]: M rows, equally many for each input.
    first: The same for the first token alone, [L, N, D].
    head: What the head reads, float32 [N, D].
  """

  adapters: dict[str, np.ndarray]
  first: dict[str, np.ndarray]
  head: np.ndarray


def read(found: Foundation, inputs: Inputs, weights: Weights) -> Reads:
  """Runs a model without the output of its adapters.

  Args:
    found: The model.
    inputs: N pictures or texts.
    weights: The weights of tokens in each row. 'some' takes a few real tokens,
      evenly spaced, the first among them.
  """
  count = len(jax.tree.leaves(inputs)[0])
  parts = []
  for begin in range(0, count, _BATCH):
    # The last batch is filled up, so that one program serves all.
    at = np.minimum(np.arange(begin, begin + _BATCH), count - 1)
    batch = jax.device_put(jax.tree.map(lambda x, at=at: x[at], inputs))
    own = weights if isinstance(weights, str) else jax.device_put(weights[at])
    parts.append(jax.device_get(_read_batch(found, batch, own)))
  adapters, first = (
    jax.tree.map(lambda *xs: np.concatenate(xs, 1)[:, :count], *of)
    for of in list(zip(*parts, strict=True))[:2]
  )
  head = np.concatenate([features for *_, features in parts])[:count]
  rows = lambda x: x.reshape(len(x), -1, x.shape[-1])
  return Reads({name: rows(x) for name, x in adapters.items()}, first, head)


def tokens(found: Foundation, inputs: Inputs) -> int:
  """Returns how many tokens the model makes of an input, with padding."""
  model = lambda: found.merge(found.base, found.theta)
  x, _ = jax.eval_shape(lambda x: model().start(x), inputs)
  return x.shape[1]


def weigh(
  tiers: Mapping[str, Foundation], shown: Mapping[str, Shown]
) -> dict[str, Weights]:
  """Chooses the tokens of rows, so that the rows of all tiers correspond."""
  if _same_tokens(tiers, {name: of.inputs for name, of in shown.items()}):
    return dict.fromkeys(tiers, 'some')
  covered = {n: shown[n].covered for n in tiers}
  known = [spans for spans in covered.values() if spans is not None]
  if len(known) < len(tiers):
    return dict.fromkeys(tiers, 'mean')
  return dict(zip(tiers, covers.match(known, TOKENS), strict=True))


def _same_tokens(
  tiers: Mapping[str, Foundation], inputs: Mapping[str, Inputs]
) -> bool:
  """Whether tokens of all models correspond one to one."""
  first, *others = tiers
  kind = lambda name: (
    type(tiers[name].merge(tiers[name].base, tiers[name].theta)),
    tokens(tiers[name], inputs[name]),
  )
  same = lambda a, b: all(
    map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b))
  )
  return all(
    kind(name) == kind(first) and same(inputs[name], inputs[first])
    for name in others
  )


def _read_batch(
  found: Foundation, inputs: Inputs, weights: str | Array
) -> Reads:
  """Returns what is read for a batch; by adapters [L, B, m, D]."""
  start, block, end = _programs(found.graph)
  arrays = found.base, found.theta
  x, real, order = start(*arrays, inputs)
  kind, own = (weights, None) if isinstance(weights, str) else ('', weights)
  if own is not None:
    own = jnp.take_along_axis(own, order[:, None], 2)
  read = []
  for layer in range(found.depth):
    x, seen = block(*arrays, x, real, layer, kind, own)
    read.append(seen)
  adapters, first = jax.tree.map(lambda *xs: jnp.stack(xs), *read)
  return Reads(adapters, first, end(*arrays, x))


@functools.lru_cache(maxsize=8)
def _programs(graph: nnx.GraphDef) -> tuple[Any, Any, Any]:
  """Compiles a model in three parts: before, in and after its blocks."""

  def model(base: Tree, theta: Tree) -> Any:
    return nnx.merge(graph, nnx.State(theta), nnx.State(base))

  def start(base, theta, inputs):
    made = model(base, theta)
    x, real = made.start(inputs)
    real = jnp.ones(x.shape[:2], bool) if real is None else real
    # Decoders read texts backwards.
    straight = lambda _: jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
    return x, real, getattr(made, 'order', straight)(inputs)

  def block(base, theta, x, real, layer, kind, weights):
    structure, stacks = nnx.split(model(base, theta).blocks)
    one = nnx.merge(structure, jax.tree.map(lambda p: p[layer], stacks))
    seen: dict[str, Array] = {}
    for name in ('attn', 'mlp'):
      if hasattr(one, f'{name}_adapter'):
        setattr(one, f'{name}_adapter', functools.partial(_keep, seen, name))
    y = one(x, x.shape[1], Keys(None, layer), real)
    thin = lambda read: jnp.einsum('bmt,btd->bmd', weights, read)
    if kind:
      thin = functools.partial(_THIN[kind], real_BxT=real)
    rows = {name: thin(read) for name, read in seen.items()}
    return y, (rows, {name: read[:, 0] for name, read in seen.items()})

  def end(base, theta, x):
    return model(base, theta).features(x)

  return jax.jit(start), jax.jit(block, static_argnums=5), jax.jit(end)


def _keep(seen: dict[str, Array], name: str, read: Array, out: Array) -> Array:
  """Takes the place of an adapter: keeps what it reads, and adds nothing."""
  seen[name] = read
  return out


def _mean(x_BxTxD: Array, real_BxT: Array) -> Array:
  """Returns the mean over real tokens, [B, 1, D]."""
  weight = real_BxT / jnp.sum(real_BxT, 1, keepdims=True)
  return jnp.einsum('btd,bt->bd', x_BxTxD, weight)[:, None]


def _some(x_BxTxD: Array, real_BxT: Array) -> Array:
  """Returns some real tokens, [B, m, D]; real ones come before padding."""
  count = jnp.sum(real_BxT, 1, keepdims=True)
  at = jnp.arange(TOKENS) * count // TOKENS
  return jnp.take_along_axis(x_BxTxD, at[..., None], 1)


_THIN = {'mean': _mean, 'some': _some}

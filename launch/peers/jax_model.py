"""The same ViT in plain JAX, over dictionaries of torch's tensors."""

from collections.abc import Mapping
import re

import jax
import jax.numpy as jnp
import numpy as np

from .. import fixed_workload as fixed

Tensors = dict[str, jax.Array]
_ROOT = 'base_model.model.'


def split(init: Mapping[str, np.ndarray]) -> tuple[Tensors, Tensors]:
  """Returns what trains and what is frozen; those of blocks [depth, ...]."""
  names: dict[str, list[str]] = {}
  for name in init:
    short = name.removeprefix(_ROOT)
    names.setdefault(re.sub(r'layers\.\d+\.', 'block.', short), []).append(name)
  stacked = {
    short: jnp.asarray(np.stack([init[n] for n in found]))
    if 'block.' in short
    else jnp.asarray(init[found[0]])
    for short, found in names.items()
  }
  trains = {n for n in stacked if 'lora_' in n or 'modules_to_save' in n}
  frozen = {n: x for n, x in stacked.items() if n not in trains}
  return {n: stacked[n] for n in sorted(trains)}, frozen


def loss(
  trained: Tensors,
  frozen: Tensors,
  images: jax.Array,
  labels: jax.Array,
  work: fixed.Workload,
) -> jax.Array:
  """Returns the mean cross-entropy of images [B, 3, side, side]."""
  held = frozen | trained
  blocks = {n: x for n, x in held.items() if 'block.' in n}
  step = lambda x, block: (_block(x, block, work.heads), None)
  x_BxTxD, _ = jax.lax.scan(step, _embed(held, images, work.patch), blocks)
  x_BxD = _norm(held, 'vit.layernorm', x_BxTxD[:, 0])
  logits = _linear(held, 'classifier.modules_to_save.default', x_BxD)
  found = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)
  return -jnp.mean(found)


def _embed(held: Tensors, images: jax.Array, patch: int) -> jax.Array:
  batch, channels, side, _ = images.shape
  grid = side // patch
  cut = images.reshape(batch, channels, grid, patch, grid, patch)
  patches = cut.transpose(0, 2, 4, 1, 3, 5).reshape(batch, grid * grid, -1)
  at = 'vit.embeddings.patch_embeddings.projection'
  kernel = held[f'{at}.weight'].reshape(held[f'{at}.weight'].shape[0], -1)
  x = patches @ kernel.T + held[f'{at}.bias']
  first = held['vit.embeddings.cls_token']
  first = jnp.broadcast_to(first, (batch, 1, first.shape[-1]))
  position = held['vit.embeddings.position_embeddings']
  return jnp.concatenate([first, x], axis=1) + position


def _block(x: jax.Array, block: Tensors, heads: int) -> jax.Array:
  batch, tokens, width = x.shape
  own = {n.removeprefix('vit.block.'): v for n, v in block.items()}
  h = _norm(own, 'layernorm_before', x)
  q = _adapted(own, 'attention.q_proj', h)
  k = _linear(own, 'attention.k_proj', h)
  v = _adapted(own, 'attention.v_proj', h)
  q, k, v = (t.reshape(batch, tokens, heads, -1) for t in (q, k, v))
  scores = jnp.einsum('bqhd,bkhd->bhqk', q, k) * (width // heads) ** -0.5
  mixed = jnp.einsum('bhqk,bkhd->bqhd', jax.nn.softmax(scores), v)
  x = x + _linear(own, 'attention.o_proj', mixed.reshape(x.shape))
  h = _linear(own, 'mlp.fc1', _norm(own, 'layernorm_after', x))
  return x + _linear(own, 'mlp.fc2', jax.nn.gelu(h, approximate=False))


def _linear(held: Tensors, name: str, x: jax.Array) -> jax.Array:
  return x @ held[f'{name}.weight'].T + held[f'{name}.bias']


def _adapted(held: Tensors, name: str, x: jax.Array) -> jax.Array:
  low = x @ held[f'{name}.lora_A.default.weight'].T
  added = low @ held[f'{name}.lora_B.default.weight'].T
  scale = fixed.ALPHA / fixed.RANK
  return _linear(held, f'{name}.base_layer', x) + scale * added


def _norm(held: Tensors, name: str, x: jax.Array) -> jax.Array:
  centred = x - jnp.mean(x, axis=-1, keepdims=True)
  variance = jnp.mean(centred**2, axis=-1, keepdims=True)
  scaled = centred * jax.lax.rsqrt(variance + 1e-12)
  return scaled * held[f'{name}.weight'] + held[f'{name}.bias']

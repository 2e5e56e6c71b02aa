"""Vision transformers from a local Hugging Face folder."""

import json
import pathlib
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from fedjax_tune.models import backbone, vit

FAMILIES = ('vit', 'deit', 'dinov2')

# What `transformers` takes where config.json is silent.
_DEFAULTS = {
  'hidden_act': 'gelu',
  'mlp_ratio': 4,
  'num_channels': 3,
  'qkv_bias': True,
  'use_swiglu_ffn': False,
}
# What this package's ViT computes; anything else would run, and be wrong.
_SUPPORTED = {'hidden_act': 'gelu', 'num_channels': 3, 'use_swiglu_ffn': False}


def load_huggingface(folder: str | pathlib.Path) -> backbone.Pretrained:
  """Loads a ViT, DeiT or DINOv2 as `save_pretrained` wrote it.

  Tensors may carry the names of transformers 4 or 5, with or without the
  prefix that a classification model puts before them, in one file or in
  shards. DeiT's model has a distillation token beside the class token.

  Args:
    folder: Holds `config.json` and `model.safetensors`, or
      `model.safetensors.index.json` with its shards; `image_mean` and
      `image_std` are read from `preprocessor_config.json` if it is there.

  Raises:
    FileNotFoundError: If the folder or one of its files is missing.
    ValueError: If a file is corrupt, the architecture is not supported, or a
      tensor is missing or misshaped.
  """
  folder = pathlib.Path(folder).expanduser()
  if not folder.is_dir():
    raise FileNotFoundError(f'weights={str(folder)!r} is not a folder.')
  raw = _DEFAULTS | _read_json(folder / 'config.json')
  config = _config(raw, folder)
  tensors = _strip(_read_tensors(folder))
  if not raw['qkv_bias']:
    for layer in range(config.depth):
      for part in ('attn.q', 'attn.k', 'attn.v'):
        stem = backbone.block_stems(layer, part)[0]
        tensors[f'{stem}.bias'] = np.zeros(config.embed, np.float32)
  return backbone.assemble(tensors, config, str(folder))


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  if not path.is_file():
    raise FileNotFoundError(f'{path} is missing.')
  try:
    value = json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(f'{path} is not valid JSON: {error}') from error
  if not isinstance(value, dict):
    raise ValueError(f'{path} must hold a JSON object.')
  return value


def _config(raw: dict[str, Any], folder: pathlib.Path) -> vit.ViTConfig:
  """Translates config.json, and says what can't be."""
  path = folder / 'config.json'
  family = raw.get('model_type')
  if family not in FAMILIES:
    raise ValueError(
      f'{path}: model_type={family!r} is not supported; it must be one of '
      f'{", ".join(FAMILIES)}.'
    )
  for field, value in _SUPPORTED.items():
    if raw[field] != value:
      raise ValueError(
        f'{path}: {field}={raw[field]!r} is not supported, only {value!r}.'
      )

  def integer(field: str) -> int:
    value = raw.get(field)
    if isinstance(value, list) and len(set(value)) == 1:  # a square [h, w]
      value = value[0]
    if type(value) is not int or value < 1:
      raise ValueError(
        f'{path}: {field}={value!r} must be a positive whole number.'
      )
    return value

  embed, heads = integer('hidden_size'), integer('num_attention_heads')
  if embed % heads:
    raise ValueError(
      f'{path}: hidden_size={embed} must be a multiple of '
      f'num_attention_heads={heads}.'
    )
  dinov2 = family == 'dinov2'
  ffn = embed * integer('mlp_ratio') if dinov2 else integer('intermediate_size')
  mean, std = _statistics(folder, family)
  return vit.ViTConfig(
    depth=integer('num_hidden_layers'),
    embed=embed,
    heads=heads,
    ffn=ffn,
    patch=integer('patch_size'),
    image_size=integer('image_size'),
    num_prefix=2 if family == 'deit' else 1,
    layer_scale=dinov2,
    eps=raw.get('layer_norm_eps', 1e-6 if dinov2 else 1e-12),
    mean=mean,
    std=std,
  )


def _statistics(folder: pathlib.Path, family: str) -> tuple[tuple, tuple]:
  """Finds the channel means and deviations the model was trained with."""
  path = folder / 'preprocessor_config.json'
  if path.is_file():
    raw = _read_json(path)
    if 'image_mean' in raw and 'image_std' in raw:
      return tuple(raw['image_mean']), tuple(raw['image_std'])
  if family == 'vit':
    return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
  return backbone.IMAGENET_MEAN, backbone.IMAGENET_STD


def _read_tensors(folder: pathlib.Path) -> dict[str, np.ndarray]:
  index = folder / 'model.safetensors.index.json'
  names = ['model.safetensors']
  if index.is_file():
    weight_map = _read_json(index).get('weight_map')
    if not isinstance(weight_map, dict):
      raise ValueError(f'{index} has no weight_map.')
    names = sorted(set(weight_map.values()))
  tensors = {}
  for path in (folder / name for name in names):
    if not path.is_file():
      raise FileNotFoundError(f'{path} is missing.')
    try:
      tensors |= safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
      raise ValueError(
        f'{path} is not a safetensors file, or is cut short: {error}'
      ) from error
  return tensors


def _strip(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Removes the prefix that a classification model puts before names."""

  def strip(name: str) -> str:
    first, _, rest = name.partition('.')
    return rest if first in FAMILIES else name

  return {strip(name): value for name, value in tensors.items()}

"""config.json of vision transformers, read and written."""

import pathlib

from fedjax_tune.models import hub_fields, vit
from fedjax_tune.models.sizes import ViTConfig
from fedjax_tune.typing import Json

# What these models compute here, which is also what `transformers` takes where
# config.json is silent; anything else would run, and be wrong.
_SUPPORTED = {
  'hidden_act': 'gelu',
  'num_channels': 3,
  'use_swiglu_ffn': False,
}


def parse(raw: Json, path: pathlib.Path) -> ViTConfig:
  """Translates config.json; see `hub_config.parse`."""
  hub_fields.check_supported(raw, _SUPPORTED, path)
  family = raw['model_type']
  sizes = hub_fields.block_sizes(raw, path)
  dinov2 = family == 'dinov2'
  if dinov2:
    raw = {'mlp_ratio': 4} | raw
    sizes['ffn'] = sizes['embed'] * hub_fields.integer(raw, 'mlp_ratio', path)
  else:
    sizes['ffn'] = hub_fields.integer(raw, 'intermediate_size', path)
  mean, std = vit.IMAGENET_MEAN, vit.IMAGENET_STD
  if family == 'vit':
    mean = std = (0.5, 0.5, 0.5)
  return ViTConfig(
    **sizes,
    patch=hub_fields.square(raw, 'patch_size', path),
    image_size=hub_fields.square(raw, 'image_size', path),
    num_prefix=2 if family == 'deit' else 1,
    layer_scale=dinov2,
    eps=hub_fields.epsilon(
      raw, 'layer_norm_eps', path, 1e-6 if dinov2 else 1e-12
    ),
    mean=mean,
    std=std,
  )


def render(config: ViTConfig, common: Json) -> Json:
  """Adds to the fields of every family; see `hub_config.render`."""
  fields = common | {
    'image_size': config.image_size,
    'patch_size': config.patch,
  }
  if config.family == 'dinov2':
    del fields['intermediate_size']
    fields['mlp_ratio'] = config.ffn // config.embed
    fields['use_mask_token'] = False
  return fields

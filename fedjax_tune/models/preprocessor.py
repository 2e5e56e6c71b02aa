"""preprocessor_config.json of Hugging Face's image models, read and written.

Its fields about values are used: rescaling and normalising are one map for each
channel, (x - mean) / std of pixels in [0, 1], and a `ViTConfig` has both. Its
fields about geometry (`do_resize`, `size`, `resample`, `do_center_crop`,
`crop_size`) are not read: every picture is resized bicubically to a square of
`data.image_size` pixels, whatever the weights saw in pretraining.
"""

import dataclasses
import math
import pathlib
import sys

from fedjax_tune.models import hub_fields
from fedjax_tune.models.families import FAMILIES
from fedjax_tune.models.sizes import ViTConfig
from fedjax_tune.typing import Json

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_HALF = (0.5, 0.5, 0.5)
# Means and deviations that `transformers` takes where the file has none.
_STATISTICS = {
  'ViTImageProcessor': (_HALF, _HALF),
  'DeiTImageProcessor': (_HALF, _HALF),
  'BitImageProcessor': (_CLIP_MEAN, _CLIP_STD),
}
_SUPPORTED = {'do_pad': False, 'auto_map': None}
_FACTOR = 1 / 255
# Bounds of means and deviations; beyond them float32 cannot tell pixels apart.
_LEAST, _MOST = 1e-6, 1e6

# What is read, which a processor_config.json keeps under image_processor.
_FIELDS = {'image_processor_type', 'feature_extractor_type', 'do_normalize'}
_FIELDS |= {'image_mean', 'image_std', 'do_rescale', 'rescale_factor'}

_Channels = tuple[float, float, float]


def parse(raw: Json, config: ViTConfig, path: pathlib.Path) -> ViTConfig:
  """Returns the sizes, with a file's settings for pixel values.

  Fields that are missing have the defaults of `transformers` for the type of
  processor; null is refused, as `transformers` gives it other meanings.

  Args:
    raw: The content of the file.
    config: The model's sizes.
    path: Begins every message.

  Raises:
    ValueError: The type is not known, or a value is no valid statistic.
  """
  hub_fields.check_supported(raw, _SUPPORTED, path)
  mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
  default_mean, default_std = _STATISTICS[_find_type(raw, config, path)]
  if _switch(raw, 'do_normalize', path):
    mean = _channels(raw, 'image_mean', default_mean, path)
    std = _channels(raw, 'image_std', default_std, path)
  if min(std) <= 0:
    raise ValueError(
      f'{path}: image_std={raw["image_std"]!r} must be above 0 in every channel.'
    )
  unit = 255.0  # What a value of 1 is of pixels / 255, once it is rescaled.
  if _switch(raw, 'do_rescale', path):
    unit *= _factor(raw, path)
  # With the usual factor it is 1, but for rounding.
  unit = 1.0 if math.isclose(unit, 1, rel_tol=1e-6) else unit
  mean, std = _scale(mean, unit), _scale(std, unit)
  if max(map(abs, mean)) > _MOST or not _LEAST <= min(std) <= max(std) <= _MOST:
    raise ValueError(
      f'{path}: image_mean, image_std and rescale_factor make it (x - {mean}) / '
      f'{std} of pixels x in [0, 1]; deviations must be from {_LEAST:g} to '
      f'{_MOST:g}, and means at most that.'
    )
  return dataclasses.replace(config, mean=mean, std=std)


def find_nested(raw: Json, path: pathlib.Path) -> Json | None:
  """Returns the part of processor_config.json about pictures, or None.

  Raises:
    ValueError: The part is in a place where `transformers` does not look.
  """
  nested = raw.get('image_processor')
  if nested is not None and not isinstance(nested, dict):
    raise ValueError(f'{path}: image_processor={nested!r} must be an object.')
  if lost := sorted(raw.keys() & _FIELDS):
    raise ValueError(
      f'{path}: {lost[0]} must stand in image_processor, or in '
      'preprocessor_config.json.'
    )
  return nested


def render(config: ViTConfig) -> Json:
  """Returns the preprocessor_config.json that makes inputs as training did."""
  side = config.image_size
  return {
    'image_processor_type': 'ViTImageProcessor',
    'do_convert_rgb': True,
    'do_resize': True,
    'size': {'height': side, 'width': side},
    'resample': 3,  # Bicubic; without it `transformers` resizes bilinearly.
    'do_center_crop': False,
    'do_rescale': True,
    'rescale_factor': _FACTOR,
    'do_normalize': True,
    'image_mean': list(config.mean),
    'image_std': list(config.std),
  }


def _find_type(raw: Json, config: ViTConfig, path: pathlib.Path) -> str:
  """Returns the type without the additions of older files and backends."""
  field, old = 'image_processor_type', 'feature_extractor_type'
  given = name = raw.get(field)
  if given is None and raw.get(old) is not None:
    field, given = old, raw[old]
    name = str(given).replace('FeatureExtractor', 'ImageProcessor')
  name = str(name or FAMILIES[config.family].processor).removesuffix('Fast')
  if name not in _STATISTICS:
    raise ValueError(
      f'{path}: {field}={given!r} is not supported, only '
      f'{", ".join(_STATISTICS)}.'
    )
  return name


def _switch(raw: Json, field: str, path: pathlib.Path) -> bool:
  value = raw.get(field, True)
  if not isinstance(value, bool):
    raise ValueError(f'{path}: {field}={value!r} must be true or false.')
  return value


def _channels(
  raw: Json,
  field: str,
  default: _Channels,
  path: pathlib.Path,
) -> _Channels:
  """Returns the numbers of the three channels, from three numbers or one."""
  value = raw.get(field, default)
  values = value if isinstance(value, list | tuple) else [value] * 3
  if len(values) != 3 or not all(map(_is_number, values)):
    raise ValueError(
      f'{path}: {field}={value!r} must be a finite number, or three.'
    )
  red, green, blue = map(float, values)
  return red, green, blue


def _scale(channels: _Channels, unit: float) -> _Channels:
  red, green, blue = channels
  return red / unit, green / unit, blue / unit


def _factor(raw: Json, path: pathlib.Path) -> float:
  value = raw.get('rescale_factor', _FACTOR)
  if not _is_number(value) or value <= 0:
    raise ValueError(
      f'{path}: rescale_factor={value!r} must be a finite number above 0.'
    )
  return float(value)


def _is_number(value: object) -> bool:
  if isinstance(value, bool) or not isinstance(value, int | float):
    return False
  return abs(value) <= sys.float_info.max

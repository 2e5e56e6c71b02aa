"""Pixels of a folder's preprocessor: the oracle is `transformers`' own."""

import dataclasses
import io
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
from PIL import Image
import pytest
import transformers

from fedjax_tune.data import images
from fedjax_tune.models import preprocessor, sizes

_VIT = sizes.ViTConfig(2, 16, 2, 24, patch=4, image_size=8)
_FAMILIES: dict[str, sizes.ViTConfig] = {
  'vit': _VIT,
  'deit': dataclasses.replace(_VIT, num_prefix=2),
  'dinov2': dataclasses.replace(_VIT, layer_scale=True),
}
_TYPES = (
  'ViTImageProcessor',
  'DeiTImageProcessorFast',
  'BitImageProcessor',
  'ViTFeatureExtractor',
  'DeiTFeatureExtractor',
)


@pytest.fixture(name='folder', scope='module')
def _folder(tmp_path_factory):
  return tmp_path_factory.mktemp('processor')


def _oracle(folder, family: str, raw: dict[str, Any]) -> Any:
  (folder / 'config.json').write_text(json.dumps({'model_type': family}))
  (folder / 'preprocessor_config.json').write_text(json.dumps(raw))
  return transformers.AutoImageProcessor.from_pretrained(folder, backend='pil')


def _normalise(pixels: np.ndarray, config: sizes.ViTConfig) -> np.ndarray:
  """As `vit.Embedding` does it; the tests of exports hold that."""
  mean, std = (
    np.asarray(s, np.float32) * 255 for s in (config.mean, config.std)
  )
  return (pixels.astype(np.float32) - mean) / std


_NUMBER = st.floats(0.0625, 2, width=32)
_CHANNELS = _NUMBER | st.tuples(_NUMBER, _NUMBER, _NUMBER)


@settings(deadline=None, max_examples=50)
@given(
  family=st.sampled_from(list(_FAMILIES)),
  raw=st.fixed_dictionaries(
    {},
    optional={
      'image_processor_type': st.none() | st.sampled_from(_TYPES[:3]),
      'image_mean': _CHANNELS,
      'image_std': _CHANNELS,
      'do_normalize': st.booleans(),
      'do_rescale': st.booleans(),
      'rescale_factor': st.sampled_from([1 / 255, 1 / 127.5, 1]),
    },
  ),
)
def test_values_are_those_of_transformers(folder, family, raw):
  pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
  processor = _oracle(folder, family, raw)
  want = processor(
    Image.fromarray(pixels), do_resize=False, do_center_crop=False
  )['pixel_values'][0].transpose(1, 2, 0)
  config = preprocessor.parse(raw, _FAMILIES[family], folder)
  got = _normalise(pixels, config)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('name', _TYPES)
def test_each_type_has_its_own_defaults(folder, name):
  raw: dict[str, Any] = {'image_processor_type': name}
  if 'Extractor' in name:
    raw = {'feature_extractor_type': name}
  processor = _oracle(folder, 'vit', raw)
  config = preprocessor.parse(raw, _VIT, folder)
  assert config.mean == pytest.approx(processor.image_mean)
  assert config.std == pytest.approx(processor.image_std)


@pytest.mark.parametrize(
  ('raw', 'message'),
  [
    (
      {'image_processor_type': 'CLIPSegProcessor'},
      "type='CLIPSegProcessor' is",
    ),
    ({'image_processor_type': 7}, 'image_processor_type=7 is not supported'),
    ({'image_mean': [0.5, 0.5]}, r'image_mean=\[0.5, 0.5\] must be .* three'),
    ({'image_mean': 'imagenet'}, "image_mean='imagenet' must be a finite"),
    ({'image_mean': [0.1, True, 0.1]}, r'image_mean=\[0.1, True, 0.1\] must'),
    ({'image_mean': float('nan')}, 'image_mean=nan must be a finite number'),
    ({'image_mean': 10**400}, 'image_mean=1000.* must be a finite number'),
    (
      {'image_std': [0.5, 0, 0.5]},
      r'image_std=\[0.5, 0, 0.5\] must be above 0',
    ),
    ({'image_std': 1e-320}, r'deviations must be from 1e-06 to'),
    ({'image_mean': 1e300}, 'and means at most that'),
    ({'rescale_factor': 1e-300}, r'rescale_factor make it \(x - '),
    ({'auto_map': {'AutoImageProcessor': 'x.Y'}}, 'auto_map=.* not supported'),
    ({'image_std': -1}, 'image_std=-1 must be above 0'),
    ({'image_std': float('inf')}, 'image_std=inf must be a finite'),
    ({'rescale_factor': 0}, 'rescale_factor=0 must be .* above 0'),
    ({'rescale_factor': '1/255'}, "rescale_factor='1/255' must be a finite"),
    ({'do_rescale': 'no'}, "do_rescale='no' must be true or false"),
    ({'do_normalize': None}, 'do_normalize=None must be true or false'),
    ({'image_mean': None}, 'image_mean=None must be a finite number, or three'),
    ({'do_pad': True}, 'do_pad=True is not supported'),
  ],
)
def test_what_makes_no_sense_is_refused(folder, raw, message):
  with pytest.raises(ValueError, match=f'{folder}: .*{message}'):
    preprocessor.parse(raw, _VIT, folder)


@pytest.mark.parametrize(
  ('raw', 'message'),
  [
    ({'image_processor': 'x'}, "image_processor='x' must be an object"),
    ({'image_mean': 0.2}, 'image_mean must stand in image_processor'),
  ],
)
def test_what_a_processor_says_elsewhere_is_refused(folder, raw, message):
  with pytest.raises(ValueError, match=message):
    preprocessor.find_nested(raw, folder)


@pytest.mark.parametrize('mode', ['RGB', 'L', 'P', 'CMYK', '1'])
@pytest.mark.parametrize('family', _FAMILIES)
def test_an_export_makes_the_inputs_of_training(folder, family, mode):
  """From the picture on: colours, bicubic resizing to a square, values."""
  config = dataclasses.replace(
    _FAMILIES[family], image_size=28, mean=(0.1, 0.5, 0.9), std=(0.2, 0.3, 0.4)
  )
  processor = _oracle(folder, family, preprocessor.render(config))
  rng = np.random.default_rng(0)
  # Larger, smaller, of the same size, and not square.
  for height, width in ((100, 100), (9, 9), (28, 28), (41, 77), (77, 13)):
    pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
    picture = Image.fromarray(pixels).convert(mode)
    file = io.BytesIO()
    picture.save(file, 'TIFF')
    source: Any = [{'image': file.getvalue()}]
    stored = images.Stored([source], np.zeros((1, 2), int), ['x'], 28, '', '')
    got = _normalise(stored[np.zeros(1, int)][0], config)
    want = processor(picture)['pixel_values'][0].transpose(1, 2, 0)
    np.testing.assert_allclose(got, want, atol=1e-4)

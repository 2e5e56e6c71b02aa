"""Names of weights, and the random presets."""

import jax
import numpy as np
import pytest

from fedjax_tune.models import pretrained


@pytest.mark.parametrize('image_size', [0, 18])
def test_image_size_must_be_a_multiple_of_the_patch(image_size):
  with pytest.raises(ValueError, match=f'image_size={image_size} .*8'):
    pretrained.load_pretrained('random:vit_test', '', image_size)


def test_unknown_weights_list_what_is_possible():
  with pytest.raises(ValueError, match=r"'resnet'.*dinov2_vits14.*vit_base"):
    pretrained.load_pretrained('resnet', '', 16)


def test_random_preset_is_reproducible_and_truncated():
  first = pretrained.load_pretrained('random:vit_test', '', 16)
  again = pretrained.load_pretrained('random:vit_test', '', 32)
  jax.tree.map(
    np.testing.assert_array_equal,
    first.params['blocks'],
    again.params['blocks'],
  )
  kernel = first.params['blocks']['mlp']['fc1']['kernel']
  assert kernel.shape == (4, 16, 32)
  assert 0.03 < np.abs(kernel).max() <= 0.04
  assert np.all(first.params['norm']['scale'] == 1)
  assert not np.any(first.params['norm']['bias'])


def test_corrupt_packaged_weights_stop_before_parsing(tmp_path):
  path = tmp_path / 'weights' / 'dinov2_vits14.onnx'
  path.parent.mkdir()
  path.write_bytes(b'not these')
  with pytest.raises(ValueError, match='corrupt'):
    pretrained.load_pretrained('dinov2_vits14', tmp_path, 224)

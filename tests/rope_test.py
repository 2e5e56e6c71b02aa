"""Rotary positions of any config.json: what transformers (torch) makes of it."""

import json
import pathlib
from typing import Any

from flax import nnx
import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers.models.llama import modeling_llama

from fedjax_tune.models import (
  backbone,
  foundation,
  hub_llama,
  hub_rope,
  huggingface,
)
from fedjax_tune.typing import Tokens

_PATH = pathlib.Path('config.json')
_SIZES: Any = {
  'vocab_size': 40,
  'hidden_size': 32,
  'num_hidden_layers': 1,
  'num_attention_heads': 2,
  'intermediate_size': 20,
  'max_position_embeddings': 64,
  'pad_token_id': 0,
}
_LINEAR = {'type': 'linear', 'factor': 4.0}
_LLAMA3 = {
  'rope_type': 'llama3',
  'factor': 8.0,
  'low_freq_factor': 1.0,
  'high_freq_factor': 4.0,
  'original_max_position_embeddings': 32,
}
_YARN = {
  'rope_type': 'yarn',
  'factor': 4.0,
  'original_max_position_embeddings': 16,
}
_DEFAULT = {'rope_type': 'default', 'rope_theta': 500.0}
# What config.json says of rotary positions, and which of it counts.
_SAID: dict[str, dict[str, Any]] = {
  'nothing': {},
  'old base': {'rope_theta': 700.0},
  'two bases': {'rope_theta': 700.0, 'rope_parameters': _DEFAULT},
  'old scaling': {'rope_scaling': _LINEAR, 'rope_theta': 700.0},
  'scaling beside null': {'rope_scaling': _LINEAR, 'rope_parameters': None},
  'scaling beside default': {
    'rope_scaling': _LINEAR,
    'rope_parameters': _DEFAULT,
  },
  'null beside scaling': {'rope_scaling': None, 'rope_parameters': _LLAMA3},
  'empty beside scaling': {'rope_scaling': {}, 'rope_parameters': _YARN},
  'no base outside': {'rope_theta': None, 'rope_parameters': _DEFAULT},
  'dynamic': {'rope_scaling': {'rope_type': 'dynamic', 'factor': 2.0}},
  'llama3': {'rope_parameters': _LLAMA3 | {'rope_theta': 10000.0}},
  'yarn': {'rope_parameters': _YARN, 'rope_theta': 5000.0},
  'length outside': {
    'rope_parameters': _YARN,
    'original_max_position_embeddings': 48,
  },
}


def _oracle(raw: dict[str, Any]) -> tuple[np.ndarray, float]:
  """Frequencies and factor of transformers."""
  config = transformers.LlamaConfig(**(_SIZES | raw))
  found = modeling_llama.LlamaRotaryEmbedding(config)
  return found.inv_freq.numpy(), found.attention_scaling


def _assert_same(raw: dict[str, Any]) -> None:
  rope = hub_llama.parse(_SIZES | raw, _PATH).rope
  got, want = rope.frequencies(16), _oracle(raw)
  np.testing.assert_allclose(got[0], want[0], rtol=2e-5)
  assert got[1] == pytest.approx(want[1])
  # What an export says is read alike.
  again = hub_rope.render(rope)
  assert hub_rope.parse(again, 64, _PATH) == rope
  np.testing.assert_allclose(_oracle(again)[0], want[0], rtol=1e-6)


@pytest.mark.parametrize('case', _SAID)
def test_frequencies_equal_transformers(case):
  _assert_same(_SAID[case])


_number = lambda low, high: st.floats(low, high, width=32)
_length = st.integers(8, 4096)
_kinds = st.one_of(
  st.fixed_dictionaries({'rope_type': st.just('default')}),
  st.fixed_dictionaries(
    {'rope_type': st.sampled_from(['linear', 'dynamic'])}
    | {'factor': _number(1, 64)}
  ),
  st.fixed_dictionaries(
    {
      'rope_type': st.just('llama3'),
      'factor': _number(1, 64),
      'low_freq_factor': _number(0.5, 2),
      'high_freq_factor': _number(3, 32),
    },
    optional={'original_max_position_embeddings': _length},
  ),
  st.fixed_dictionaries(
    {'rope_type': st.just('yarn'), 'factor': _number(1, 64)},
    optional={
      'original_max_position_embeddings': _length,
      'attention_factor': _number(0.5, 2),
      'beta_fast': _number(8, 64),
      'beta_slow': _number(0.5, 4),
      'mscale': _number(0.5, 2),
      'mscale_all_dim': _number(0.5, 2),
      'truncate': st.booleans(),
    },
  ),
)
_theta = st.one_of(_number(100, 1e6), st.integers(100, 10**7))


@st.composite
def _said(draw: Any) -> dict[str, Any]:
  """Any of the three fields, each with or without a base of its own."""

  def scaling() -> dict[str, Any] | None:
    found = draw(st.one_of(st.none(), st.just({}), _kinds))
    if found and draw(st.booleans()):
      found = found | {'rope_theta': draw(_theta)}
    return found

  raw: dict[str, Any] = {}
  for field in ('rope_scaling', 'rope_parameters'):
    raw |= {field: scaling()} if draw(st.booleans()) else {}
  raw |= {'rope_theta': draw(_theta)} if draw(st.booleans()) else {}
  name = 'original_max_position_embeddings'
  return raw | ({name: draw(_length)} if draw(st.booleans()) else {})


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(_said())
def test_any_configuration_equals_transformers(raw):
  _assert_same(raw)


def _logits(folder: pathlib.Path, ids: np.ndarray) -> np.ndarray:
  loaded = huggingface.load_huggingface(folder)
  found = foundation.split(
    backbone.build_model(loaded.config, rngs=nnx.Rngs(0)), 1
  )
  model = found.merge(jax.device_put(loaded.params), {})
  inputs = Tokens(jnp.asarray(ids, jnp.int32), jnp.zeros(ids.shape, jnp.int32))
  return np.asarray(model(inputs, jnp.arange(1)))


@pytest.mark.parametrize(
  'case',
  [
    'scaling beside null',
    'yarn',
    pytest.param('dynamic', marks=pytest.mark.slow),
    pytest.param('llama3', marks=pytest.mark.slow),
    pytest.param('length outside', marks=pytest.mark.slow),
    pytest.param('two bases', marks=pytest.mark.slow),
  ],
)
def test_logits_equal_transformers(tmp_path, case):
  torch.manual_seed(0)
  config = transformers.LlamaConfig(**(_SIZES | _SAID[case]))
  model = transformers.LlamaForCausalLM(config).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.3 * torch.randn_like(parameter))
  ids = np.random.default_rng(0).integers(1, 40, (2, 60))
  with torch.no_grad():
    want = model(torch.tensor(ids)).logits.numpy()
  model.save_pretrained(tmp_path)
  # As files are found, not as transformers 5 tidies them.
  path = tmp_path / 'config.json'
  raw = json.loads(path.read_text())
  del raw['rope_parameters']
  path.write_text(json.dumps(raw | _SAID[case]))
  np.testing.assert_allclose(_logits(tmp_path, ids), want, atol=2e-4)


@pytest.mark.parametrize(
  ('raw', 'message'),
  [
    ({'rope_theta': None}, 'rope_theta=None must be a number above 1'),
    ({'rope_theta': float('nan')}, 'rope_theta=nan'),
    ({'rope_theta': '10000'}, "rope_theta='10000'"),
    ({'rope_theta': -500.0}, 'rope_theta=-500'),
    ({'rope_parameters': {'rope_theta': None}}, 'rope_theta=None'),
    ({'rope_parameters': [1]}, r'rope_parameters=\[1\] must be an object'),
    ({'rope_scaling': {'type': 'longrope'}}, "rope_type='longrope' must be"),
    ({'rope_scaling': {'rope_type': None}}, 'rope_type=None must be one of'),
    ({'rope_scaling': {'type': 'linear'}}, 'factor=None must be a number'),
    ({'rope_scaling': _LINEAR | {'factor': 0.5}}, 'factor=0.5 .* at least 1'),
    ({'rope_scaling': _LINEAR | {'factor': True}}, 'factor=True'),
    ({'rope_scaling': _LINEAR | {'mrope_section': [1]}}, "'mrope_section'"),
    ({'partial_rotary_factor': 0.5}, 'partial_rotary_factor=0.5'),
    (
      {'rope_parameters': _LLAMA3 | {'low_freq_factor': 4.0}},
      'low_freq_factor=4.0 .*below high_freq_factor=4.0',
    ),
    ({'rope_parameters': _YARN | {'truncate': 'no'}}, "truncate='no'"),
    (
      {'rope_parameters': _YARN, 'original_max_position_embeddings': None},
      'original_max_position_embeddings=None',
    ),
  ],
)
def test_what_means_nothing_is_refused(raw, message):
  with pytest.raises(ValueError, match=f'config.json: .*{message}'):
    hub_llama.parse(_SIZES | raw, _PATH)

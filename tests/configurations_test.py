"""Any configuration means what transformers (torch) makes of it, or nothing."""

import json
import pathlib
import tempfile
from typing import Any

from flax import nnx
from huggingface_hub.errors import StrictDataclassError as _Strict
import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from fedjax_tune.models import backbone, foundation, huggingface, sizes
from fedjax_tune.typing import Tokens
from tests import tiny_hub

# Each field with values of which some are right, and some mean another model.
_COMMON: dict[str, list[Any]] = {
  'hidden_act': ['gelu', 'gelu_new', 'relu', 'quick_gelu', 'silu', None],
  'layer_norm_eps': [1e-12, 1e-6, 1e-3, 0.1, 0.0, -1.0, None, '1e-6', 1],
  'num_attention_heads': [1, 2, 3, 4, 6, 5, 12.0, True, None],
  'num_hidden_layers': [1, 2, 3, 0, '2'],
  'head_dim': [6, 4, None],
  'chunk_size_feed_forward': [0, 2],
  'is_decoder': [False, True, 0],
  'sliding_window': [None, 4],
  'unknown_field': [0.5],
}
_TEXT: dict[str, list[Any]] = {
  'type_vocab_size': [1, 2, 3, 0],
  'pad_token_id': [0, 1, 5, 39, 40, -1],
  'max_position_embeddings': [16, 15, 17],
  'position_embedding_type': ['absolute', 'relative_key'],
  'add_cross_attention': [False, True],
  'tie_word_embeddings': [True, False],
}
_IMAGE: dict[str, list[Any]] = {
  'image_size': [16, [16, 16], [16, 8], 20, 8, '16'],
  'patch_size': [4, [4, 4], [4, 2], 8],
  'qkv_bias': [True, False, 'false', None],
  'num_channels': [3, 1],
  'use_swiglu_ffn': [False, True],
  'use_mask_token': [True, False],
  'layerscale_value': [1.0, 0.5],
  'mlp_ratio': [2, 4, 2.0],
  'pooler_act': ['tanh', 'relu'],
}
_LLAMA: dict[str, list[Any]] = {
  'hidden_act': ['silu', 'swish', 'gelu'],
  'rms_norm_eps': [1e-6, 1e-2, 0.0, None, 'x'],
  'num_key_value_heads': [1, 2, 3, None, '2'],
  'num_attention_heads': [1, 2, 4, 3],
  'head_dim': [6, 12, 4, 5, None],
  'attention_bias': [False, True],
  'mlp_bias': [False, True],
  'pretraining_tp': [1, 2],
  'tie_word_embeddings': [False, True, None],
  'rope_theta': [500.0, 10**6, None, 'x'],
  'rope_scaling': [None, {'type': 'linear', 'factor': 2.0}, {'type': 'su'}],
  'partial_rotary_factor': [1.0, 0.5],
  'sliding_window': [None, 4],
  'layer_types': [['full_attention'] * 2, ['sliding_attention'] * 2],
}
_DISTILBERT: dict[str, list[Any]] = {
  'activation': ['gelu', 'relu'],
  'n_heads': [1, 2, 3, 5],
  'dim': [12, 14],
  'hidden_size': [12, 14],
  'sinusoidal_pos_embds': [False, True],
  'layer_norm_eps': [1e-3],
  'pad_token_id': [0, 3],
}
_FIELDS = {
  'bert': _COMMON | _TEXT,
  'roberta': _COMMON | _TEXT,
  'distilbert': _DISTILBERT,
  'vit': _COMMON | _IMAGE,
  'deit': _COMMON | _IMAGE,
  'dinov2': _COMMON | _IMAGE,
  'llama': _LLAMA,
}


# What transformers and torch raise where they have no such model.
_NO_SUCH_MODEL = (
  _Strict, AssertionError, ValueError, TypeError, ZeroDivisionError,
  RuntimeError,
)  # fmt: skip


@st.composite
def _changed(draw: Any) -> tuple[str, dict[str, Any], bool]:
  """A family, changes of its configuration, and when they are made."""
  family = draw(st.sampled_from(sorted(_FIELDS)))
  fields = _FIELDS[family]
  names = draw(st.lists(st.sampled_from(sorted(fields)), max_size=3))
  changes = {name: draw(st.sampled_from(fields[name])) for name in names}
  return family, changes, draw(st.booleans())


def _write(
  folder: pathlib.Path, family: str, changes: dict[str, Any], early: bool
) -> None:
  """Writes a model that has the changes, or is only said to have them."""
  config, build, _ = tiny_hub.FAMILIES[family]
  raw = config().to_dict()
  try:
    model = build(type(config())(**(raw | changes if early else raw)))
  except _NO_SUCH_MODEL:
    model = build(config())
  torch.manual_seed(0)
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.3 * torch.randn_like(parameter))
  model.save_pretrained(folder)
  path = folder / 'config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _ours(loaded: backbone.Pretrained, inputs: Any) -> np.ndarray:
  config = loaded.config
  model = backbone.build_model(config, rngs=nnx.Rngs(0))
  split = foundation.split(model, config.depth)
  params = {k: v for k, v in loaded.params.items() if k != 'lm_head'}
  merged = split.merge(jax.device_put({**split.base, **params}), split.theta)
  return np.asarray(merged.tokens(inputs, jnp.arange(config.depth)))


def _compare(folder: pathlib.Path, loaded: backbone.Pretrained) -> None:
  theirs: Any = transformers.AutoModel.from_pretrained(folder).eval()
  rng = np.random.default_rng(0)
  with torch.no_grad():
    if isinstance(loaded.config, sizes.ViTConfig):
      side = loaded.config.image_size
      images = rng.normal(size=(2, 3, side, side)).astype(np.float32)
      want = theirs(torch.tensor(images)).last_hidden_state.numpy()
      got = _ours(loaded, jnp.asarray(images.transpose(0, 2, 3, 1)))
    else:
      ids = rng.integers(6, 39, (2, 8))
      ids[1, 5:] = loaded.config.pad
      real = ids != loaded.config.pad
      mask = torch.tensor(real).long()
      want = theirs(torch.tensor(ids), attention_mask=mask)
      want = want.last_hidden_state.numpy()[real]
      ids = jnp.asarray(ids, jnp.int32)
      got = _ours(loaded, Tokens(ids, jnp.zeros_like(ids)))[real]
  np.testing.assert_allclose(got, want, atol=5e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(_changed())
def test_what_is_read_is_what_transformers_reads(drawn):
  family, changes, early = drawn
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    _write(folder, family, changes, early)
    refused = ''
    try:
      _compare(folder, huggingface.load_huggingface(folder))
    except ValueError as error:
      refused = str(error)
    assert not refused or (changes and str(folder) in refused), refused

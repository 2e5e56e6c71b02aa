"""What pretrained weights and their configuration may say, and what not."""

import re
import shutil
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import transformers

from fedjax_tune.models import huggingface, sizes, tensors
from tests import tiny_hub

_BLOCK = 'encoder.layer.1.attention.self.query.weight'


@pytest.fixture(name='written', scope='module')
def _written(tmp_path_factory):
  """Folders that are written once, by family and whether there is a head."""
  found = {}

  def write(family, head):
    if (family, head) not in found:
      path = tmp_path_factory.mktemp(family)
      found[family, head] = tiny_hub.write(path, family, head=head)
    return found[family, head]

  return write


@pytest.fixture(name='folder')
def _folder(written, tmp_path):
  """Copies a folder that may be spoilt."""

  def copy(family='bert', head=False):
    return shutil.copytree(written(family, head), tmp_path / family)

  return copy


def _refuse(folder, *parts):
  """Expects an error that begins with the folder, and has all parts."""
  with pytest.raises(ValueError, match=re.escape(str(folder))) as caught:
    huggingface.load_huggingface(folder)
  message = str(caught.value)
  assert message.startswith(str(folder)), message
  assert '\n' not in message
  for part in parts:
    assert part in message, message


def _spoilt(value, kind):
  return np.where(np.arange(value.size).reshape(value.shape) == 5, kind, value)


@pytest.mark.parametrize('kind', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
  ('family', 'name'),
  [
    ('bert', _BLOCK),
    ('bert', 'embeddings.LayerNorm.bias'),
    ('roberta', 'embeddings.word_embeddings.weight'),
    ('deit', 'embeddings.distillation_token'),
    ('dinov2', 'encoder.layer.0.layer_scale1.lambda1'),
    ('llama', 'norm.weight'),
  ],
)
def test_what_is_not_finite(folder, family, name, kind):
  path = folder(family)
  value = tiny_hub.read_tensors(path)[name]
  tiny_hub.edit_tensors(path, **{name: _spoilt(value, kind)})
  _refuse(path, repr(name), '1 values that are not finite', str(kind))


def test_what_float32_can_not_hold(folder):
  path = folder()
  value = tiny_hub.read_tensors(path)[_BLOCK].astype(np.float64)
  tiny_hub.edit_tensors(path, **{_BLOCK: _spoilt(value, 1e39)})
  _refuse(path, repr(_BLOCK), 'not finite in float32')


@pytest.mark.parametrize(
  ('family', 'name'),
  [
    ('bert', _BLOCK),
    ('bert', 'embeddings.word_embeddings.weight'),
    ('bert', 'pooler.dense.weight'),
    ('bert', 'encoder.layer.0.output.LayerNorm.weight'),
    ('distilbert', 'transformer.layer.1.ffn.lin2.weight'),
    ('vit', 'embeddings.patch_embeddings.projection.weight'),
    ('dinov2', 'encoder.layer.1.layer_scale2.lambda1'),
    ('llama', 'layers.0.mlp.gate_proj.weight'),
    ('llama', 'norm.weight'),
  ],
)
def test_zeros_where_no_sound_model_has_them(folder, family, name):
  path = folder(family)
  value = tiny_hub.read_tensors(path)[name]
  tiny_hub.edit_tensors(path, **{name: np.zeros_like(value)})
  _refuse(path, repr(name), 'zero throughout')


@pytest.mark.parametrize('family', tiny_hub.FAMILIES)
def test_zeros_that_sound_models_have(folder, family):
  """Biases, RoBERTa's types, and the tokens and positions of a fresh DeiT."""
  path = folder(family)
  found = tiny_hub.read_tensors(path)
  parts = ('bias', 'token', 'position_embeddings', 'token_type')
  zeros = {
    name: np.zeros_like(value)
    for name, value in found.items()
    if name.endswith('bias') or any(p in name for p in parts[1:])
    if 'embed_tokens' not in name
  }
  assert zeros or family == 'llama'
  tiny_hub.write_tensors(path, found | zeros)
  huggingface.load_huggingface(path)


@pytest.mark.parametrize('dtype', [np.int8, np.uint8, np.int64, bool])
def test_types_that_are_no_weights(folder, dtype):
  path = folder()
  value = tiny_hub.read_tensors(path)[_BLOCK]
  tiny_hub.edit_tensors(path, **{_BLOCK: (100 * value).astype(dtype)})
  _refuse(path, repr(_BLOCK), np.dtype(dtype).name, 'quantised')


@pytest.mark.parametrize(
  'dtype', [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2]
)
def test_float8_is_named(folder, dtype):
  path = folder()
  value = tiny_hub.read_tensors(path)[_BLOCK]
  tiny_hub.edit_tensors(path, **{_BLOCK: value.astype(dtype)})
  _refuse(path, repr(_BLOCK), 'F8_E', 'dequantised')


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16', 'float64'])
def test_types_that_are_weights(folder, dtype):
  path = folder()
  found = tiny_hub.read_tensors(path)
  cast = {k: v.astype(np.dtype(dtype)) for k, v in found.items()}
  tiny_hub.write_tensors(path, cast)
  got = huggingface.load_huggingface(path).params['embed']['word']
  assert got.dtype == np.float32
  want = cast['embeddings.word_embeddings.weight'].astype(np.float32)
  np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
  'suffix',
  ['SCB', 'qweight', 'weight_scale_inv', 'quant_state.bitsandbytes__nf4'],
)
def test_companions_of_quantised_weights(folder, suffix):
  path = folder()
  name = _BLOCK.replace('weight', suffix)
  tiny_hub.edit_tensors(path, **{name: np.ones(3, np.float32)})
  _refuse(path, repr(name), 'quantised')


@pytest.mark.parametrize(
  'method', ['bitsandbytes', 'gptq', 'awq', 'compressed-tensors', 'fp8']
)
def test_a_quantisation_in_the_configuration(folder, method):
  path = folder('llama')
  tiny_hub.edit_config(path, quantization_config={'quant_method': method})
  _refuse(path, 'config.json: quantization_config', method, 'dequantised')


def test_one_parameter_under_two_names(folder):
  path = folder()
  value = tiny_hub.read_tensors(path)[_BLOCK]
  tiny_hub.edit_tensors(path, **{f'bert.{_BLOCK}': value})
  _refuse(path, repr(_BLOCK), f"'bert.{_BLOCK}'", 'one parameter')
  value = value[0]
  tiny_hub.edit_tensors(
    path,
    **{f'bert.{_BLOCK}': None, 'embeddings.LayerNorm.gamma': value},
  )
  _refuse(path, 'LayerNorm.gamma', 'LayerNorm.weight', 'one parameter')


def test_names_of_both_versions(folder):
  path = folder('vit')
  old = 'encoder.layer.0.attention.attention.query.weight'
  new = 'layers.0.attention.q_proj.weight'
  found = tiny_hub.read_tensors(path)
  value = found[old] if old in found else found[new]
  tiny_hub.edit_tensors(path, **{old: value, new: value})
  _refuse(path, old, new, 'one parameter')


@pytest.mark.parametrize(
  ('family', 'name', 'why'),
  [
    ('bert', 'encoder.layer.2.output.dense.weight', 'no part of the model'),
    ('bert', 'Embeddings.word_embeddings.weight', 'no part of the model'),
    ('bert', 'encoder.rel.weight', 'no part of the model'),
    ('bert', 'visual.blocks.0.weight', 'no part of the model'),
    ('bert', 'roberta.pooler.dense.weight', 'another family'),
    ('bert', _BLOCK.replace('weight', 'lora_A.weight'), 'adapter of peft'),
    ('bert', 'base_model.model.x', 'adapter of peft'),
    ('vit', 'encoder.layer.0.mlp.gate.weight', 'no part of the model'),
    ('dinov2', 'embeddings.register_tokens', 'no part of the model'),
    ('llama', 'layers.0.self_attn.q_proj.bias', 'no part of the model'),
    ('llama', 'layers.1.self_attn.q_norm.weight', 'no part of the model'),
  ],
)
def test_tensors_that_would_be_dropped(folder, family, name, why):
  path = folder(family)
  tiny_hub.edit_tensors(path, **{name: np.ones(3, np.float32)})
  _refuse(path, repr(name), why)


def test_a_block_beside_the_base_model(folder):
  path = folder(head=True)
  name = 'tower.layers.0.weight'
  tiny_hub.edit_tensors(path, **{name: np.ones(3, np.float32)})
  _refuse(path, repr(name), 'no part of the model')


@pytest.mark.parametrize(
  ('family', 'said'),
  [
    ('bert', ['heads of other tasks: cls', 'drawn', 'pooler/kernel']),
    ('roberta', ['heads of other tasks: lm_head']),
    ('distilbert', ['heads of other tasks: vocab_']),
    ('vit', ['heads of other tasks: decoder']),
    ('deit', ['cls_classifier, distillation_classifier']),
    ('dinov2', ['heads of other tasks: classifier']),
  ],
)
def test_heads_of_other_tasks_are_said(folder, family, said):
  notes = ' '.join(huggingface.load_huggingface(folder(family, True)).notes)
  for part in said:
    assert part in notes


def test_a_custom_head_is_said(folder):
  path = folder(head=True)
  tiny_hub.edit_tensors(path, **{'my_task.weight': np.ones(3, np.float32)})
  notes = huggingface.load_huggingface(path).notes
  assert any('cls, my_task' in note for note in notes)


@pytest.mark.parametrize('family', ['bert', 'dinov2', 'llama'])
def test_a_whole_model_has_nothing_to_say(folder, family):
  path = folder(family, head=family == 'llama')
  name = 'embeddings.position_ids'
  tiny_hub.edit_tensors(path, **{name: np.arange(16)})
  (path / 'preprocessor_config.json').write_text('{}')
  assert huggingface.load_huggingface(path).notes == ()


def test_a_head_that_is_tied_and_differs(folder):
  """As in transformers, which then doesn't tie it."""
  path = folder('llama', head=True)
  tiny_hub.edit_config(path, tie_word_embeddings=True)
  loaded = huggingface.load_huggingface(path)
  assert isinstance(loaded.config, sizes.DecoderConfig)
  assert not loaded.config.tied
  theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(path)
  want = theirs.lm_head.weight.detach().numpy().T
  np.testing.assert_array_equal(loaded.params['lm_head']['kernel'], want)
  word = tiny_hub.read_tensors(path)['model.embed_tokens.weight']
  tiny_hub.edit_tensors(path, **{'lm_head.weight': word})
  loaded = huggingface.load_huggingface(path)
  assert isinstance(loaded.config, sizes.DecoderConfig)
  assert loaded.config.tied
  assert 'lm_head' not in loaded.params


_HUGE = 10**9


@pytest.mark.parametrize(
  ('family', 'field'),
  [
    ('bert', 'num_hidden_layers'),
    ('bert', 'vocab_size'),
    ('bert', 'max_position_embeddings'),
    ('bert', 'type_vocab_size'),
    ('bert', 'intermediate_size'),
    ('distilbert', 'n_layers'),
    ('vit', 'num_hidden_layers'),
    ('vit', 'image_size'),
    ('dinov2', 'mlp_ratio'),
    ('llama', 'num_hidden_layers'),
    ('llama', 'head_dim'),
    ('llama', 'intermediate_size'),
  ],
)
def test_counts_beyond_what_is_there(folder, family, field):
  path = folder(family)
  tiny_hub.edit_config(path, **{field: _HUGE})
  _refuse(path, 'the weights' if field != 'n_layers' else 'num_hidden_layers')
  tiny_hub.edit_config(path, **{field: 10**30})
  _refuse(path, 'must be a')


def test_counts_of_every_size_are_checked_before_anything_is_built():
  shapes = {'a': (3, 4), 'b': ()}
  config = sizes.TextConfig(2, 4, 2, 8, vocab=9, positions=14)
  with pytest.raises(ValueError, match='max_position_embeddings asks for 14'):
    tensors.check_counts(shapes, config, 'x')
  with pytest.raises(ValueError, match='num_hidden_layers=3 is more'):
    tensors.check_counts(
      shapes, sizes.ViTConfig(3, 4, 2, 8, patch=2, image_size=2), 'x'
    )


@pytest.mark.parametrize(
  ('family', 'field', 'value', 'rule'),
  [
    ('bert', 'layer_norm_eps', float('nan'), 'above 0'),
    ('bert', 'layer_norm_eps', -1e-12, 'above 0'),
    ('bert', 'layer_norm_eps', 0, 'above 0'),
    ('bert', 'layer_norm_eps', '1e-12', 'a number'),
    ('bert', 'layer_norm_eps', None, 'a number'),
    ('bert', 'layer_norm_eps', 12, 'at most 0.5'),
    ('dinov2', 'layer_norm_eps', float('inf'), 'at most 0.5'),
    ('llama', 'rms_norm_eps', float('nan'), 'above 0'),
    ('llama', 'rms_norm_eps', True, 'a number'),
    ('bert', 'hidden_size', 12.0, 'whole number'),
    ('bert', 'hidden_size', [12, 12], 'whole number'),
    ('bert', 'num_attention_heads', True, 'whole number'),
    ('bert', 'num_attention_heads', 0, 'whole number'),
    ('bert', 'num_hidden_layers', '2', 'whole number'),
    ('bert', 'vocab_size', -40, 'whole number'),
    ('roberta', 'pad_token_id', 15, 'max_position_embeddings=16'),
    ('vit', 'patch_size', [4], 'whole number'),
    ('vit', 'image_size', [16, 8], 'whole number'),
    ('vit', 'image_size', [16, 16, 16], 'whole number'),
    ('vit', 'qkv_bias', 'false', 'true or false'),
    ('vit', 'qkv_bias', 0, 'true or false'),
    ('vit', 'num_channels', 3.0, 'only 3'),
    ('dinov2', 'use_swiglu_ffn', 'false', 'only False'),
    ('dinov2', 'mlp_ratio', 2.0, 'whole number'),
    ('llama', 'tie_word_embeddings', 'false', 'true or false'),
    ('llama', 'tie_word_embeddings', None, 'true or false'),
    ('llama', 'num_key_value_heads', '2', 'whole number'),
    ('llama', 'num_attention_heads', 5, 'multiple of'),
    ('llama', 'attention_bias', 1, 'only False'),
    ('llama', 'max_position_embeddings', None, 'whole number'),
    ('distilbert', 'hidden_size', 14, 'must be dim=12'),
    ('distilbert', 'n_heads', 2.0, 'whole number'),
  ],
)
def test_values_of_fields(folder, family, field, value, rule):
  path = folder(family)
  tiny_hub.edit_config(path, **{field: value})
  _refuse(path, f'config.json: {field}', rule)


@pytest.mark.parametrize(
  ('family', 'field', 'value'),
  [
    ('bert', 'position_embedding_type', 'relative_key_query'),
    ('bert', 'is_decoder', True),
    ('bert', 'pruned_heads', {'0': [1]}),
    ('bert', 'hidden_act', 'gelu_new'),
    ('bert', 'alibi', True),
    ('distilbert', 'activation', 'relu'),
    ('vit', 'hidden_act', 'gelu_pytorch_tanh'),
    ('dinov2', 'num_register_tokens', 4),
    ('llama', 'hidden_act', 'gelu'),
    ('llama', 'sliding_window', 8),
    ('llama', 'layer_types', ['full_attention', 'sliding_attention']),
    ('llama', 'layer_types', ['full_attention']),
    ('llama', 'rope_interleaved', True),
    ('llama', 'residual_multiplier', 0.22),
    ('llama', 'final_logit_softcapping', 30.0),
    ('llama', 'use_qk_norm', True),
    ('llama', 'auto_map', {'AutoModel': 'modeling.Mine'}),
    ('llama', 'transformers_weights', 'other.safetensors'),
    ('llama', 'architectures', ['MistralForCausalLM']),
    ('bert', 'architectures', ['RobertaModel']),
    ('dinov2', 'architectures', ['Dinov2WithRegistersModel']),
  ],
)
def test_switches_of_other_models(folder, family, field, value):
  path = folder(family)
  tiny_hub.edit_config(path, **{field: value})
  _refuse(path, f'config.json: {field}=')


def test_a_switch_that_says_nothing(folder):
  path = folder('llama')
  quiet: dict[str, Any] = {
    'sliding_window': None, 'rope_interleaved': False, 'pretraining_tp': 2,
    'residual_multiplier': 1.0, 'architectures': ['MyOwnModel'],
    'layer_types': ['full_attention'] * 2, 'attention_dropout': 0.5,
  }  # fmt: skip
  tiny_hub.edit_config(path, **quiet)
  assert huggingface.load_huggingface(path).notes == ()


def test_fields_that_nobody_knows_are_said(folder):
  path = folder('llama')
  tiny_hub.edit_config(path, my_multiplier=0.5, another='x')
  (note,) = huggingface.load_huggingface(path).notes
  assert note.endswith('not read: another, my_multiplier.')


@pytest.mark.parametrize('family', tiny_hub.FAMILIES)
def test_nothing_is_said_of_what_transformers_writes(folder, family):
  """Nor of the fields of transformers 4, with all their defaults."""
  path = folder(family)
  old = {'torch_dtype': 'float32', 'output_past': True, 'max_length': 20}
  old |= {'pruned_heads': {}, 'use_bfloat16': False, 'tie_encoder_decoder': 0}
  tiny_hub.edit_config(path, **old)
  (path / 'preprocessor_config.json').write_text('{}')
  assert all(
    'heads' in note for note in huggingface.load_huggingface(path).notes
  )

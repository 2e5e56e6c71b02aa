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

from fedjax_tune import selection
from fedjax_tune.models import (
  backbone,
  bottleneck,
  decoder_block,
  foundation,
  huggingface,
  primitives,
  rope,
  sizes,
)
from fedjax_tune.models.lora import Lora
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
  loaded: Any = huggingface.load_huggingface(tmp_path)
  # A classifier's folder lacks the head that predicts tokens.
  assert 'lm_head' not in loaded.params
  config = dataclasses.replace(loaded.config, num_classes=3)
  assert isinstance(config, sizes.DecoderConfig)
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


_CONFIG = sizes.DecoderConfig(
  3, 12, 2, 20, vocab=40, positions=16, group=3, head_dim=4, num_classes=3
)


@functools.cache
def _drawn(
  num_classes: int = 3, *, full: bool = False, adapted: bool = True
) -> foundation.Foundation:
  """Our model with noise on every parameter, and LoRA everywhere."""
  config = dataclasses.replace(_CONFIG, num_classes=num_classes, full=full)
  lora = Lora(2, 2.0, 0.0)
  targets = backbone.linear_maps(config) if adapted else []
  build = lambda: backbone.build_model(
    config, dict.fromkeys(targets, lora), rngs=nnx.Rngs(0)
  )
  found = foundation.split(nnx.eval_shape(build), 3)
  rng = np.random.default_rng(1)
  draw = lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), jnp.float32)
  return dataclasses.replace(
    found,
    theta=jax.tree.map(draw, found.theta),
    base=jax.tree.map(draw, found.base),
  )


@functools.partial(jax.jit, static_argnums=0)
def _apply(graph, base, theta, inputs, layers):
  return nnx.merge(graph, nnx.State(theta), nnx.State(base))(inputs, layers)


def _outputs(found, inputs, layers=_LAYERS):
  return np.asarray(
    _apply(found.graph, found.base, found.theta, inputs, layers)
  )


def test_every_map_of_a_block_has_its_adapter():
  found = _drawn()
  assert backbone.linear_maps(_CONFIG) == [
    'attn.k', 'attn.proj', 'attn.q', 'attn.v',
    'mlp.down', 'mlp.gate', 'mlp.up',
  ]  # fmt: skip
  grads = jax.grad(
    lambda theta: _apply(
      found.graph, found.base, theta, _batch(), _LAYERS
    ).sum()
  )(found.theta)
  for module in ('attn', 'mlp'):
    for name, leaves in grads['blocks'][module].items():
      assert set(leaves) == {'lora_a', 'lora_b'}, name
      assert all(np.abs(leaf).max() > 0 for leaf in leaves.values()), name
  assert set(grads['head']) == {'kernel'}


def test_fedadapters_start_as_the_model_without():
  bare = _drawn(adapted=False)
  added: Any = dict.fromkeys(('attn', 'mlp'), bottleneck.Bottleneck(2))
  found = foundation.split(
    backbone.build_model(_CONFIG, added, rngs=nnx.Rngs(0)), 3
  )
  theta = {**found.theta, 'head': bare.theta['head']}
  run = lambda theta: _apply(found.graph, bare.base, theta, _batch(), _LAYERS)
  np.testing.assert_allclose(run(theta), _outputs(bare, _batch()), atol=1e-6)
  grads = jax.grad(lambda theta: run(theta).sum())(theta)['blocks']
  for name in ('attn_adapter', 'mlp_adapter'):
    assert np.abs(grads[name]['up']).max() > 0


def test_padding_changes_nothing():
  for classes in (0, 3):
    found = _drawn(classes)
    short, long = _batch(), _batch(length=12)
    got, want = _outputs(found, long), _outputs(found, short)
    if not classes:
      real = np.asarray(short.ids != 0)
      got, want = got[:, :9][real], want[real]
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_token_sees_what_came_before_alone():
  found, inputs = _drawn(0), _batch()
  cut = Tokens(jnp.asarray(inputs.ids).at[0, 5:].set(0), inputs.types)
  got, want = _outputs(found, cut)[0, :5], _outputs(found, inputs)[0]
  np.testing.assert_allclose(got, want[:5], atol=1e-5)
  other = Tokens(
    jnp.asarray(inputs.ids).at[0, 2].set(39 - inputs.ids[0, 2]), inputs.types
  )
  changed = np.abs(_outputs(found, other)[0] - want).max(-1)
  assert (changed[:2] < 1e-5).all()
  assert (changed[2:] > 1e-3).all()


def test_a_selection_of_blocks_is_the_model_without_the_others():
  found = _drawn()
  layers = np.array([0, 2])
  theta = selection.select(found.theta, found.axes, {'layer': layers})
  base = selection.select(found.base, found.base_axes, {'layer': layers})
  got = _apply(found.graph, found.base, theta, _batch(), layers)
  want = _apply(found.graph, base, theta, _batch(), np.arange(2))
  np.testing.assert_allclose(got, want, atol=1e-6)
  assert np.abs(got - _outputs(found, _batch())).max() > 1e-2


def test_a_head_takes_its_group_of_queries_along():
  """A model of one head is the other one whose other head says nothing."""
  found = _drawn(full=True, adapted=False)
  attn = found.theta['blocks']['attn']
  silent = attn['proj']['kernel'].at[:, 0].set(0)
  silenced = {**attn, 'proj': {'kernel': silent}}
  blocks = {**found.theta['blocks'], 'attn': silenced}
  alloc = {'heads': np.array([1])}
  held = selection.select(found.theta, found.axes, alloc)
  assert held['blocks']['attn']['q']['kernel'].shape == (3, 12, 1, 3, 4)
  got = _apply(found.graph, {}, held, _batch(), _LAYERS)
  want = _apply(
    found.graph, {}, {**found.theta, 'blocks': blocks}, _batch(), _LAYERS
  )
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_no_selection_finds_the_width_of_rotary_heads():
  found = _drawn(full=True, adapted=False)
  with pytest.raises(ValueError, match="axis 'qk_dim' of the allocation must"):
    selection.select(found.theta, found.axes, {'qk_dim': 2})
  held = selection.select_within(found.theta, found.axes, {'qk_dim': 2})
  jax.tree.map(np.testing.assert_array_equal, held, found.theta)
  assert 'qk_dim' not in sizes.axis_sizes(_CONFIG)


def test_rotary_scores_depend_on_distance_alone():
  q, k = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
  turn = lambda x: np.asarray(decoder_block.rotate(
    jnp.tile(jnp.asarray(x), (1, 6, 1)), rope.Rope(100.0)
  )[0])  # fmt: skip
  scores = turn(q) @ turn(k).T
  for distance in range(-5, 6):
    diagonal = np.diagonal(scores, distance)
    np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-4)
  assert len(np.unique(scores[0].round(4))) == 6


def test_rms_norm_has_root_mean_square_one():
  x = jnp.asarray(np.random.default_rng(0).normal(3, 2, (5, 8)), jnp.float32)
  y = primitives.rms_norm(x, jnp.full(8, 2.0), 0.0)
  np.testing.assert_allclose(np.mean(np.square(y), -1), 4, rtol=1e-5)
  np.testing.assert_allclose(y / x, (y / x)[:, :1] * np.ones((1, 8)), rtol=1e-5)


def test_too_long_a_text_is_refused():
  with pytest.raises(ValueError, match=r'17 tokens.*16'):
    _outputs(_drawn(), _batch(length=17))


@pytest.mark.parametrize(
  ('field', 'value', 'message'),
  [
    ('hidden_act', 'gelu', "hidden_act='gelu'.*'silu'"),
    ('attention_bias', True, 'attention_bias=True'),
    ('mlp_bias', True, 'mlp_bias=True'),
    ('num_key_value_heads', 4, 'num_attention_heads=6.*num_key_value_heads=4'),
    ('head_dim', 3, 'head_dim=3 must be even'),
    ('rope_parameters', {'rope_type': 'su'}, "rope_type='su' must be .*linear"),
    ('pad_token_id', 40, 'pad_token_id=40 must be below vocab_size=40'),
    ('vocab_size', 41, r'embed_tokens.*\(40, 12\).*\(41, 12\)'),
  ],
)
def test_unsupported_config(folder, field, value, message):
  path = folder / 'config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
  with pytest.raises(ValueError, match=message):
    huggingface.load_huggingface(folder)


@pytest.mark.parametrize('end', [7, [7, 8]])
def test_padding_is_the_end_of_a_text_where_there_is_no_other(folder, end):
  path = folder / 'config.json'
  own = {'pad_token_id': None, 'eos_token_id': end}
  path.write_text(json.dumps(json.loads(path.read_text()) | own))
  config: Any = huggingface.load_huggingface(folder).config
  assert config.pad == 7


def test_no_padding_at_all_is_refused(folder):
  path = folder / 'config.json'
  none = {'pad_token_id': None, 'eos_token_id': None}
  path.write_text(json.dumps(json.loads(path.read_text()) | none))
  message = 'pad_token_id and eos_token_id are null; one of them must'
  with pytest.raises(ValueError, match=message):
    huggingface.load_huggingface(folder)


@pytest.fixture(name='folder')
def _folder(tmp_path):
  model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**_SIZES))
  model.save_pretrained(tmp_path)
  return tmp_path

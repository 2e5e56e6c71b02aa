"""Text encoders: parity with transformers (torch), padding, and what trains."""

import dataclasses
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from fedjax_tune import selection
from fedjax_tune.models import backbone, foundation, huggingface, text
from fedjax_tune.models.lora import Lora
from fedjax_tune.typing import Tokens

_SIZES: Any = {
  'vocab_size': 40,
  'hidden_size': 12,
  'num_hidden_layers': 3,
  'num_attention_heads': 2,
  'intermediate_size': 20,
  'max_position_embeddings': 16,
  'num_labels': 3,
}
_CONFIGS: dict[str, Any] = {
  'bert': transformers.BertConfig(**_SIZES),
  'roberta': transformers.RobertaConfig(**_SIZES, type_vocab_size=1),
  'distilbert': transformers.DistilBertConfig(
    vocab_size=40,
    dim=12,
    n_layers=3,
    n_heads=2,
    hidden_dim=20,
    max_position_embeddings=16,
    id2label={0: 'x', 1: 'y', 2: 'z'},
  ),
}
_LAYERS = np.arange(3)


def _torch_model(family: str, auto: Any, **changes: Any) -> Any:
  """A random model none of whose tensors is constant or small."""
  torch.manual_seed(0)
  config = type(_CONFIGS[family])(**(_CONFIGS[family].to_dict() | changes))
  model = auto.from_config(config).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.3 * torch.randn_like(parameter))
  return model


def _batch(family: str, length: int = 9) -> Tokens:
  """Four texts, all but the first padded, with pairs where there are types."""
  rng = np.random.default_rng(0)
  pad = _CONFIGS[family].pad_token_id
  ids = rng.integers(2, 40, (4, 9)).astype(np.int32)
  types = np.zeros_like(ids)
  for row, real in enumerate((9, 6, 3, 1)):
    ids[row, real:] = pad
    types[row, real // 2 : real] = family == 'bert'
  wide = [(0, 0), (0, length - 9)]
  ids = np.pad(ids, wide, constant_values=pad)
  return Tokens(jnp.asarray(ids), jnp.asarray(np.pad(types, wide)))


def _torch_outputs(model: Any, family: str) -> Any:
  inputs = _batch(family)
  ids = torch.tensor(np.array(inputs.ids))
  flags = {}
  if family == 'bert':
    flags = {'token_type_ids': torch.tensor(np.array(inputs.types))}
  mask = (ids != model.config.pad_token_id).long()
  with torch.no_grad():
    return model(ids, attention_mask=mask, **flags)


def _with_head(
  loaded: backbone.Pretrained, model: Any, family: str, *, span: bool
) -> tuple[foundation.Foundation, Any]:
  """Returns our model, with torch's head (and dense map) in theta."""
  config = dataclasses.replace(
    loaded.config, num_classes=2 if span else 3, span=span
  )
  rngs = nnx.Rngs(0)
  found = foundation.split(backbone.build_model(config, rngs=rngs), 3)
  state = {k: v.numpy() for k, v in model.state_dict().items()}
  head = 'classifier.out_proj' if family == 'roberta' else 'classifier'
  stems = {'head': 'qa_outputs' if span else head}
  if not span and family != 'bert':
    dense = {'roberta': 'classifier.dense', 'distilbert': 'pre_classifier'}
    stems['pooler'] = dense[family]
  theta = {
    name: {'kernel': state[f'{s}.weight'].T, 'bias': state[f'{s}.bias']}
    for name, s in stems.items()
  }
  assert jax.tree.structure(theta) == jax.tree.structure(found.theta)
  base = {name: loaded.params[name] for name in found.base}
  return found, found.merge(jax.device_put(base), jax.device_put(theta))


@functools.partial(jax.jit, static_argnums=0)
def _run(graph: Any, state: Any, inputs: Tokens) -> Any:
  model = nnx.merge(graph, state)
  exits = model.class_tokens(inputs, _LAYERS)
  return model(inputs, _LAYERS), model.tokens(inputs, _LAYERS), exits


@pytest.mark.parametrize('family', _CONFIGS)
def test_classification_equals_transformers(tmp_path, family):
  auto = transformers.AutoModelForSequenceClassification
  model = _torch_model(family, auto)
  model.save_pretrained(tmp_path)
  loaded = huggingface.load_huggingface(tmp_path)
  assert loaded.config.family == family
  _, ours = _with_head(loaded, model, family, span=False)
  logits, tokens, exits = _run(*nnx.split(ours), _batch(family))
  want = _torch_outputs(model, family).logits
  np.testing.assert_allclose(logits, want, atol=1e-5)
  np.testing.assert_allclose(ours.head(exits[-1]), want, atol=1e-5)
  hidden = _torch_outputs(
    getattr(model, family), family
  ).last_hidden_state.numpy()
  real = np.asarray(_batch(family).ids != model.config.pad_token_id)
  np.testing.assert_allclose(tokens[real], hidden[real], atol=1e-5)


@pytest.mark.parametrize('family', _CONFIGS)
def test_spans_equal_transformers(tmp_path, family):
  auto = transformers.AutoModelForQuestionAnswering
  model = _torch_model(family, auto, id2label={0: 'a', 1: 'b'})
  model.save_pretrained(tmp_path)
  loaded = huggingface.load_huggingface(tmp_path)
  found, ours = _with_head(loaded, model, family, span=True)
  assert 'pooler' not in found.base | found.theta
  got = jax.jit(lambda x: ours(x, _LAYERS))(_batch(family))
  out = _torch_outputs(model, family)
  want = np.stack([out.start_logits, out.end_logits], -1)
  real = np.asarray(_batch(family).ids != model.config.pad_token_id)
  np.testing.assert_allclose(got[real], want[real], atol=1e-5)


def _drawn(family: str = 'bert', **changes: Any) -> text.TextConfig:
  sizes = text.TextConfig(4, 16, 2, 32, vocab=40, positions=16, num_classes=3)
  pad = _CONFIGS[family].pad_token_id
  return dataclasses.replace(sizes, family=family, pad=pad, **changes)


def _split(
  config: text.TextConfig, *, dropout: float = 0.0, remat: bool = False
) -> foundation.Foundation:
  """Our model with LoRA on q and fc2, as shapes."""
  lora = Lora(2, 2.0, dropout)
  adapters = {'attn.q': lora, 'mlp.fc2': lora}
  build = lambda: backbone.build_model(
    config, adapters, remat=remat, rngs=nnx.Rngs(0)
  )
  return foundation.split(nnx.eval_shape(build), config.depth)


def _build(config: text.TextConfig, **flags: Any) -> foundation.Foundation:
  """The same with noise on every parameter."""
  found = _split(config, **flags)
  rng = np.random.default_rng(1)
  draw = lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), jnp.float32)
  return dataclasses.replace(
    found,
    theta=jax.tree.map(draw, found.theta),
    base=jax.tree.map(draw, found.base),
  )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _apply(graph, method, base, theta, inputs, layers, key=None):
  model = nnx.merge(graph, nnx.State(theta), nnx.State(base))
  return getattr(model, method)(inputs, layers, key=key)


def _select(found, method, inputs, layers, key=None):
  layers = np.asarray(layers)
  held = selection.select(found.theta, found.axes, {'layer': layers})
  return _apply(found.graph, method, found.base, held, inputs, layers, key)


@pytest.mark.parametrize('family', _CONFIGS)
def test_padding_changes_nothing(family):
  found = _build(_drawn(family))
  short = _select(found, '__call__', _batch(family), range(4))
  long = _select(found, '__call__', _batch(family, 13), range(4))
  np.testing.assert_allclose(short, long, atol=1e-5)


def test_each_exit_is_that_of_the_shorter_model():
  found = _build(_drawn())
  head = found.theta['head']
  exits = _select(found, 'class_tokens', _batch('bert'), [3, 0, 2])
  for n in (1, 2, 3):
    want = _select(found, '__call__', _batch('bert'), [3, 0, 2][:n])
    got = exits[n - 1] @ head['kernel'] + head['bias']
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_remat_changes_nothing():
  key = jax.random.key(5)

  def gradient(remat):
    found = _build(_drawn(), dropout=0.3, remat=remat)
    loss = lambda theta: jnp.sum(
      found.merge(found.base, theta)(_batch('bert'), np.arange(4), key=key) ** 2
    )
    return jax.jit(jax.grad(loss))(found.theta)['blocks']['mlp']['fc2']

  close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
  jax.tree.map(close, gradient(True), gradient(False))


def test_dropout_needs_a_key_and_follows_it():
  found = _build(_drawn(), dropout=0.3)
  plain, once, again, other = (
    _select(found, '__call__', _batch('bert'), [0, 1], key)
    for key in (None, *map(jax.random.key, (5, 5, 6)))
  )
  np.testing.assert_array_equal(once, again)
  for a, b in ((plain, once), (once, other)):
    assert np.abs(a - b).max() > 1e-3


def _names(tree: Any) -> set[str]:
  return {
    jax.tree_util.keystr(path, simple=True, separator='/')
    for path, _ in jax.tree_util.tree_leaves_with_path(tree)
  }


@pytest.mark.parametrize('family', _CONFIGS)
def test_what_trains(family):
  found = _split(_drawn(family))
  lora = {
    f'blocks/{name}/lora_{m}' for name in ('attn/q', 'mlp/fc2') for m in 'ab'
  }
  head = {f'head/{leaf}' for leaf in ('kernel', 'bias')}
  pooler = {f'pooler/{leaf}' for leaf in ('kernel', 'bias')}
  new = set() if family == 'bert' else pooler
  assert _names(found.theta) == lora | head | new
  assert (pooler <= _names(found.base)) == (family == 'bert')
  full = _split(_drawn(family, full=True))
  assert not full.base
  assert _names(full.theta) == _names(found.theta) | _names(found.base)


def test_narrow_models_are_selections():
  """Every axis can be cut, and the model runs at what is left."""
  found = _build(_drawn(full=True))
  cut = {'embed': 12, 'heads': 1, 'qk_dim': 3, 'v_dim': 5, 'ffn': 7, 'layer': 2}
  cut = {name: np.arange(n) for name, n in cut.items()}
  theta = selection.select(found.theta, found.axes, cut)
  assert theta['pooler']['kernel'].shape == (12, 12)
  assert theta['embed']['word'].shape == (40, 12)
  logits = _apply(
    found.graph, '__call__', {}, theta, _batch('bert'), np.arange(2)
  )
  assert logits.shape == (4, 3)
  assert np.isfinite(logits).all()


def test_texts_beyond_the_positions_are_refused():
  longest = _drawn('roberta').max_tokens
  assert longest == 14
  found = _build(_drawn('roberta'))
  with pytest.raises(ValueError, match=r'inputs\.ids has 15 tokens.*14'):
    _select(found, '__call__', _batch('roberta', 15), range(4))

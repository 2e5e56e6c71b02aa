"""The backbone's own dropout: where it stands, and what it does on average."""

import dataclasses
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import text_test
import tiny
import torch
import transformers

from fedjax_tune import config
from fedjax_tune.models import (
  backbone,
  foundation,
  huggingface,
  peft,
  primitives,
  sizes,
)

_RATE, _KEY = 0.1, jax.random.key(0)


@pytest.fixture
def bent(monkeypatch):
  """In place of dropout: a curve, the same in torch and here."""

  def ours(x, key, rate):
    return x if key is None else x + 3 * rate * jnp.cos(2 * x)

  def of_weights(x, seeds, rate, stride):
    del stride
    return ours(x, seeds, rate)

  def theirs(x, p=0.5, training=True, inplace=False):
    del inplace
    return x + 3 * p * torch.cos(2 * x) if training else x

  monkeypatch.setattr(primitives, 'dropout', ours)
  monkeypatch.setattr(primitives, '_drop', of_weights)
  monkeypatch.setattr(torch.nn.functional, 'dropout', theirs)


def _trained(model, family):
  """Outputs of a torch model that trains."""
  inputs = text_test._batch(family)
  ids = torch.tensor(np.array(inputs.ids))
  flags = {}
  if family == 'bert':
    flags = {'token_type_ids': torch.tensor(np.array(inputs.types))}
  mask = (ids != model.config.pad_token_id).long()
  with torch.no_grad():
    return model.train()(ids, attention_mask=mask, **flags)


def _with_dropout(model, shape):
  """Returns the same model with dropout."""
  shape = dataclasses.replace(shape, dropout=_RATE)
  built = backbone.build_model(shape, rngs=nnx.Rngs(0))
  nnx.update(built, nnx.state(model))
  return built


@pytest.mark.usefixtures('bent')
@pytest.mark.parametrize('span', [False, True])
@pytest.mark.parametrize('family', ['bert', 'roberta', 'distilbert'])
def test_texts_drop_where_transformers_does(tmp_path, family, span):
  auto = transformers.AutoModelForSequenceClassification
  changes: dict[str, Any] = {'attn_implementation': 'eager'}
  if span:
    auto = transformers.AutoModelForQuestionAnswering
    changes['id2label'] = {0: 'a', 1: 'b'}
  elif family == 'distilbert':  # Here as elsewhere a tenth.
    changes['seq_classif_dropout'] = _RATE
  model = text_test._torch_model(family, auto, **changes)
  model.save_pretrained(tmp_path)
  loaded = huggingface.load_huggingface(tmp_path)
  _, ours = text_test._with_head(loaded, model, family, span=span)
  ours = _with_dropout(ours, ours.config)
  layers = jnp.arange(3)
  got = jax.jit(lambda x: ours(x, layers, key=_KEY))(text_test._batch(family))
  out = _trained(model, family)
  if span:
    real = np.asarray(text_test._batch(family).ids != model.config.pad_token_id)
    want = torch.stack([out.start_logits, out.end_logits], -1).numpy()
    np.testing.assert_allclose(got[real], want[real], atol=2e-5)
  else:
    np.testing.assert_allclose(got, out.logits, atol=2e-5)
    exits = jax.jit(lambda x: ours.class_tokens(x, layers, key=_KEY))
    last = exits(text_test._batch(family))[-1]
    np.testing.assert_allclose(ours.head(last), out.logits, atol=2e-5)


@pytest.mark.usefixtures('bent')
def test_images_drop_where_transformers_does(tmp_path):
  torch.manual_seed(0)
  changes: dict[str, Any] = {'attn_implementation': 'eager'}
  for place in ('hidden', 'attention_probs'):
    changes[f'{place}_dropout_prob'] = _RATE
  cfg = transformers.ViTConfig(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    image_size=16,
    patch_size=8,
    **changes,
  )
  model = transformers.ViTModel(cfg, add_pooling_layer=False)
  model.save_pretrained(tmp_path)
  images = np.random.default_rng(0).normal(size=(2, 16, 16, 3))
  images = images.astype(np.float32)
  with torch.no_grad():
    pixels = torch.tensor(images).permute(0, 3, 1, 2)
    want = model.train()(pixels).last_hidden_state.numpy()
  weights = huggingface.load_huggingface(tmp_path)
  ours = backbone.build_model(weights.config, rngs=nnx.Rngs(0))
  nnx.update(ours, nnx.State(jax.device_put(weights.params)))
  ours = _with_dropout(ours, weights.config)
  run = jax.jit(lambda x: ours.tokens(x, jnp.arange(2), key=_KEY))
  np.testing.assert_allclose(run(images), want, atol=2e-5)


@pytest.mark.parametrize('rate', [0.1, 0.5, 0.9])
def test_dropout_keeps_the_expected_value(rate):
  x = jnp.asarray(np.random.default_rng(0).normal(size=(64,)), jnp.float32)
  keys = jax.random.split(_KEY, 2000)
  drawn = jax.vmap(lambda key: primitives.dropout(x, key, rate))(keys)
  dropped = np.asarray(drawn == 0)
  assert abs(dropped.mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / 128e3)
  spread = np.abs(x) * np.sqrt(rate / (1 - rate) / 2000)
  assert np.all(np.abs(drawn.mean(0) - x) < 5 * spread)
  kept = np.asarray(drawn)[~dropped]
  want = np.broadcast_to(x / (1 - rate), drawn.shape)[~dropped]
  np.testing.assert_allclose(kept, want, rtol=1e-6)


def test_attention_drops_weights():
  """Weights of one query over as many keys as a row of values shows."""
  q = k = jnp.zeros((1, 8, 1, 2))
  v = jnp.eye(8)[None, :, None]
  out = primitives.attention(q, k, v, key=_KEY, rate=0.5)[0, :, 0]
  assert set(np.unique(out)) == {0.0, 0.25}
  plain = primitives.attention(q, k, v)
  np.testing.assert_array_equal(
    primitives.attention(q, k, v, key=None, rate=0.5), plain
  )


_BERT = sizes.TextConfig(
  2, 16, 2, 32, vocab=20, positions=12, num_classes=3, full=True
)
_VIT = sizes.ViTConfig(
  2, 16, 2, 32, patch=8, image_size=16, num_classes=3, full=True
)


@pytest.mark.parametrize('shape', [_BERT, _VIT], ids=['bert', 'vit'])
def test_a_rate_of_zero_and_an_evaluation_change_nothing(shape):
  inputs = tiny.batch(tiny.VIT_SIZE, 3).inputs
  if shape is _BERT:
    inputs = tiny.texts(3)
  build = lambda shape: foundation.split(
    nnx.eval_shape(lambda: backbone.build_model(shape, rngs=nnx.Rngs(0))), 2
  )
  theta = jax.tree.map(
    lambda x: jnp.zeros(x.shape) + (x.ndim < 3), build(shape).theta
  )
  theta = tiny.noise(theta, 0)

  def logits(rate, key):
    found = build(dataclasses.replace(shape, dropout=rate))
    run = lambda x, k: found.merge({}, theta)(x, np.arange(2), key=k)
    return np.asarray(jax.jit(run)(inputs, key))

  want = logits(0.0, None)
  np.testing.assert_array_equal(logits(0.0, _KEY), want)
  np.testing.assert_array_equal(logits(0.3, None), want)
  one = logits(0.3, _KEY)
  np.testing.assert_array_equal(logits(0.3, _KEY), one)
  assert np.abs(one - want).max() > 1e-3
  assert np.abs(logits(0.3, jax.random.key(7)) - one).max() > 1e-3


def test_the_rate_comes_from_the_configuration():
  model = config.Model(dropout=0.1)
  bert = sizes.TextConfig(2, 8, 2, 8, vocab=9, positions=8)
  assert peft.with_trained(bert, model).dropout == 0.1
  image = sizes.ViTConfig(2, 8, 2, 8, patch=8, image_size=16)
  assert peft.with_trained(image, model).dropout == 0.1
  llama = sizes.DecoderConfig(
    2, 8, 2, 8, vocab=9, positions=8, group=1, head_dim=4
  )
  with pytest.raises(
    ValueError, match=r'model\.dropout=0\.1 must be 0 for a d'
  ):
    peft.with_trained(llama, model)

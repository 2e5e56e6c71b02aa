"""The ViT: selections of blocks, what it leaves out, and LoRA as peft's."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import tiny
import torch
import transformers

from fedjax_tune import selection
from fedjax_tune.models import backbone, foundation, huggingface, vit
from fedjax_tune.models.lora import Lora

_KEY = jax.random.key(5)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _apply(graph, method, base, local, images, layers, key):
  model = nnx.merge(graph, nnx.State(local), nnx.State(base))
  return getattr(model, method)(images, layers, key=key)


def _images(num=3):
  return tiny.batch(tiny.VIT_SIZE, num).inputs


def _run(found, layers, method='__call__', key=None):
  layers = np.asarray(layers)
  local = selection.select(found.theta, found.axes, {'layer': layers})
  return _apply(found.graph, method, found.base, local, _images(), layers, key)


@pytest.fixture(scope='module')
def found():
  return tiny.vit_foundation(dropout=0.3)


def test_the_head_reads_the_last_class_token(found):
  tokens = _run(found, [0, 2, 3], 'class_tokens', _KEY)
  head = found.theta['head']
  want = tokens[-1] @ head['kernel'] + head['bias']
  got = _run(found, [0, 2, 3], key=_KEY)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_each_class_token_is_that_of_the_shorter_model(found):
  """The pooled last block equals the full one, for every prefix."""
  pooled = _run(found, [3, 0, 2], 'class_tokens')
  for n in (1, 3):
    full = _run(found, [3, 0, 2][:n], 'tokens')
    np.testing.assert_allclose(pooled[n - 1], full[:, 0], rtol=1e-4, atol=1e-5)


def test_blocks_run_in_the_given_order(found):
  there = _run(found, [0, 2, 3], 'class_tokens')
  back = _run(found, [3, 2, 0], 'class_tokens')
  assert np.abs(there[-1] - back[-1]).max() > 1e-2


def test_a_selection_runs_the_blocks_of_those_ids():
  """Reordering the server's blocks and the ids alike changes nothing."""
  found = tiny.vit_foundation()
  order = np.array([2, 0, 3, 1])
  place = np.argsort(order)
  layers = np.array([1, 2])
  shuffle = lambda tree, axes: selection.select(tree, axes, {'layer': order})
  theta = shuffle(found.theta, found.axes)
  base = shuffle(found.base, found.base_axes)
  local = selection.select(theta, found.axes, {'layer': place[layers]})
  got = _apply(
    found.graph, '__call__', base, local, _images(), place[layers], None
  )
  np.testing.assert_allclose(got, _run(found, layers), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('way', ['remat', 'unroll'])
def test_how_blocks_run_changes_nothing(way):
  def gradient(**ways):
    found = tiny.vit_foundation(dropout=0.3, **ways)
    layers = np.arange(tiny.DEPTH)

    def loss(theta):
      model = found.merge(found.base, theta)
      return jnp.sum(model(_images(), layers, key=_KEY) ** 2)

    return jax.jit(jax.grad(loss))(found.theta)

  tiny.assert_close(gradient(**{way: True}), gradient(), rtol=1e-3, atol=1e-5)


def test_dropout_needs_a_key_and_follows_it(found):
  plain, once, again, other = (
    _run(found, [0, 1], key=key)
    for key in (None, _KEY, _KEY, jax.random.key(6))
  )
  np.testing.assert_array_equal(once, again)
  for a, b in ((plain, once), (once, other)):
    assert np.abs(a - b).max() > 1e-3


def test_uint8_images_are_normalised():
  mean, std = (0.2, 0.3, 0.4), (0.5, 0.6, 0.7)
  found = tiny.vit_foundation(mean=mean, std=std)
  layers = np.array([0])
  local = selection.select(found.theta, found.axes, {'layer': layers})
  images = np.asarray(_images())
  floats = ((images / 255 - mean) / std).astype(np.float32)
  got = [
    _apply(found.graph, '__call__', found.base, local, x, layers, None)
    for x in (images, floats)
  ]
  np.testing.assert_allclose(*got, rtol=1e-4, atol=1e-5)


def test_only_adapters_and_head_train(found):
  names = {
    jax.tree_util.keystr(path, simple=True, separator='/')
    for path, _ in jax.tree_util.tree_leaves_with_path(found.theta)
  }
  adapted = ('embed/patch', 'blocks/attn/proj', 'blocks/mlp/fc2')
  want = {f'{name}/lora_{m}' for name in adapted for m in 'ab'}
  assert names == want | {'head/kernel', 'head/bias'}
  fresh = foundation.split(
    vit.ViT(
      tiny.vit_config(),
      {'mlp.fc2': Lora(2, 1.0, 0.0)},
      rngs=tiny.nnx.Rngs(0),
    ),
    tiny.DEPTH,
  )
  lora = fresh.theta['blocks']['mlp']['fc2']
  assert not np.any(lora['lora_b'])
  # kaiming_uniform(a=sqrt(5)) over the fan-in.
  assert 0.9 / np.sqrt(32) < np.abs(lora['lora_a']).max() <= 1 / np.sqrt(32)


# -- peft as the oracle

_MODULES = {
  'attn.q': 'attention.q_proj',
  'attn.v': 'attention.v_proj',
  'attn.proj': 'attention.o_proj',
  'mlp.fc2': 'mlp.fc2',
}


# peft reads an attribute that transformers has renamed.
@pytest.mark.filterwarnings('ignore:`is_gradient_checkpointing`')
@pytest.mark.parametrize(
  ('targets', 'rank', 'alpha'),
  [(('attn.proj', 'mlp.fc2'), 2, 8.0), (('attn.q', 'attn.v'), 4, 2.0)],
)
def test_lora_is_pefts(tmp_path, targets, rank, alpha):
  torch.manual_seed(0)
  config = transformers.ViTConfig(
    hidden_size=16,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=32,
    image_size=16,
    patch_size=8,
  )
  model = transformers.ViTModel(config, add_pooling_layer=False).eval()
  model.save_pretrained(tmp_path)
  modules = [_MODULES[name] for name in targets]
  lora = peft.LoraConfig(
    r=rank,
    lora_alpha=alpha,
    lora_dropout=0.0,
    target_modules=[name.split('.')[-1] for name in modules],
  )
  adapted = peft.get_peft_model(model, lora).eval()
  state = {
    name: torch.randn_like(p) * 0.3
    for name, p in adapted.named_parameters()
    if 'lora_' in name
  }
  assert len(state) == 3 * 2 * len(targets)
  adapted.load_state_dict(state, strict=False)
  images = np.random.default_rng(0).normal(size=(2, 16, 16, 3))
  images = images.astype(np.float32)
  with torch.no_grad():
    pixels = torch.tensor(images).permute(0, 3, 1, 2)
    want = adapted(pixels).last_hidden_state.numpy()

  weights = huggingface.load_huggingface(str(tmp_path))
  adapter = Lora(rank, alpha / rank, 0.0)
  found = foundation.split(
    backbone.build_model(
      weights.config, dict.fromkeys(targets, adapter), rngs=tiny.nnx.Rngs(0)
    ),
    depth=3,
  )
  theta = jax.tree.map(lambda x: x, found.theta)
  for target, module in zip(targets, modules, strict=True):
    part, name = target.split('.')
    ours = theta['blocks'][part][name]
    for matrix in ('lora_a', 'lora_b'):
      rows = [
        value.numpy().T
        for key, value in state.items()
        if f'{module}.lora_{matrix[-1].upper()}' in key
      ]
      assert len(rows) == 3
      ours[matrix] = np.stack(rows).reshape(ours[matrix].shape)
  base = {name: weights.params[name] for name in found.base if name != 'head'}
  got = _apply(found.graph, 'tokens', base, theta, images, np.arange(3), None)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)

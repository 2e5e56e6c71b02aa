"""BitFit, prompt tuning and prefix tuning: what trains, and what it computes."""

import dataclasses
import functools
import json
from typing import Any

from flax import nnx, traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import tiny
import torch
import transformers

from fedjax_tune import config
from fedjax_tune.costs import cost
from fedjax_tune.data import corpus, tasks
from fedjax_tune.deploy import finished
from fedjax_tune.methods import METHODS
from fedjax_tune.models import (
  backbone,
  foundation,
  huggingface,
  pretrained,
  sizes,
)
from fedjax_tune.models import peft as tuned
from fedjax_tune.typing import Tokens

# peft reads an attribute that transformers has renamed.
_RENAMED = pytest.mark.filterwarnings('ignore:`is_gradient_checkpointing`')
_NUM = 2  # Of prompts and prefixes.
_LAYERS = np.arange(tiny.DEPTH)
_HEAD = ('head/bias', 'head/kernel')
_IN_BLOCKS = tuple(
  f'blocks/{name}/bias'
  for name in (
    *(f'attn/{part}' for part in ('k', 'proj', 'q', 'v')),
    'mlp/fc1',
    'mlp/fc2',
    'norm1',
    'norm2',
  )
)
_PREFIX = ('blocks/attn/prefix/key', 'blocks/attn/prefix/value')
# What trains, by name.
_TRAINED = {
  ('vit', 'bitfit'): (*_IN_BLOCKS, 'embed/patch/bias', *_HEAD, 'norm/bias'),
  ('text', 'bitfit'): (*_IN_BLOCKS, 'embed/norm/bias', *_HEAD, 'pooler/bias'),
  ('vit', 'prompt'): ('embed/prompt', *_HEAD),
  ('text', 'prompt'): ('embed/prompt', *_HEAD),
  ('vit', 'prefix'): (*_PREFIX, *_HEAD),
  ('text', 'prefix'): (*_PREFIX, *_HEAD),
  ('vit', 'head'): _HEAD,
  ('text', 'head'): _HEAD,
}
# The same parameters train in the other of text and pictures.
_LONG = {('text', 'bitfit'), ('vit', 'prompt'), ('text', 'prefix')}
# Parameters of a client with two blocks of width 16 and MLPs of width 32.
_HEAD_SIZE = 16 * 3 + 3
_BIASES = 2 * (4 * 16 + 32 + 16 + 2 * 16)
_SIZES = {
  # Two more biases: of the patches and the norm, or the norm and the pooler.
  'bitfit': _BIASES + 2 * 16 + _HEAD_SIZE,
  'prompt': _NUM * 16 + _HEAD_SIZE,
  'prefix': 2 * 2 * _NUM * 16 + _HEAD_SIZE,
  'head': _HEAD_SIZE,
}


def _experiment(case: str, tune: str, **changes: Any) -> config.Experiment:
  """Returns an experiment in which every client holds two blocks."""
  return tiny.experiment(
    case,
    **{
      'model': {'tune': tune, 'prompt_tokens': _NUM},
      'clients': {'budgets': (2,) * 4},
      'engine': {'slab': 4},
      'lora': {'targets': (), 'patch_embed': False},
      'local': {'weight_decay': 0.0},
      'data': {'lengths': (8,)},
      **changes,
    },
  )


@functools.cache
def _found(kind: str, tune: str) -> foundation.Foundation:
  """Returns a tiny model whose pretrained parameters are noisy."""
  loaded = pretrained.load_pretrained(f'random:{kind}_test', '', tiny.VIT_SIZE)
  loaded = dataclasses.replace(loaded, params=tiny.noise(loaded.params, 7))
  task = tasks.Task('classification', tiny.CLASSES)
  return tuned.build(_experiment('fedra', tune), loaded, task)


def _inputs(kind: str) -> Any:
  return tiny.batch(tiny.VIT_SIZE, 3).inputs if kind == 'vit' else tiny.texts(3)


def _texts(num: int) -> corpus.Corpus:
  """Returns texts that are padded, all but the first."""
  inputs = jax.tree.map(np.asarray, tiny.texts(num))
  found = tiny.examples(num, tiny.VIT_SIZE)
  lengths = np.sum(inputs.ids != 0, axis=1).astype(np.int32)
  return dataclasses.replace(found, inputs=inputs, lengths=lengths)


@functools.partial(jax.jit, static_argnums=0)
def _run(graph: Any, base: Any, theta: Any, inputs: Any) -> Any:
  model: Any = nnx.merge(graph, nnx.State(theta), nnx.State(base))
  return model(inputs, _LAYERS), model.tokens(inputs, _LAYERS)


def _outputs(found: foundation.Foundation, inputs: Any) -> Any:
  return _run(found.graph, found.base, found.theta, inputs)


def _flat(tree: Any) -> dict[str, np.ndarray]:
  flat = traverse_util.flatten_dict(tree, sep='/')
  return {name: np.asarray(leaf) for name, leaf in flat.items()}


@pytest.mark.parametrize('kind', ['vit', 'text'])
def test_biases_start_as_they_were(kind):
  """So does the model: without adapters 'lora' trains the head alone."""
  frozen, tuned = (_found(kind, tune) for tune in ('lora', 'bitfit'))
  assert set(_flat(frozen.theta)) == set(_HEAD)
  inputs = _inputs(kind)
  tiny.assert_equal(_outputs(tuned, inputs), _outputs(frozen, inputs))


@pytest.mark.parametrize(
  ('kind', 'tune'),
  [
    pytest.param(*pair, marks=pytest.mark.slow if pair in _LONG else ())
    for pair in _TRAINED
  ],
)
def test_a_round_moves_what_trains(kind, tune):
  """FedRA on pictures, AllSmall on texts: two blocks a client."""
  e = _experiment('fedra' if kind == 'vit' else 'all_small', tune)
  data = None if kind == 'vit' else _texts(48)
  run = tiny.run(e, _found(kind, tune), data)
  start = _flat(run.theta)
  assert set(start) == set(_TRAINED[kind, tune])
  moved = _flat(run.rounds(1).theta)
  held = np.zeros(tiny.DEPTH, bool)
  for row in run.algorithm.rule.draw(0, range(4)):
    held[np.arange(2) if kind == 'text' else row['layer']] = True
  for name, leaf in moved.items():
    change = np.abs(leaf - start[name])
    if name == 'blocks/attn/k/bias':
      # Adds the same to all scores of a query, so nothing depends on it.
      assert change.max() < 1e-6
      continue
    assert change.max() > 1e-6, name
    if name.startswith('blocks'):
      each = change.reshape(tiny.DEPTH, -1).max(1)
      np.testing.assert_array_equal(each > 0, held)
  work = run.planner.plan(0).works[0]
  batch = jax.tree.map(lambda x: x[0, 0], work.own.batches)
  sig = tiny.signature(run.algorithm, 0)
  spent = cost.client_cost(run.algorithm, sig, batch)
  assert spent.theta_bytes == 4 * _SIZES[tune]


# -- what they compute


def _torch_bert() -> Any:
  torch.manual_seed(0)
  model = transformers.BertModel(
    transformers.BertConfig(
      vocab_size=20,
      hidden_size=12,
      num_hidden_layers=2,
      num_attention_heads=2,
      intermediate_size=20,
      max_position_embeddings=8 + _NUM,
    )
  ).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.3 * torch.randn_like(parameter))
    # Prompts have no position.
    model.embeddings.position_embeddings.weight[:_NUM] = 0
  return model


def _ours(model: Any, folder: Any, **trained: int) -> Any:
  """Returns our model around torch's weights.

  peft counts positions from the trained tokens on, we from the words on.
  """
  model.save_pretrained(folder)
  loaded = huggingface.load_huggingface(folder)
  cfg = dataclasses.replace(loaded.config, num_classes=3, **trained)
  if isinstance(cfg, sizes.TextConfig):
    embed = loaded.params['embed']
    embed['position'] = embed['position'][_NUM:]
    cfg = dataclasses.replace(cfg, positions=cfg.positions - _NUM)
  found = foundation.split(
    backbone.build_model(cfg, rngs=nnx.Rngs(0)), cfg.depth
  )
  return dataclasses.replace(found, base=jax.device_put(loaded.params))


def _peft_tokens(model: Any, inputs: Tokens) -> np.ndarray:
  ids = torch.tensor(np.array(inputs.ids))
  with torch.no_grad():
    out = model(ids, attention_mask=(ids != 0).long())
  return out.last_hidden_state.numpy()


def _single_texts() -> tuple[Tokens, np.ndarray]:
  """Returns texts of one type, as peft has them, and where they are real."""
  ids = tiny.texts(3).ids
  return Tokens(ids, jnp.zeros_like(ids)), np.asarray(ids != 0)


def _tokens(found: Any, inputs: Any) -> Any:
  model = found.merge(found.base, found.theta)
  return jax.jit(lambda x: model.tokens(x, np.arange(found.depth)))(inputs)


@_RENAMED
def test_prefix_tuning_equals_peft(tmp_path):
  bert = _torch_bert()
  found = _ours(bert, tmp_path, prefixes=_NUM)
  settings = peft.PrefixTuningConfig(
    task_type='FEATURE_EXTRACTION', num_virtual_tokens=_NUM
  )
  model: Any = peft.get_peft_model(bert, settings).eval()
  table = model.prompt_encoder['default'].embedding.weight.detach().numpy()
  table = table.reshape(_NUM, 2, 2, 2, 6).swapaxes(0, 1)  # Layers first.
  found.theta['blocks'] = {
    'attn': {'prefix': {'key': table[:, :, 0], 'value': table[:, :, 1]}}
  }
  inputs, real = _single_texts()
  want = _peft_tokens(model, inputs)
  np.testing.assert_allclose(
    _tokens(found, inputs)[real], want[real], atol=1e-5
  )


@_RENAMED
def test_prompt_tuning_equals_peft(tmp_path):
  bert = _torch_bert()
  found = _ours(bert, tmp_path, prompts=_NUM)
  settings = peft.PromptTuningConfig(
    task_type='FEATURE_EXTRACTION', num_virtual_tokens=_NUM
  )
  model: Any = peft.get_peft_model(bert, settings).eval()
  prompt = model.prompt_encoder['default'].embedding.weight.detach().numpy()
  # peft's prompts are words of the first type.
  prompt = prompt + np.asarray(found.base['embed']['type'][0])
  found.theta['embed'] = {'prompt': jnp.asarray(prompt)}
  inputs, real = _single_texts()
  # No block knows in which order tokens are.
  want = _peft_tokens(model, inputs)[:, _NUM:]
  np.testing.assert_allclose(
    _tokens(found, inputs)[real], want[real], atol=1e-5
  )


@_RENAMED
@pytest.mark.slow  # Of what leaves, leaving_test.py holds the same.
@pytest.mark.parametrize('tune', ['prompts', 'prefixes'])
def test_decoders_equal_peft(tmp_path, tune):
  """Of two texts, one padded; queries share keys, positions are turned."""
  torch.manual_seed(0)
  llama: Any = transformers.LlamaForCausalLM(
    transformers.LlamaConfig(
      vocab_size=20, hidden_size=12, num_hidden_layers=2,
      num_attention_heads=4, num_key_value_heads=2, head_dim=6,
      intermediate_size=20, max_position_embeddings=12, pad_token_id=0,
    )
  ).eval()  # fmt: skip
  with torch.no_grad():
    for parameter in llama.parameters():
      parameter.add_(0.3 * torch.randn_like(parameter))
  llama.save_pretrained(tmp_path)
  make = peft.PrefixTuningConfig
  if tune == 'prompts':
    make = peft.PromptTuningConfig
  settings = make(task_type='CAUSAL_LM', num_virtual_tokens=_NUM)
  model: Any = peft.get_peft_model(llama, settings).eval()
  table = model.prompt_encoder['default'].embedding.weight.detach().numpy()
  loaded = huggingface.load_huggingface(tmp_path)
  cfg: Any = dataclasses.replace(loaded.config, **{tune: _NUM})
  assert cfg.max_tokens == 10
  found = foundation.split(backbone.build_model(cfg, rngs=nnx.Rngs(0)), 2)
  shapes = jax.tree.map(np.shape, found.theta)
  theta: Any = {'embed': {'prompt': jnp.asarray(table)}}
  if tune == 'prefixes':
    both = table.reshape(_NUM, 2, 2, 2, 6).swapaxes(0, 1)  # Layers first.
    prefix = {'key': both[:, :, 0], 'value': both[:, :, 1]}
    theta = {'blocks': {'attn': {'prefix': prefix}}}
  assert jax.tree.map(np.shape, theta) == shapes
  inputs, real = _single_texts()
  ids = torch.tensor(np.array(inputs.ids))
  with torch.no_grad():
    want = model(ids, attention_mask=(ids != 0).long()).logits.numpy()
  want = want[:, _NUM:] if tune == 'prompts' else want
  run = jax.jit(lambda p: found.merge(p, theta)(inputs, np.arange(2)))
  got = run(jax.device_put(loaded.params))
  np.testing.assert_allclose(got[real], want[real], atol=1e-4)
  assert np.abs(want[real]).max() > 1


def test_what_a_decoders_tokens_take():
  """Bytes of what is sent, and FLOPs of a step, both grow by them."""
  cfg: Any = pretrained.load_pretrained('random:llama_test', '', 0).config
  task = tasks.Task('classification', tiny.CLASSES)
  head = cfg.embed * tiny.CLASSES
  keys = 2 * cfg.depth * cfg.heads * cfg.head_dim
  for tune, each in (('prompt', cfg.embed), ('prefix', keys)):
    e = _experiment('all_large', tune)
    found = tuned.shapes(e, cfg, task)
    assert foundation.num_bytes(found.theta) == 4 * (_NUM * each + head)
    trained = tuned.with_trained(cfg, e.model)
    seen = tuned.axis_sizes(trained, e.data)
    assert seen['key'] == 8 + _NUM
    assert seen['token'] == 8 + _NUM * (tune == 'prompt')


def test_visual_prompts_equal_torch(tmp_path):
  torch.manual_seed(0)
  model = transformers.ViTModel(
    transformers.ViTConfig(
      hidden_size=12,
      num_hidden_layers=2,
      num_attention_heads=2,
      intermediate_size=20,
      image_size=16,
      patch_size=8,
    )
  ).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.3 * torch.randn_like(parameter))
  found = _ours(model, tmp_path, prompts=_NUM)
  assert found.theta['embed']['prompt'].shape == (_NUM, 12)
  images = np.random.default_rng(0).normal(size=(3, 16, 16, 3))
  images = images.astype(np.float32)
  prompt = torch.tensor(np.array(found.theta['embed']['prompt']))
  with torch.no_grad():
    x = model.embeddings(torch.tensor(images.transpose(0, 3, 1, 2)))
    more = prompt.expand(3, -1, -1)
    x = torch.cat([x[:, :1], more, x[:, 1:]], 1)
    for block in model.layers:
      x = block(x)
    x = model.layernorm(x)
  want = np.concatenate([x[:, :1], x[:, 1 + _NUM :]], 1)
  np.testing.assert_allclose(
    _tokens(found, jnp.asarray(images)), want, atol=1e-5
  )


# -- with methods that cut widths


def test_heterofl_cuts_prefixes_along_their_width():
  e = _experiment(
    'heterofl',
    'prefix',
    clients={'budgets': (tiny.DEPTH,) * 4},
    width={'rates': (0.5,), 'axes': ('qk_dim',)},
  )
  run = tiny.run(e, _found('vit', 'prefix'))
  start, end = _flat(run.theta), _flat(run.rounds(1).theta)
  key, value = (np.abs(end[name] - start[name]) > 0 for name in _PREFIX)
  assert key[..., :4].all()
  assert not key[..., 4:].any()
  assert value.all()


def test_salience_reorders_prefixes_along():
  """Reordered, the whole model computes what it did."""
  kind = 'text'
  e = _experiment('raffm', 'prefix', raffm={'priority': 'qk+vo+ffn'})
  found = _found(kind, 'prefix')
  found = dataclasses.replace(found, theta=tiny.noise(found.theta, 3, 1.0))
  widths = tuned.axis_sizes(_config(kind), e.data)
  moved = tiny.build(e, found, (4,), widths=widths).model
  assert isinstance(moved, foundation.Foundation)
  key = 'blocks/attn/prefix/key'
  assert np.abs(_flat(moved.theta)[key] - _flat(found.theta)[key]).max() > 0.1
  inputs = _inputs(kind)
  tiny.assert_close(
    _outputs(moved, inputs), _outputs(found, inputs), rtol=1e-4, atol=1e-5
  )


def _config(kind: str) -> Any:
  return pretrained.load_pretrained(
    f'random:{kind}_test', '', tiny.VIT_SIZE
  ).config


@pytest.mark.parametrize('tune', ['bitfit', 'prompt', 'prefix'])
def test_frozen_kernels_are_not_reordered_again(tune):
  e = _experiment('raffm', tune, raffm={'priority': 'qk'})
  found = _found('vit', tune)
  widths = tuned.axis_sizes(_config('vit'), e.data)
  algorithm = tiny.build(e, found, (4,), widths=widths)
  assert algorithm.reorder is not None
  assert algorithm.reorder(found.theta, found.axes) is None


# -- what is refused


def test_inclusivefl_has_nothing_to_distill_in_prompts():
  e = _experiment('inclusivefl:published', 'prompt')
  with pytest.raises(ValueError, match=r"model.tune='prompt'.*inclusivefl"):
    METHODS['inclusivefl'].check(e, {'layer': 4}, (4, 3))


def test_decoders_have_no_biases():
  loaded = pretrained.load_pretrained('random:llama_test', '', 0)
  with pytest.raises(ValueError, match=r"model.tune='bitfit' .*decoder"):
    tuned.with_trained(loaded.config, config.Model(tune='bitfit'))


@pytest.mark.parametrize('tune', ['prompt', 'prefix'])
def test_trained_tokens_cannot_be_deployed(tune, tmp_path):
  fields = {'rounds': 1, 'model': {'tune': tune}}
  (tmp_path / 'config.json').write_text(json.dumps(fields))
  (tmp_path / 'summary.json').write_text('{"rounds": 1}')
  with pytest.raises(ValueError, match=rf"model.tune='{tune}'.*deployed"):
    finished.load(tmp_path)

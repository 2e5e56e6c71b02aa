"""Exported folders: what transformers (torch) makes of them is what we do."""

import dataclasses
import functools
import json
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_leaving
import tiny_text
import torch
import transformers

from fedjax_tune import selection
from fedjax_tune.data import tokens
from fedjax_tune.models import (
  backbone,
  export,
  foundation,
  huggingface,
  sizes,
)
from fedjax_tune.models.lora import Lora
from fedjax_tune.typing import Tokens

_DEPTH = 3
_TEXT = sizes.TextConfig(_DEPTH, 16, 4, 24, vocab=270, positions=12)
_IMAGE = sizes.ViTConfig(_DEPTH, 16, 4, 32, patch=4, image_size=8)
_CONFIGS: dict[str, Any] = {
  'bert': _TEXT,
  'roberta': dataclasses.replace(_TEXT, family='roberta', types=1, pad=1),
  'distilbert': dataclasses.replace(_TEXT, family='distilbert', types=0),
  'vit': _IMAGE,
  'deit': dataclasses.replace(_IMAGE, num_prefix=2),
  'dinov2': dataclasses.replace(_IMAGE, layer_scale=True),
}
_LABELS = ('x', 'y', 'z')
_TEXTS = ['who wrote [SEP] <s> that book by ann lee', 'A b']


@functools.cache
def _model(
  family: str, *, span: bool = False, full: bool = True
) -> tuple[Any, foundation.Foundation]:
  """A model of noise; with LoRA unless all of it trains."""
  outputs = 2 if span else 3
  changes: dict[str, Any] = {'num_classes': outputs, 'full': full}
  changes |= {'span': True} if span else {}
  config = dataclasses.replace(_CONFIGS[family], **changes)
  targets = ('attn.q', 'attn.proj', 'mlp.fc2', 'embed.patch')
  adapters: Any = dict.fromkeys(targets, Lora(2, 1.5, 0.0))
  model = backbone.build_model(
    config, {} if full else adapters, rngs=nnx.Rngs(0)
  )
  found = foundation.split(model, _DEPTH)
  rng = np.random.default_rng(0)
  noise = lambda x: x + 0.3 * rng.normal(size=x.shape).astype(np.float32)
  return config, dataclasses.replace(
    found,
    theta=jax.tree.map(noise, found.theta),
    base=jax.tree.map(noise, found.base),
  )


def _inputs(config: Any) -> Any:
  rng = np.random.default_rng(1)
  if isinstance(config, sizes.ViTConfig):
    return rng.integers(0, 256, (2, 8, 8, 3), np.uint8)
  ids = rng.integers(2, 40, (2, 8)).astype(np.int32)
  ids[1, 5:] = config.pad
  types = (np.arange(8) > 3) * (config.types > 1) * np.ones((2, 1))
  return Tokens(ids, types.astype(np.int32))


@functools.partial(jax.jit, static_argnums=0)
def _apply(graph, params, inputs):
  layers = jnp.arange(jax.tree.leaves(params['blocks'])[0].shape[0])
  return nnx.merge(graph, nnx.State(params))(inputs, layers)


def _torch_logits(
  folder: Any, config: Any, inputs: dict[str, Any]
) -> np.ndarray:
  auto: Any = transformers.AutoModelForImageClassification
  if not isinstance(config, sizes.ViTConfig):
    auto = transformers.AutoModelForSequenceClassification
    if config.span:
      auto = transformers.AutoModelForQuestionAnswering
  model, info = auto.from_pretrained(folder, output_loading_info=True)
  assert not any(info.values()), info
  assert model.dtype == torch.float32
  with torch.no_grad():
    out = model.eval()(**inputs)
  if 'start_logits' in out:
    return np.stack([out.start_logits, out.end_logits], -1)
  return out.logits.numpy()


def _assert_export(folder: Any, config: Any, graph: Any, params: Any) -> Any:
  """Exports, and compares what torch computes with what we do."""
  labels = _LABELS[: config.num_classes]
  written = export.save_huggingface(folder, config, params, labels)
  seen = tiny_leaving.torch_inputs(folder, config, _inputs(config))
  got = _torch_logits(folder, config, seen)
  want = np.asarray(_apply(graph, params, _inputs(config)))
  if getattr(config, 'span', False):
    real = _inputs(config).ids != config.pad
    got, want = got[real], want[real]
  assert want.std() > 0.1
  np.testing.assert_allclose(got, want, atol=1e-4)
  return written


@pytest.mark.parametrize('family', _CONFIGS)
def test_a_whole_model(tmp_path, family):
  config, found = _model(family)
  written = _assert_export(tmp_path, config, found.graph, found.theta)
  raw = json.loads((tmp_path / 'config.json').read_text())
  assert raw['id2label'] == {'0': 'x', '1': 'y', '2': 'z'}
  # It can be loaded here again: the same sizes, the same parameters.
  assert written == config
  loaded = huggingface.load_huggingface(tmp_path)
  want = dataclasses.replace(config, num_classes=0, full=False)
  assert loaded.config == want
  jax.tree.map(
    np.testing.assert_array_equal,
    loaded.params,
    {name: found.theta[name] for name in loaded.params},
  )


# Narrower along each axis: what is cut, and the sizes that are written.
_CUTS: dict[str, tuple[dict[str, int], dict[str, int]]] = {
  'depth and ffn': ({'layer': 2, 'ffn': 13}, {'depth': 2, 'embed': 16}),
  'qk_dim': ({'qk_dim': 3}, {'embed': 16, 'heads': 4}),
  'qk_dim and v_dim': ({'qk_dim': 2, 'v_dim': 3}, {'embed': 16, 'heads': 4}),
  'heads': ({'heads': 3}, {'embed': 16, 'heads': 4}),
  'embed and v_dim': (
    {'embed': 12, 'qk_dim': 3, 'v_dim': 3},
    {'embed': 12, 'heads': 4},
  ),
  # The heads are as wide together as two copies of the model.
  'embed': ({'embed': 10, 'layer': 2}, {'embed': 20, 'heads': 4}),
}


@pytest.mark.parametrize(
  'family', ['bert', 'vit', *tiny.slow('distilbert', 'dinov2')]
)
@pytest.mark.parametrize('case', _CUTS)
def test_a_subnetwork(tmp_path, family, case):
  cut, sizes_written = _CUTS[case]
  config, found = _model(family)
  held = {name: np.arange(n) for name, n in cut.items()}
  params = selection.select(found.theta, found.axes, held)
  written = _assert_export(tmp_path, config, found.graph, params)
  got = {name: getattr(written, name) for name in sizes_written}
  assert got == sizes_written
  if 'ffn' in cut:
    assert written.ffn == (16 if family == 'dinov2' else 13)


@pytest.mark.parametrize('family', ['bert', 'roberta', 'distilbert'])
def test_spans(tmp_path, family):
  config, found = _model(family, span=True)
  held = {'ffn': np.arange(9), 'embed': np.arange(14)}
  params = selection.select(found.theta, found.axes, held)
  _assert_export(tmp_path, config, found.graph, params)


@pytest.mark.parametrize('family', ['roberta', 'dinov2'])
def test_adapters_are_folded_in(tmp_path, family):
  config, found = _model(family, full=False)
  held = {'qk_dim': np.arange(3), 'ffn': np.arange(16)}
  theta = selection.select(found.theta, found.axes, held)
  base = selection.select(found.base, found.base_axes, held)
  fused = export.fuse(base, theta, 1.5)
  _, full = _model(family)
  _assert_export(tmp_path, config, full.graph, fused)
  run = lambda *trees: found.merge(*trees)(_inputs(config), np.arange(_DEPTH))
  want = jax.jit(run)(base, theta)
  got = _apply(full.graph, fused, _inputs(config))
  np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.parametrize('family', ['bert', 'roberta', 'distilbert'])
def test_the_tokenizer_comes_along(tmp_path, family):
  """From the text on: torch computes what we do, cut where training cut."""
  config, found = _model(family)
  write = tiny_text.write_roberta
  if family != 'roberta':
    write = tiny_text.write_vocab
  source, folder = write(tmp_path / 'source'), tmp_path / 'folder'
  ours = tokens.load(source, config.vocab)
  encoded = tokens.encode(ours, _TEXTS, None, 8, config.pad)
  export.save_huggingface(
    folder, config, found.theta, _LABELS, source, max_length=8,
    problem='single_label_classification',
  )  # fmt: skip
  theirs: Any = transformers.AutoTokenizer.from_pretrained(folder)
  inputs = theirs(_TEXTS, truncation=True, padding=True, return_tensors='pt')
  np.testing.assert_array_equal(inputs['input_ids'], encoded.ids)
  assert ('token_type_ids' in inputs) == (family == 'bert')
  got = _torch_logits(folder, config, dict(inputs))
  want = _apply(found.graph, found.theta, Tokens(encoded.ids, encoded.types))
  np.testing.assert_allclose(got, want, atol=1e-4)
  # And it can be read here again.
  again = tokens.encode(
    tokens.load(folder, config.vocab), _TEXTS, None, 8, config.pad
  )
  np.testing.assert_array_equal(again.ids, encoded.ids)


def test_the_statistics_come_along(tmp_path):
  config, found = _model('vit')
  config = dataclasses.replace(config, mean=(0.1, 0.2, 0.3))
  export.save_huggingface(tmp_path, config, found.theta, _LABELS)
  loaded = huggingface.load_huggingface(tmp_path)
  assert loaded.config == dataclasses.replace(config, num_classes=0, full=False)


def _without_norm(params):
  return params | {'embed': params['embed'] | {'norm': {}}}


def _narrow_pooler(params):
  kernel = params['pooler']['kernel'][:, :15]
  return params | {'pooler': params['pooler'] | {'kernel': kernel}}


def _several_heads(params):
  return params | {
    'head': jax.tree.map(lambda x: np.stack([x] * 4), params['head'])
  }


@pytest.mark.parametrize(
  ('change', 'labels', 'message'),
  [
    (lambda p: p, ('x', 'y'), r"label_names=\['x', 'y'\].*3 outputs"),
    (_without_norm, _LABELS, 'must have embed/norm/bias'),
    (lambda p: p | {'lora_a': np.zeros(3)}, _LABELS, 'must not have lora_a'),
    (_narrow_pooler, _LABELS, r'pooler/kernel.*\(16, 15\).*\(16, 16\)'),
    (_several_heads, _LABELS, r'head/bias.*\(4, 3\).*class.*\(4,\)'),
  ],
)
def test_bad_input(tmp_path, change, labels, message):
  config, found = _model('bert')
  with pytest.raises(ValueError, match=message):
    export.save_huggingface(tmp_path, config, change(found.theta), labels)
  assert not list(tmp_path.iterdir())

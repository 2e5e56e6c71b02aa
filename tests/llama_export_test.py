"""Exported Llamas: what transformers (torch) makes of them is what we do."""

import dataclasses
import functools
import json
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
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

_CONFIG = sizes.DecoderConfig(
  3, 12, 2, 20, vocab=270, positions=12, group=2, head_dim=4, pad=1
)
_LABELS = ('x', 'y', 'z')


@functools.cache
def _model(*, full: bool = True, **changes: Any) -> Any:
  """A model of noise; with LoRA unless all of it trains."""
  config = dataclasses.replace(_CONFIG, full=full, **changes)
  lora = Lora(2, 1.5, 0.0)
  targets = () if full else ('attn.q', 'attn.proj', 'mlp.gate', 'mlp.down')
  build = lambda: backbone.build_model(
    config, dict.fromkeys(targets, lora), rngs=nnx.Rngs(0)
  )
  found = foundation.split(nnx.eval_shape(build), config.depth)
  rng = np.random.default_rng(0)
  noise = lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), jnp.float32)
  return config, dataclasses.replace(
    found,
    theta=jax.tree.map(noise, found.theta),
    base=jax.tree.map(noise, found.base),
  )


def _inputs() -> Tokens:
  ids = np.random.default_rng(1).integers(2, 40, (2, 8)).astype(np.int32)
  ids[1, 5:] = 1
  return Tokens(ids, np.zeros_like(ids))


@functools.partial(jax.jit, static_argnums=0)
def _apply(graph, params, inputs):
  layers = jnp.arange(jax.tree.leaves(params['blocks'])[0].shape[0])
  return nnx.merge(graph, nnx.State(params))(inputs, layers)


def _assert_export(folder: Any, config: Any, graph: Any, params: Any) -> Any:
  """Exports, and compares what torch computes with what we do."""
  labels = _LABELS[: config.num_classes]
  written = export.save_huggingface(folder, config, params, labels)
  auto: Any = transformers.AutoModelForCausalLM
  if labels:
    auto = transformers.AutoModelForSequenceClassification
  model, info = auto.from_pretrained(folder, output_loading_info=True)
  assert not any(info.values()), info
  ids = torch.tensor(_inputs().ids)
  with torch.no_grad():
    got = model.eval()(ids, attention_mask=(ids != 1).long()).logits.numpy()
  want = np.asarray(_apply(graph, params, _inputs()))
  if not labels:
    real = _inputs().ids != 1
    got, want = got[real], want[real]
  assert want.std() > 0.1
  np.testing.assert_allclose(got, want, atol=1e-4)
  return written


@pytest.mark.parametrize(
  'changes',
  [{'num_classes': 3}, {}, {'tied': False}],
  ids=['classes', 'tied', 'untied'],
)
def test_a_whole_model(tmp_path, changes):
  config, found = _model(**changes)
  written = _assert_export(tmp_path, config, found.graph, found.theta)
  assert written == config
  # It can be loaded here again: the same sizes, the same parameters.
  loaded = huggingface.load_huggingface(tmp_path)
  assert loaded.config == dataclasses.replace(config, num_classes=0, full=False)
  params = {k: v for k, v in found.theta.items() if k != 'head'}
  jax.tree.map(np.testing.assert_array_equal, loaded.params, params)


# Narrower along each axis: what is cut, and the sizes that are written.
_CUTS: dict[str, tuple[dict[str, int], dict[str, int]]] = {
  'depth and ffn': ({'layer': 2, 'ffn': 13}, {'depth': 2, 'ffn': 13}),
  'heads': ({'heads': 1}, {'heads': 1, 'group': 2, 'head_dim': 4}),
  'v_dim': ({'v_dim': 3}, {'heads': 2, 'head_dim': 4}),
  'group': ({'group': 1}, {'heads': 2, 'group': 1}),
  # Two groups of two do not divide ten, five do; they do not divide nine, but
  # three divide two copies of nine.
  'embed': ({'embed': 10}, {'embed': 10, 'heads': 5, 'tied': True}),
  'odd embed': ({'embed': 9}, {'embed': 18, 'heads': 3, 'tied': False}),
}


@pytest.mark.parametrize('case', _CUTS)
def test_a_subnetwork(tmp_path, case):
  cut, sizes_written = _CUTS[case]
  config, found = _model()
  params = selection.select(found.theta, found.axes, cut)
  written = _assert_export(tmp_path, config, found.graph, params)
  assert {name: getattr(written, name) for name in sizes_written} == (
    sizes_written
  )


def test_adapters_are_folded_in(tmp_path):
  config, found = _model(full=False, num_classes=3)
  held = {'heads': np.array([1]), 'ffn': np.arange(16)}
  theta = selection.select(found.theta, found.axes, held)
  base = selection.select(found.base, found.base_axes, held)
  fused = export.fuse(base, theta, 1.5)
  _, full = _model(num_classes=3)
  _assert_export(tmp_path, config, full.graph, fused)
  run = lambda *trees: found.merge(*trees)(_inputs(), np.arange(3))
  got = _apply(full.graph, fused, _inputs())
  np.testing.assert_allclose(got, jax.jit(run)(base, theta), atol=1e-4)


def test_the_tokenizer_comes_along(tmp_path):
  """From the text on: torch computes what we do, cut where training cut."""
  config, found = _model(num_classes=3)
  source, folder = tiny_text.write_letters(tmp_path / 'source'), tmp_path / 'to'
  path = source / 'tokenizer_config.json'
  ends = {'bos_token': '<s>', 'eos_token': '</s>', 'chat_template': 'x'}
  path.write_text(json.dumps(json.loads(path.read_text()) | ends))
  texts = ['who wrote <s> it', 'A b']
  encoded = tokens.encode(tokens.load(source, 270), texts, None, 8, config.pad)
  export.save_huggingface(
    folder, config, found.theta, _LABELS, source, max_length=8
  )
  theirs: Any = transformers.AutoTokenizer.from_pretrained(folder)
  assert theirs.chat_template == 'x'
  inputs = theirs(texts, truncation=True, padding=True, return_tensors='pt')
  np.testing.assert_array_equal(inputs['input_ids'], encoded.ids)
  auto: Any = transformers.AutoModelForSequenceClassification
  model = auto.from_pretrained(folder).eval()
  assert (model.config.bos_token_id, model.config.eos_token_id) == (0, 2)
  with torch.no_grad():
    got = model(**inputs).logits.numpy()
  want = _apply(found.graph, found.theta, Tokens(encoded.ids, encoded.types))
  np.testing.assert_allclose(got, want, atol=1e-4)


def test_labels_are_for_classes_alone(tmp_path):
  config, found = _model()
  with pytest.raises(ValueError, match=r"label_names=\['x'\].*0 outputs"):
    export.save_huggingface(tmp_path, config, found.theta, ['x'])

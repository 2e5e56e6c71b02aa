"""A pretrained backbone, assembled from tensors under Hugging Face's names."""

from collections.abc import Mapping
import dataclasses
from typing import Any
import zlib

from flax import nnx, traverse_util
import numpy as np
from scipy import special

from fedjax_tune.models import decoder, layouts, linear, text, vit
from fedjax_tune.models.block import Adapters
from fedjax_tune.models.sizes import Config, DecoderConfig, TextConfig
from fedjax_tune.typing import Tree

Tensors = Mapping[str, np.ndarray]

# Channel means and standard deviations of ImageNet, in [0, 1].
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """The pretrained part of a model.

  Attributes:
    config: Its sizes; an image model's `mean` and `std` are those that it was
      trained with. `num_classes` is 0: the head is new.
    params: Nested dict of float32 arrays, keyed as the model names them, with
      blocks stacked on a leading layer axis.
    source: Where the weights come from, for messages.
    drawn: Parameters that the source lacks, and that were therefore drawn:
      'pooler/kernel' and 'pooler/bias', or nothing.
    tokenizer: Folder of a text model's tokenizer, else None.
  """

  config: Config
  params: Tree
  source: str
  drawn: tuple[str, ...] = ()
  tokenizer: str | None = None


def build_model(
  config: Config,
  adapters: Adapters | None = None,
  *,
  remat: bool = False,
  rngs: nnx.Rngs,
) -> vit.ViT | text.TextEncoder | decoder.Decoder:
  """Builds the model of a configuration, its pretrained part still zeros."""
  if isinstance(config, TextConfig):
    return text.TextEncoder(config, adapters, remat=remat, rngs=rngs)
  if isinstance(config, DecoderConfig):
    return decoder.Decoder(config, adapters, remat=remat, rngs=rngs)
  return vit.ViT(config, adapters, remat=remat, rngs=rngs)


def variables(
  config: Config, kind: type[nnx.Variable] = nnx.Variable
) -> dict[layouts.Path, Any]:
  """Returns a model's variables by path, as shapes that name their axes."""
  model = nnx.eval_shape(lambda: build_model(config, rngs=nnx.Rngs(0)))
  flat = nnx.to_flat_state(nnx.state(model, kind))
  return {tuple(map(str, path)): variable for path, variable in flat}


def pretrained_variables(config: Config) -> dict[layouts.Path, Any]:
  """Returns the variables whose values come from pretraining."""
  return variables(dataclasses.replace(config, full=False), linear.Frozen)


def linear_maps(config: Config) -> list[str]:
  """Names the linear maps of a block, 'attn.q' and so on: adapters' targets."""
  return [
    '.'.join(path[1:-1])
    for path in variables(config)
    if path[0] == 'blocks' and path[-1] == 'kernel'
  ]


def frozen_shapes(config: Config) -> Tree:
  """Returns the shapes of the pretrained parameters, as the model has them."""
  found = pretrained_variables(config)
  return traverse_util.unflatten_dict(
    {p: v.get_value() for p, v in found.items()}
  )


def draw(path: layouts.Path, shape: tuple[int, ...]) -> np.ndarray:
  """Draws a parameter, which depends on its path and its shape alone.

  Kernels, tables and tokens come from a normal distribution of deviation 0.02
  cut at two deviations; biases are 0 and norms the identity.
  """
  name = '/'.join(path)
  if name.endswith('scale'):
    return np.ones(shape, np.float32)
  if name.endswith('bias'):
    return np.zeros(shape, np.float32)
  low, high = special.ndtr([-2.0, 2.0])
  rng = np.random.default_rng(zlib.crc32(name.encode()))
  quantile = rng.uniform(low, high, shape)
  return (0.02 * special.ndtri(quantile)).astype(np.float32)


def assemble(tensors: Tensors, config: Config, source: str) -> Pretrained:
  """Assembles a backbone from tensors under Hugging Face's names.

  Args:
    tensors: Arrays in torch's layout (weights are [out, in]), under the names
      of the family's base model; others are left.
    config: The sizes at which the weights were trained.
    source: Begins every message.

  Raises:
    ValueError: If a tensor is missing or has another shape; it is named. BERT
      without its pooler, as masked language models are saved, gets one drawn;
      Llama without the head that predicts tokens stays without.
  """
  params, drawn = {}, []
  for path, variable in pretrained_variables(config).items():
    place = layouts.place(config, path, variable)
    if path[0] == 'pooler' and place.rows[0][0] not in tensors:
      params[path] = draw(path, variable.shape)
      drawn.append('/'.join(path))
      continue
    if path[0] == 'lm_head' and place.rows[0][0] not in tensors:
      continue
    rows = [_take(tensors, names, place.shape, source) for names in place.rows]
    params[path] = place.unpack(rows, variable.shape)
  nested = traverse_util.unflatten_dict(params)
  return Pretrained(config, nested, source, tuple(drawn))


def _take(
  tensors: Tensors,
  names: tuple[str, ...],
  shape: tuple[int, ...],
  source: str,
) -> np.ndarray:
  """Returns the tensor of one of these names."""
  found = [name for name in names if name in tensors]
  if not found:
    raise ValueError(
      f'{source}: there is no tensor {" or ".join(map(repr, names))}.'
    )
  value = tensors[found[0]]
  if value.shape != shape:
    raise ValueError(
      f'{source}: tensor {found[0]!r} has shape {value.shape}; the '
      f'configuration asks for {shape}.'
    )
  return np.asarray(value, np.float32)

"""A pretrained backbone, assembled from tensors under Hugging Face's names."""

from collections.abc import Collection, Mapping
import dataclasses
import zlib

from flax import nnx, traverse_util
import numpy as np

from fedjax_tune.models import (
  decoder,
  layouts,
  leftovers,
  linear,
  tensors,
  text,
  vit,
)
from fedjax_tune.models.block import Adapters
from fedjax_tune.models.families import FAMILIES
from fedjax_tune.models.sizes import Config, DecoderConfig
from fedjax_tune.typing import Tree

Tensors = Mapping[str, np.ndarray]
_HEAD = 'lm_head.weight'


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
    notes: What a user should be told about the weights, a sentence each.
    head: Parameters of the head in the source, by path, for any classes.
    labels: The classes of this head, if the source names them.
    head_source: Where the head comes from, if not from `source`.
    packaged: The name of packaged weights, else ''.
  """

  config: Config
  params: Tree
  source: str
  drawn: tuple[str, ...] = ()
  tokenizer: str | None = None
  notes: tuple[str, ...] = ()
  head: Mapping[layouts.Path, np.ndarray] = dataclasses.field(
    default_factory=dict
  )
  labels: tuple[str, ...] | None = None
  head_source: str = ''
  packaged: str = ''

  @property
  def pad(self) -> int:
    """The token that pads texts; 0 for a model of pictures."""
    return getattr(self.config, 'pad', 0)


def build_model(
  config: Config,
  adapters: Adapters | None = None,
  *,
  remat: bool = False,
  unroll: bool = False,
  rngs: nnx.Rngs,
) -> vit.ViT | text.TextEncoder | decoder.Decoder:
  """Builds the model of a configuration, its pretrained part still zeros."""
  build = FAMILIES[config.family].kind.build
  return build(config, adapters, remat=remat, unroll=unroll, rngs=rngs)


def variables(
  config: Config, kind: type[nnx.Variable] = nnx.Variable
) -> dict[layouts.Path, nnx.Variable]:
  """Returns a model's variables by path, as shapes that name their axes."""
  model = nnx.eval_shape(lambda: build_model(config, rngs=nnx.Rngs(0)))
  flat = nnx.to_flat_state(nnx.state(model, kind))
  return {tuple(map(str, path)): variable for path, variable in flat}


def pretrained_variables(config: Config) -> dict[layouts.Path, nnx.Variable]:
  """Returns the variables whose values come from pretraining."""
  return variables(dataclasses.replace(config, full=False), linear.Frozen)


def linear_maps(config: Config) -> list[str]:
  """Names the linear maps of a block, 'attn.q' and so on: adapters' targets."""
  return [
    '.'.join(path[1:-1])
    for path in variables(config)
    if path[0] == 'blocks' and path[-1] == 'kernel'
  ]


def draw(path: layouts.Path, shape: tuple[int, ...]) -> np.ndarray:
  """Draws a parameter; the draw depends only on its path and shape.

  Kernels, tables and tokens come from a normal distribution with deviation
  0.02, cut at two deviations; biases are 0 and norms the identity.
  """
  name = '/'.join(path)
  if name.endswith('scale'):
    return np.ones(shape, np.float32)
  if name.endswith('bias'):
    return np.zeros(shape, np.float32)
  # Here and not above: only weights that are drawn need SciPy.
  from scipy import special

  low, high = special.ndtr([-2.0, 2.0])
  rng = np.random.default_rng(zlib.crc32(name.encode()))
  quantile = rng.uniform(low, high, shape)
  return (0.02 * special.ndtri(quantile)).astype(np.float32)


def assemble(
  found: Tensors,
  config: Config,
  source: str,
  *,
  biased: bool = True,
  outside: Collection[str] = (),
) -> Pretrained:
  """Assembles a backbone from tensors under Hugging Face's names.

  Args:
    found: Arrays in torch's layout (weights are [out, in]), under the names of
      the family's base model. Heads of other tasks may be among them.
    config: The sizes at which the weights were trained.
    source: Begins every message.
    biased: Whether queries, keys and values have biases; else these are 0.
    outside: Tensors outside of the base model.

  Raises:
    ValueError: A tensor is missing, has another shape or type, holds values
      that no sound tensor has (`tensors.check`), or is no part of the model; or
      a size is larger than the tensors. BERT without its pooler, as masked
      language models are saved, gets a drawn pooler; Llama without the head
      that predicts tokens stays without.
  """
  shapes = {name: value.shape for name, value in found.items()}
  tensors.check_counts(shapes, config, source)
  config = _untie(found, config)
  params, drawn, read = {}, [], {_HEAD}
  for path, variable in pretrained_variables(config).items():
    place = layouts.place(config, path, variable)
    if path[0] == 'pooler' and not any(n.startswith('pooler.') for n in found):
      params[path] = draw(path, variable.shape)
      drawn.append('/'.join(path))
      continue
    if path[0] == 'lm_head' and _HEAD not in found:
      continue
    if not biased and path[-2:] in (
      ('q', 'bias'),
      ('k', 'bias'),
      ('v', 'bias'),
    ):
      params[path] = np.zeros(variable.shape, np.float32)
      continue
    names = [_find(found, row, source) for row in place.rows]
    rows = [
      _take(found[name], name, place.shape, path[-1], source) for name in names
    ]
    params[path] = place.unpack(rows, variable.shape)
    read.update(names)
  notes = leftovers.judge(found.keys() - read, source, outside)
  if drawn:
    notes += (f'{source}: drawn, as it has none: {", ".join(drawn)}.',)
  nested = traverse_util.unflatten_dict(params)
  return Pretrained(config, nested, source, tuple(drawn), notes=notes)


def _untie(found: Tensors, config: Config) -> Config:
  """Unties a head that exists and differs, as transformers 5 does."""
  tied = isinstance(config, DecoderConfig) and config.tied
  if not tied or _HEAD not in found:
    return config
  same = np.array_equal(found[_HEAD], found.get('embed_tokens.weight', ()))
  return dataclasses.replace(config, tied=same)


def _find(found: Tensors, names: tuple[str, ...], source: str) -> str:
  """Returns the name that a tensor has in the file."""
  there = [name for name in names if name in found]
  if len(there) == 1:
    return there[0]
  if there:
    raise ValueError(
      f'{source}: tensors {" and ".join(map(repr, there))} are one parameter; '
      'only one may be there.'
    )
  raise ValueError(
    f'{source}: there is no tensor {" or ".join(map(repr, names))}.'
  )


def _take(
  value: np.ndarray,
  name: str,
  shape: tuple[int, ...],
  parameter: str,
  source: str,
) -> np.ndarray:
  """Returns a tensor of this shape, in float32."""
  if value.shape != shape:
    raise ValueError(
      f'{source}: tensor {name!r} has shape {value.shape}; the configuration '
      f'asks for {shape}.'
    )
  return tensors.check(name, value, parameter, source)

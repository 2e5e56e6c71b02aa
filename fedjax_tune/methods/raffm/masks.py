"""RaFFM as its code was when the paper appeared: full shapes, masked gradients.

The code is github.com/yusx-swapp/fedlib, demo/RaFFM/utils/sme.py. Every client
computes with all weights; outside its subnetwork gradients are zero, layer by
layer. This saves nothing, and is here for comparison. Biases, values, norms and
embeddings always train, and weight decay changes masked weights too, as in that
code. Unlike in that code, all of BERT's pooler trains too, and each layer of
DistilBERT has its own mask: their hooks share a variable, so that all of them
read what the last layer drew.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_tune import config
from fedjax_tune.engine.algorithm import Context
from fedjax_tune.engine.randomness import host_rng
from fedjax_tune.engine.slabs import Info
from fedjax_tune.methods import refusals
from fedjax_tune.methods.facts import Facts
from fedjax_tune.typing import Tree

# Draws one layer's mask, bool of the given shape.
Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Masked:
  """How kernels of linear maps are masked.

  Attributes:
    dims: Names of the masked axes: the kernel's last axes (outputs), or all
      axes before the last one (inputs).
    draw: Draws a layer's mask over these axes.
    inputs: Whether inputs are masked, not outputs.
  """

  dims: tuple[str, ...]
  draw: Draw
  inputs: bool = False


def _first(counts: Sequence[int]) -> Draw:
  """The first c of the last axis, c one of `counts` cut to the axis."""

  def draw(rng, shape):
    count = rng.choice(counts)
    return np.broadcast_to(np.arange(shape[-1]) < count, shape)

  return draw


def _first_of_heads(rng: np.random.Generator, shape: tuple) -> np.ndarray:
  """The first floor((384 + 64 i) / H) channels of each head, i = 0..5."""
  heads, width = shape
  count = int((384 + 64 * rng.integers(6)) / heads)
  return np.broadcast_to(np.arange(width) < count, shape)


def _random_share(rng: np.random.Generator, shape: tuple) -> np.ndarray:
  """A random subset of 60, 70, 80, 85 or 90 %."""
  size = int(np.prod(shape))
  share = rng.choice([0.6, 0.7, 0.8, 0.85, 0.9])
  return (rng.permutation(size) < admitted(share, size)).reshape(shape)


def admitted(share: float, size: int) -> int:
  """Returns how many inputs a mask admits.

  What is left out is rounded down, as the authors do:

  >>> admitted(0.8, 768)
  615
  """
  return size - int((1 - share) * size)


_QK = _first(range(32, 81, 4))
_ROWS = _first((128, 256, 320, 428, 512, 728, 1024, 2048, 3072))
_BERT_QK = {('attn.q', 'attn.k'): Masked(('qk_dim',), _QK)}

# Preset -> linear maps of a block that share a mask -> that mask. Counts are
# the authors', made for a width of 768 and heads of 64; a model that has less
# is not masked there.
PRESETS: dict[str, dict[tuple[str, ...], Masked]] = {
  'paper_bert': _BERT_QK
  | {
    ('attn.proj',): Masked(('embed',), _ROWS),
    ('mlp.fc1',): Masked(('ffn',), _ROWS),
    ('mlp.fc2',): Masked(('embed',), _ROWS),
  },
  'paper_distilbert': _BERT_QK | {('mlp.fc1',): Masked(('ffn',), _ROWS)},
  'paper_vit': {
    ('attn.q', 'attn.k'): Masked(('heads', 'qk_dim'), _first_of_heads),
    ('attn.proj',): Masked(('heads', 'v_dim'), _random_share, inputs=True),
    ('mlp.fc1',): Masked(('embed',), _random_share, inputs=True),
    ('mlp.fc2',): Masked(('ffn',), _random_share, inputs=True),
  },
}


@dataclasses.dataclass(frozen=True)
class Masks:
  """Full models, of which each client trains only a part.

  One client of each round trains everything.

  Attributes:
    sizes: Size of each axis of the model.
    preset: A key of `PRESETS`.
    seed: Seed of the run.
  """

  sizes: Mapping[str, int]
  preset: str
  seed: int

  def info(self, rnd: int, cohort: Sequence[int]) -> list[Info]:
    """Returns for each client its kernels' masks int32 [layer, *dims]."""
    roles = host_rng('roles', self.seed, rnd).permutation(len(cohort))
    return [
      self._masks(rnd, k, full=not role)
      for k, role in zip(cohort, roles, strict=True)
    ]

  def _masks(self, rnd: int, client: int, *, full: bool) -> Info:
    rng = host_rng('allocation', self.seed, rnd, client)
    found: dict[str, np.ndarray] = {}
    for paths, masked in PRESETS[self.preset].items():
      shape = tuple(self.sizes[name] for name in masked.dims)
      layers = [masked.draw(rng, shape) for _ in range(self.sizes['layer'])]
      mask = np.stack(layers).astype(np.int32)
      found[mask_name(paths)] = np.ones_like(mask) if full else mask
    return found

  def params(self, local: Tree, context: Context) -> Tree:
    """Stops the gradients outside a client's masks."""
    blocks = local['blocks']
    for paths, masked in PRESETS[self.preset].items():
      mask = context.info[mask_name(paths)]
      for path in paths:
        blocks = _stop(blocks, path, mask, masked)
    return {**local, 'blocks': blocks}


def mask_name(paths: tuple[str, ...]) -> str:
  """Returns the name of the mask that some linear maps share."""
  return f'mask.{"+".join(paths)}'


def _stop(blocks: Tree, path: str, mask: jax.Array, masked: Masked) -> Tree:
  module, name = path.split('.')
  linear = blocks[module][name]
  kernel = linear['kernel']
  layers, *shape = kernel.shape
  if masked.inputs:
    shape[-1] = 1
  else:
    others = len(shape) - len(masked.dims)
    shape[:others] = [1] * others
  trains = mask.reshape(layers, *shape) > 0
  kernel = jnp.where(trains, kernel, jax.lax.stop_gradient(kernel))
  linear = {**linear, 'kernel': kernel}
  return {**blocks, module: {**blocks[module], name: linear}}


def build(facts: Facts) -> Masks:
  """Builds the masks that an experiment asks for."""
  return Masks(facts.sizes, facts.experiment.raffm.space, facts.seed)


def check(experiment: config.Experiment, sizes: Mapping[str, int]) -> None:
  """Checks the options.

  Raises:
    ValueError: The preset does not belong to this mode, not all parameters
      train, or masks should fit devices, on which they save nothing.
  """
  refusals.decoder(
    sizes, "raffm.mode='mask'", "its masks are those of encoders' maps"
  )
  if experiment.clients.fit:
    raise ValueError(
      f"clients.fit={experiment.clients.fit!r} must be '' where raffm.mode="
      "'mask': masks make nobody's model smaller."
    )
  if experiment.raffm.sampling == 'resource':
    raise ValueError(
      "raffm.sampling='resource' must be 'random' or 'sandwich' where"
      " raffm.mode='mask': every client computes with the full model."
    )
  preset = experiment.raffm.space
  if preset not in PRESETS:
    raise ValueError(
      f'raffm.space={preset!r} must be one of {", ".join(PRESETS)} where'
      " raffm.mode='mask'."
    )
  if experiment.model.tune != 'full':
    raise ValueError(
      f"model.tune={experiment.model.tune!r} must be 'full' where"
      " raffm.mode='mask': frozen weights have no gradients to mask."
    )

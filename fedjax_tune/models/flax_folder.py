"""Folders in our own format, for any model of this package.

`model.json` has the sizes and the adapters of each part, `params.safetensors`
the parameters under their paths in this package.
"""

import dataclasses
import functools
import os
import pathlib
from typing import Any

from flax import nnx, traverse_util
import jax
import numpy as np
import safetensors
import safetensors.numpy

from fedjax_tune.data import json_files
from fedjax_tune.files import paths
from fedjax_tune.models import backbone, bottleneck, export, foundation, sizes
from fedjax_tune.models.block import Adapters
from fedjax_tune.models.foundation import Model
from fedjax_tune.models.lora import Lora
from fedjax_tune.models.rope import Rope
from fedjax_tune.typing import Inputs, Json, Tree

_MODEL, PARAMS = 'model.json', 'params.safetensors'
_SIZES = {
  kind.__name__: kind
  for kind in (sizes.ViTConfig, sizes.TextConfig, sizes.DecoderConfig)
}
_ADDED = {kind.__name__: kind for kind in (Lora, bottleneck.Bottleneck)}


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A model from a folder; call it with pictures or tokens.

  Attributes:
    model: A Flax NNX module.
    config: The model's sizes.
    labels: A name for each output of a classifier.
  """

  model: Model
  config: sizes.Config
  labels: tuple[str, ...]

  def __call__(self, inputs: Inputs) -> jax.Array:
    """Returns the outputs.

    Args:
      inputs: Pictures uint8 [B, h, w, 3] of `config.image_size`, or `Tokens`.
    """
    return self._run(inputs)

  @functools.cached_property
  def _run(self) -> Any:
    graph, state = nnx.split(self.model)
    layers = np.arange(self.config.depth)
    run = jax.jit(lambda state, inputs: nnx.merge(graph, state)(inputs, layers))
    return functools.partial(run, state)


def save(
  folder: pathlib.Path,
  config: sizes.Config,
  adapters: Adapters,
  params: Tree,
  labels: tuple[str, ...],
) -> None:
  """Writes a model's folder.

  Args:
    folder: Made if missing.
    config: Sizes of the model; its parameters may be narrower.
    adapters: The adapters of its maps or sublayers.
    params: All parameters, those of adapters included.
    labels: A name for each output of a classifier.
  """
  folder.mkdir(parents=True, exist_ok=True)
  flat = traverse_util.flatten_dict(params, sep='/')
  tensors = {name: np.asarray(leaf, np.float32) for name, leaf in flat.items()}
  export.write_tensors(folder / PARAMS, tensors)
  said: Json = {
    'sizes': _named(config),
    'added': {name: _named(found) for name, found in adapters.items()},
    'labels': list(labels),
  }
  export.write_json(folder / _MODEL, said)


def load_model(folder: str | os.PathLike[str]) -> Loaded:
  """Loads a model that `launch.export --format=flax` has written.

  Raises:
    FileNotFoundError: A file is missing.
    ValueError: A file is not what was written.
  """
  folder = paths.here('folder', folder)
  said = json_files.read_object(folder / _MODEL)
  try:
    config = _read(said['sizes'], _SIZES)
    added = {name: _read(one, _ADDED) for name, one in said['added'].items()}
    labels = tuple(map(str, said['labels']))
  except (AttributeError, KeyError, TypeError) as error:
    raise ValueError(
      f'{folder / _MODEL} is not what was written: {error}.'
    ) from error
  try:
    tensors = safetensors.numpy.load_file(folder / PARAMS)
  except safetensors.SafetensorError as error:
    raise ValueError(f'{folder / PARAMS} is corrupt: {error}.') from error
  split = build(config, added)
  trees = []
  for tree in (split.base, split.theta):
    names = traverse_util.flatten_dict(tree, sep='/')
    if lost := sorted(names.keys() - tensors.keys()):
      raise ValueError(f'{folder / PARAMS} lacks {lost[0]}.')
    own = {name: jax.device_put(tensors[name]) for name in names}
    trees.append(traverse_util.unflatten_dict(own, sep='/'))
  return Loaded(split.merge(*trees), config, labels)


def build(config: sizes.Config, adapters: Adapters) -> foundation.Foundation:
  """Builds a model's structure, with shapes instead of arrays."""
  make = lambda: backbone.build_model(config, adapters, rngs=nnx.Rngs(0))
  return foundation.split(nnx.eval_shape(make), config.depth)


def _named(value: Any) -> Json:
  return {'kind': type(value).__name__, **dataclasses.asdict(value)}


def _read(said: Json, kinds: dict[str, Any]) -> Any:
  fields: Json = {
    name: tuple(value) if isinstance(value, list) else value
    for name, value in said.items()
  }
  if rope := fields.get('rope'):
    options = tuple(map(tuple, rope['options']))
    fields['rope'] = Rope(**{**rope, 'options': options})
  return kinds[fields.pop('kind')](**fields)

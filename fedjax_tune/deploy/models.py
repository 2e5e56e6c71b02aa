"""The models that a finished run ends with, each by itself.

Most methods end with one. Nothing here needs the run's data.
"""

from collections.abc import Mapping
import dataclasses
import functools
import os
from typing import NamedTuple

import jax
import numpy as np

from fedjax_tune import endings, selection
from fedjax_tune.deploy import results
from fedjax_tune.engine import finite, server
from fedjax_tune.engine.algorithm import Algorithm, Alone
from fedjax_tune.models import (
  block,
  export,
  flax_folder,
  foundation,
  peft,
  pretrained,
  sizes,
)
from fedjax_tune.models.lora import Lora
from fedjax_tune.training import aligned, build, identity, learned
from fedjax_tune.typing import Path, Tree


@dataclasses.dataclass(frozen=True)
class Model:
  """A plain model of a run, with everything that trained.

  Attributes:
    name: The model's name; '' if the run has only one.
    tier: The pretrained model it was made from; '' if there is only one.
    config: Its sizes, trained tokens included.
    adapters: What is added to its linear maps or sublayers.
    base: Frozen parameters, as clients got them at first.
    added: What the server has added to `base`, nested like parts of it.
    theta: Trained parameters.
    about: Sentences that describe the model, if needed.
  """

  name: str
  tier: str
  config: sizes.Config
  adapters: block.Adapters
  base: Tree
  added: Tree
  theta: Tree
  about: str = ''

  @property
  def frozen(self) -> Tree:
    """The frozen parameters as they are in the end."""
    return foundation.add_frozen(self.base, self.added)

  @property
  def lora(self) -> dict[Path, Lora]:
    """The LoRA of each adapted map, by the map's path."""
    found = {}
    for name, added in self.adapters.items():
      path = tuple(name.split('.'))
      if isinstance(added, Lora):
        found[path if path[0] == 'embed' else ('blocks', *path)] = added
    return found

  @property
  def scale(self) -> float:
    """Alpha / rank of its LoRA, which all maps share."""
    return next((found.scale for found in self.lora.values()), 0.0)

  @functools.cached_property
  def params(self) -> Tree:
    """All parameters, LoRA folded in.

    Raises:
      Diverged: A parameter is not finite.
    """
    found = export.fuse(self.frozen, self.theta, self.scale)
    if names := finite.where_not(found):
      raise endings.Diverged(
        f'the model of the run must be finite, but its {", ".join(names[:3])}'
        ' is not: training diverged, and nothing can be deployed.'
      )
    return found


class Ended(NamedTuple):
  """A finished run without its data.

  Attributes:
    results: Its folder.
    learned: What the run has learned, and from which data.
    models: The models that it ends with, by name.
    sources: The pretrained models, by tier; '' if there is only one.
  """

  results: results.Results
  learned: learned.Learned
  models: Mapping[str, Model]
  sources: Mapping[str, pretrained.Pretrained]

  def source(self, model: Model) -> pretrained.Pretrained:
    """Returns the pretrained model from which a model was made."""
    return self.sources[model.tier]


def load(workdir: str | os.PathLike[str]) -> Ended:
  """Loads the models that a finished run ends with.

  The data are read only if the run is older than `task.json`, or older than the
  file of what aligns its models.

  Raises:
    FileNotFoundError: There is no run, or its pretrained weights are gone.
    ValueError: The run is not finished, its last checkpoint is damaged or was
      trained on other weights, or no client of a personal method ever took
      part.
  """
  found = results.read(workdir)
  experiment, kept = found.experiment, found.last()
  content = kept.run['content']
  names = [name for name in ('weights', 'alignment') if name in content]
  known, values = learned.read(found.workdir), aligned.read(found.workdir)
  if known is None or ('alignment' in names and not values):
    setup = build.build(found.here, values=values)
    known, values = learned.of(setup), aligned.of(setup.algorithm)
  rebuilt = learned.rebuild(found.here, known, values)
  identity.check_content(
    {'content': {name: content[name] for name in names}},
    {'content': {'weights': rebuilt.weights} | aligned.identify(values)},
    found.where,
  )
  state = results.restore(found, kept, rebuilt.algorithm)
  ends = take_apart(rebuilt.algorithm, state)
  if not ends:
    raise ValueError(
      f'workdir={found.workdir}: method={experiment.method!r} gives each client'
      ' a model of its own, but none ever took part.'
    )
  several = any(model.tier for model in ends.values())
  sources = {t.name if several else '': t.weights for t in rebuilt.tiers}
  return Ended(found, known, ends, sources)


def take_apart(
  algorithm: Algorithm, state: server.ServerState
) -> dict[str, Model]:
  """Returns the models that a run ends with, by name."""
  added = results.added(algorithm, state)
  alone = algorithm.alone(state.theta, state.clients)
  return {n: _model(n, algorithm, added, one) for n, one in alone.items()}


def _model(name: str, algorithm: Algorithm, added: Tree, alone: Alone) -> Model:
  """Cuts a model to the part that it holds."""
  found = algorithm.model
  found = getattr(found, 'tiers', {'': found})[alone.tier]
  assert isinstance(found, foundation.Foundation)
  whole = found.merge(found.base, found.theta)
  config, adapters = whole.embed.config, peft.find_adapters(whole)
  axes = _axes(config, adapters)

  def cut(tree: Tree) -> Tree:
    flat = foundation.flat(tree)
    return foundation.nest(
      {p: _select(leaf, axes[p], alone) for p, leaf in flat.items()}
    )

  depth = selection.Selection.of(alone.held).amounts['layer']
  return Model(
    name,
    alone.tier,
    dataclasses.replace(config, depth=depth),
    adapters,
    cut(found.base),
    cut(added),
    cut(alone.theta),
    alone.about,
  )


def _select(
  leaf: np.ndarray, names: tuple[str, ...], alone: Alone
) -> np.ndarray:
  host = np.asarray(jax.device_get(leaf))
  held = {
    axis: n
    for axis, n in alone.held.items()
    if axis in names and not _is_all(n, host.shape[names.index(axis)])
  }
  return (
    np.asarray(selection.select_within(host, names, held)) if held else host
  )


def _is_all(held: object, size: int) -> bool:
  if isinstance(held, int):
    return held == size
  return np.array_equal(np.asarray(held), np.arange(size))


def _axes(
  config: sizes.Config, adapters: block.Adapters
) -> dict[Path, tuple[str, ...]]:
  """Returns the axes of a plain model's parameters, trained or not."""
  split = flax_folder.build(config, adapters)
  return foundation.flat(split.base_axes) | foundation.flat(split.axes)

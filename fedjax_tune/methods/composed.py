"""Clients that are limited along several axes at once.

A client holds some layers, of some width, at some rank. Each axis follows a
method that knows only this axis: its rule decides what clients hold, and its
mean is used along the axis. This combination is ours, and has not been
published.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import NamedTuple

from fedjax_tune import config
from fedjax_tune.engine.algorithm import (
  Aggregator,
  Algorithm,
  Client,
  Evaluation,
  Rule,
  fedavg_client,
)
from fedjax_tune.methods import compose, means
from fedjax_tune.methods.depth import fedra, layers
from fedjax_tune.methods.facts import Facts
from fedjax_tune.methods.raffm import raffm, slices, spaces
from fedjax_tune.methods.rank import hetlora, ranks
from fedjax_tune.methods.width import (
  federated_dropout,
  fedrolex,
  heterofl,
  rates,
)
from fedjax_tune.models.foundation import Foundation
from fedjax_tune.selection import Selection


class Part(NamedTuple):
  """What an axis contributes to a client and to its evaluation.

  Attributes:
    rule: What clients hold along the axis.
    models: Smaller models to evaluate: what each holds along the axis, by name.
  """

  rule: Rule
  models: Mapping[str, Mapping[str, int]]


def _depth(facts: Facts) -> Part:
  kind, depth = facts.experiment.composed.depth, facts.depth
  if kind == 'fedra':
    repair = facts.experiment.fedra.coverage_repair
    return Part(layers.Random(depth, facts.budgets, facts.seed, repair), {})
  if kind == 'prefix':
    return Part(layers.Prefix(facts.budgets), {})
  return Part(layers.whole(depth, len(facts.budgets)), {})


def _width(facts: Facts) -> Part:
  kind = facts.experiment.composed.width
  # Draws of their own, where layers are drawn, too.
  drawn = facts.experiment.composed.depth == 'fedra'
  purpose = 'width' if drawn else 'allocation'
  if kind == 'raffm':
    made = slices.build(
      facts.experiment, facts.sizes, facts.fitted.get('width', ())
    )
    made = dataclasses.replace(made, purpose=purpose)
    rule = compose.Only(made, made.axes - {'layer'})
    smallest = {**made.held(made.space.smallest())}
    del smallest['layer']
    return Part(rule, {'smallest': smallest})
  if kind == 'random':
    return Part(
      federated_dropout.Random(*rates.of(facts), facts.seed, purpose), {}
    )
  if kind == 'fedrolex':
    roll = facts.experiment.width.roll
    return Part(fedrolex.Rolling(*rates.of(facts), roll), {})
  widths = rates.Prefix(*rates.of(facts))
  return Part(widths, heterofl.smaller(widths))


def _rank(lora: ranks.Ranks) -> Part:
  models = {f'rank{rank}': {'rank': rank} for rank in lora.smaller}
  return Part(ranks.Prefix(lora.ranks), models)


@dataclasses.dataclass(frozen=True)
class Branches:
  """Each client holds the first branches of every FedAdapter.

  Attributes:
    branches: Numbers of branches, which clients take in turn.
  """

  branches: tuple[int, ...]

  @property
  def axes(self) -> frozenset[str]:
    """The one axis that it decides."""
    return frozenset({'branch'})

  def draw(self, rnd: int, cohort: Sequence[int]) -> list[Selection]:
    """Returns the branches of each client; they are the same in all rounds."""
    del rnd
    turn = len(self.branches)
    return [Selection.of({'branch': self.branches[k % turn]}) for k in cohort]


def build(facts: Facts) -> Algorithm:
  """Builds a federation of clients that are limited along several axes.

  What a client holds is the product of the rules of `composed`'s methods. These
  methods also contribute their extra computation (HeteroFL's scaler, HetLoRA's
  penalty) and their reordering (RaFFM). The server averages each coordinate
  over the clients that count there (`means.filled_mean`). With only one axis
  this is the method of that name, bit for bit.

  The full model is evaluated, and also the other models of each axis' method,
  whole along the other axes.
  """
  e, options = facts.experiment, facts.experiment.composed
  found = facts.foundation()
  if options.width == 'raffm':
    found = raffm.prioritize(found, e.raffm.priority)
  lora = ranks.Ranks.of(facts, found) if options.rank else None
  parts = [_depth(facts)]
  if options.width:
    parts.append(_width(facts))
  if lora:
    parts.append(_rank(lora))
  if options.branches:
    branches = facts.fitted.get('branches', options.branches)
    parts.append(Part(Branches(branches), {}))
  whole = {'layer': facts.depth}
  smaller = {n: m for part in parts for n, m in part.models.items()}
  models = {'full': whole} | {n: {**whole, **m} for n, m in smaller.items()}
  of_raffm = options.width == 'raffm'
  return Algorithm(
    model=found,
    rule=compose.product(*(part.rule for part in parts)),
    client=_client(facts, parts, lora),
    aggregator=_aggregator(facts, found),
    evaluation=Evaluation(
      facts.task, {name: Selection.of(held) for name, held in models.items()}
    ),
    reorder=raffm.reorder(e.raffm) if of_raffm else None,
  )


def _client(
  facts: Facts, parts: list[Part], lora: ranks.Ranks | None
) -> Client:
  """Returns the width's client, which sends as the rank's method does."""
  e, options = facts.experiment, facts.experiment.composed
  client = fedavg_client(facts.task)
  if options.width in ('heterofl', 'fedrolex'):
    widths = parts[1].rule
    assert isinstance(widths, rates.Prefix)
    client = heterofl.client(facts, widths)
    if isinstance(widths, fedrolex.Rolling) and e.width.across_heads:
      client = fedrolex.mixing(client, widths)
  if lora is None or options.rank == 'rbla':
    return client
  client = dataclasses.replace(client, finish=ranks.send_adapters)
  if options.rank == 'fedit':
    return client
  section = e.hetlora
  pruning = hetlora.Pruning(lora.adapted, section.gamma, section.penalty)
  return hetlora.pruned(client, pruning, lora.ranks)


def _aggregator(facts: Facts, found: Foundation) -> Aggregator:
  """Returns the mean of each coordinate, by the methods of all axes."""
  e, options = facts.experiment, facts.experiment.composed
  still = frozenset()
  if options.width == 'raffm' and e.raffm.aggregation == 'mean':
    still = frozenset(axis for axes in spaces.AXES.values() for axis in axes)
    still -= {'layer'}
  zeros = options.rank in ('fedit', 'hetlora')
  merge = means.filled_mean(found.axes, still, zeros=zeros)
  inner = Aggregator(merge)
  if options.width in ('heterofl', 'fedrolex'):
    by_class = heterofl.aggregator(facts)
    inner = dataclasses.replace(by_class, merge=merge)
  return inner


def check(
  experiment: config.Experiment,
  sizes: Mapping[str, int],
  budgets: tuple[int, ...],
) -> None:
  """Checks the options, as each axis' method does.

  Raises:
    ValueError: No axis is named, or the method of an axis refuses its options.
  """
  options = experiment.composed
  if not (options.depth or options.width or options.rank or options.branches):
    raise ValueError(
      "composed.depth='', width='', rank='' and branches=() must name an axis."
    )
  if options.depth == 'fedra':
    fedra.check(experiment, sizes, budgets)
  if options.width == 'raffm':
    _check_raffm(experiment)
    raffm.check(experiment, sizes, budgets)
  elif options.width == 'fedrolex':
    fedrolex.check(experiment, sizes, budgets)
  elif options.width:
    rates.check(experiment, sizes, budgets)
  if options.rank:
    ranks.check(experiment, sizes, budgets)
  if options.branches:
    _check_branches(experiment)


def _check_raffm(experiment: config.Experiment) -> None:
  cfg = experiment.raffm
  if cfg.mode != 'slice':
    raise ValueError(
      f"raffm.mode={cfg.mode!r} must be 'slice' with composed.width='raffm':"
      " masks make nobody's model smaller."
    )
  if cfg.aggregation == 'zero_filled':
    raise ValueError(
      "raffm.aggregation='zero_filled' must be 'mean' or 'coverage' with"
      " composed.width='raffm': what one axis lacks must not shrink the others."
    )
  if spaces.make_space(cfg).layers != (1.0,):
    raise ValueError(
      f"raffm.layers={cfg.layers} must be (1.0,) with composed.width='raffm':"
      ' composed.depth decides the blocks.'
    )


def _check_branches(experiment: config.Experiment) -> None:
  branches, tune = experiment.composed.branches, experiment.model.tune
  if tune != 'adapter':
    raise ValueError(
      f"model.tune={tune!r} must be 'adapter' where composed.branches={branches}"
      ' are cut.'
    )
  if max(branches) > experiment.fedadapter.branches:
    raise ValueError(
      f'composed.branches={branches} must be at most'
      f' {experiment.fedadapter.branches}, fedadapter.branches.'
    )

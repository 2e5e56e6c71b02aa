"""Combines parts of methods."""

from collections.abc import Callable, Hashable, Mapping, Sequence
import dataclasses

import jax
import jax.numpy as jnp

from fedjax_tune.engine.algorithm import (
  Aggregator,
  Client,
  Context,
  GroupSums,
  Rule,
  Sent,
  Update,
)
from fedjax_tune.engine.slabs import Signature
from fedjax_tune.selection import GroupSum, Selection
from fedjax_tune.typing import Axes, Tree


@dataclasses.dataclass(frozen=True)
class Product:
  """Rules that each decide their own axes.

  Attributes:
    rules: The rules.
  """

  rules: tuple[Rule, ...]

  @property
  def axes(self) -> frozenset[str]:
    """The axes that any of them decides."""
    return frozenset().union(*(rule.axes for rule in self.rules))

  def draw(self, rnd: int, cohort: Sequence[int]) -> list[Selection]:
    """Returns what each client holds by all of the rules."""
    drawn = [rule.draw(rnd, cohort) for rule in self.rules]
    return [
      Selection.of({a: held for part in parts for a, held in part.items()})
      for parts in zip(*drawn, strict=True)
    ]


@dataclasses.dataclass(frozen=True)
class Only:
  """A rule restricted to some of its axes.

  Attributes:
    rule: The rule.
    axes: The axes to keep.
  """

  rule: Rule
  axes: frozenset[str]

  def draw(self, rnd: int, cohort: Sequence[int]) -> list[Selection]:
    """Returns what each client holds along these axes."""
    return [
      Selection.of({a: held for a, held in row.items() if a in self.axes})
      for row in self.rule.draw(rnd, cohort)
    ]


def product(*rules: Rule) -> Rule:
  """Joins rules over different axes.

  Raises:
    ValueError: Two rules decide one axis.
  """
  seen: set[str] = set()
  for rule in rules:
    if both := seen & rule.axes:
      raise ValueError(
        f'axis {sorted(both)[0]!r} must be decided by one rule, not by two.'
      )
    seen |= rule.axes
  return rules[0] if len(rules) == 1 else Product(rules)


def weighted_by(weigh: Callable[[Tree], jax.Array], client: Client) -> Client:
  """Returns a client whose weight depends on what it sends.

  Args:
    weigh: What the client sends -> a factor of its weight, a scalar.
    client: The client.
  """

  def finish(
    start: Tree, delta: Tree, steps: jax.Array, context: Context
  ) -> Sent:
    sent = client.finish(start, delta, steps, context)
    return sent._replace(factor=sent.factor * weigh(sent.tree))

  return dataclasses.replace(client, finish=finish)


def by_group(
  key: Callable[[Signature], Hashable], aggregator: Aggregator
) -> Aggregator:
  """Returns an aggregator that gets a separate sum for each group of clients.

  Args:
    key: Names the group of a signature's clients.
    aggregator: Merges the sums of all groups.
  """
  return dataclasses.replace(aggregator, group=key)


def partition(parts: Mapping[str, Aggregator], rest: Aggregator) -> Aggregator:
  """Aggregates some parts of theta by aggregators of their own.

  Groups of clients, and where sums are made, are those of `rest`.

  Args:
    parts: For each part, a key of theta, its aggregator.
    rest: The aggregator of everything else.
  """
  split = lambda tree: (
    {name: tree[name] for name in parts if name in tree},
    {name: tree[name] for name in tree if name not in parts},
  )

  def init(theta: Tree) -> Tree:
    own, others = split(theta)
    memory = {name: parts[name].init(part) for name, part in own.items()}
    return {'parts': memory, 'rest': rest.init(others)}

  def spec(theta: Tree, axes: Axes) -> tuple[Tree, Axes]:
    own, others = split(theta)
    shapes, names = rest.spec(others, split(axes)[1])
    for name, part in own.items():
      of_part = parts[name].spec(part, axes[name])
      if jax.tree.leaves(of_part[0]):
        shapes, names = (
          {**whole, name: x}
          for whole, x in zip((shapes, names), of_part, strict=True)
        )
    return shapes, names

  def merge(theta: Tree, sums: GroupSums, memory: Tree) -> tuple[Update, Tree]:
    own, others = split(theta)
    of_rest = {
      group: GroupSum(split(total.num)[1], split(total.den)[1])
      for group, total in sums.items()
    }
    update, kept = rest.merge(others, of_rest, memory['rest'])
    delta, covered, remembered = dict(update.delta), dict(update.covered), {}
    for name, part in own.items():
      of_part = {
        group: GroupSum(total.num.get(name, {}), total.den.get(name, {}))
        for group, total in sums.items()
      }
      moved, remembered[name] = parts[name].merge(
        part, of_part, memory['parts'][name]
      )
      delta[name], covered[name] = moved
    return Update(delta, covered), {'parts': remembered, 'rest': kept}

  return dataclasses.replace(rest, init=init, spec=spec, merge=merge)


def _nothing_sent(theta: Tree, axes: Axes) -> tuple[Tree, Axes]:
  del theta, axes
  return {}, {}


def _stay(theta: Tree, sums: GroupSums, memory: Tree) -> tuple[Update, Tree]:
  del sums
  none = lambda x: jnp.zeros(x.shape, bool)
  delta, covered = (
    jax.tree.map(jnp.zeros_like, theta),
    jax.tree.map(none, theta),
  )
  return Update(delta, covered), memory


# Of what clients keep to themselves: they send nothing of it, and it rests.
PRIVATE = Aggregator(_stay, spec=_nothing_sent)

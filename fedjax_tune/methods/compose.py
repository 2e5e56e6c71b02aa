"""How parts of methods are put together."""

from collections.abc import Sequence
import dataclasses

from fedjax_tune.engine.algorithm import Rule
from fedjax_tune.selection import Selection


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
  """A rule of which some axes count.

  Attributes:
    rule: The rule.
    axes: Those that count.
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

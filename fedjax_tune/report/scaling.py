"""How good subnetworks of a finished run are, by size: a table and plots.

The two figures are RaFFM's (arXiv 2310.00247): scaling after training, and
many subnetworks of one size with and without prioritization.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import os

from matplotlib import colors as mpl_colors
from matplotlib import ticker
import numpy as np

from fedjax_tune.report import figure, tables


@dataclasses.dataclass(frozen=True)
class Point:
  """A subnetwork, cut from several orders of the same parameters.

  Attributes:
    budget: Parameters that it may have.
    subnetwork: How much of each axis it has.
    parameters: Number of parameters that it has.
    share: This number as a share of the full model's.
    accuracy: The primary metric by order, in [0, 1].
  """

  budget: int
  subnetwork: Mapping[str, int]
  parameters: int
  share: float
  accuracy: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Subnetworks compared with the full model.

  Attributes:
    points: The subnetworks, at least one.
    full: The full model.
    metric: What was measured.
  """

  points: Sequence[Point]
  full: Point
  metric: str

  @property
  def orders(self) -> list[str]:
    """The orders that are compared."""
    return list(self.full.accuracy)

  def percent(self, order: str) -> list[float]:
    """Returns the metric of every subnetwork in an order."""
    return [100 * p.accuracy[order] for p in self.points]


def scaling_table(compared: Comparison) -> tables.Terminal:
  """Shows mean and deviation of each order, one line per budget."""
  return tables.Terminal(
    f'{compared.metric} of subnetworks (%)', *_cells(compared)
  )


def scaling_markdown(compared: Comparison) -> str:
  """The same as a Markdown table."""
  return tables.markdown(*_cells(compared))


def _cells(compared: Comparison) -> tables.Cells:
  full, orders = compared.full, compared.orders
  header = ['parameters', 'share %', 'subnetworks', *orders]
  cells = []
  for budget, group in _by_budget(compared.points).items():
    values = [[100 * p.accuracy[order] for p in group] for order in orders]
    cells.append(
      [
        tables.human_count(budget),
        f'{100 * np.mean([p.share for p in group]):.1f}',
        str(len(group)),
        *(_mean_std(column) for column in values),
      ]
    )
  best = [f'{100 * full.accuracy[order]:.1f}' for order in orders]
  cells.append([tables.human_count(full.parameters), '100', '1', *best])
  return header, cells


def plot_curve(compared: Comparison, path: str | os.PathLike[str]) -> None:
  """Draws the metric by parameters: each subnetwork, and the budgets' means."""
  points, full = compared.points, compared.full
  groups = _by_budget(points)
  with figure.drawing(4.2, path) as ax:
    # Side by side, so that all can be seen.
    beside = 0.004 * (full.parameters - min(groups))
    for i, order in enumerate(compared.orders):
      color = figure.COLORS[i]
      ax.plot(
        [p.parameters + (i - 1) * beside for p in points],
        compared.percent(order),
        'o', ms=3.5, mew=0, alpha=0.35, color=color,
      )  # fmt: skip
      means = [
        (
          np.mean([p.parameters for p in group]),
          np.mean([100 * p.accuracy[order] for p in group]),
        )
        for group in groups.values()
      ]
      line = np.array([*means, (full.parameters, 100 * full.accuracy[order])])
      ax.plot(*line.T, color=color, lw=2.2, label=order)
    # All orders meet in the full model.
    best = 100 * next(iter(full.accuracy.values()))
    ax.plot(full.parameters, best, 'o', ms=6, color=figure.INK, zorder=5)
    ax.annotate(
      f'full model {best:.1f}', (full.parameters, best), (-2, 7),
      textcoords='offset points', ha='right', fontsize=9,
    )  # fmt: skip
    ax.set(
      title=f'{compared.metric.capitalize()} (%) of subnetworks, by parameters',
      xlabel='parameters, embedding and head included',
    )
    ax.xaxis.set_major_formatter(lambda x, _: tables.human_count(x))
    ax.xaxis.set_major_locator(ticker.MaxNLocator(nbins=7))
    ax.legend(
      title='channels kept first', alignment='left', frameon=False,
      loc='upper left', bbox_to_anchor=(1.01, 1.0),
    )  # fmt: skip


def plot_box(compared: Comparison, path: str | os.PathLike[str]) -> None:
  """Draws the metric of subnetworks of one budget, a box for each order."""
  points, full, orders = compared.points, compared.full, compared.orders
  values = [compared.percent(order) for order in orders]
  with figure.drawing(0.9 + 0.75 * len(orders), path) as ax:
    parts = ax.boxplot(
      values, orientation='horizontal', tick_labels=orders, widths=0.55,
      showfliers=False, patch_artist=True,
      medianprops={'color': figure.INK, 'linewidth': 1.8},
    )  # fmt: skip
    rng = np.random.default_rng(0)
    for i, (box, column) in enumerate(
      zip(parts['boxes'], values, strict=True), 1
    ):
      color = figure.COLORS[i - 1]
      box.set(facecolor=mpl_colors.to_rgba(color, 0.25), edgecolor=color)
      spread = i + rng.uniform(-0.18, 0.18, len(column))
      ax.plot(column, spread, 'o', ms=3, mew=0, alpha=0.5, color=color)
    best = 100 * full.accuracy[orders[0]]
    ax.axvline(best, color=figure.INK, lw=1, ls=(0, (4, 3)))
    ax.annotate(
      f'full model {best:.1f}', (best, 1), (-4, -2), va='top', ha='right',
      xycoords=('data', 'axes fraction'), textcoords='offset points',
      fontsize=9, rotation=90,
    )  # fmt: skip
    ax.invert_yaxis()
    ax.grid(visible=False, axis='y')
    ax.grid(visible=True, axis='x')
    budget = points[0].budget
    ax.set_title(
      f'{compared.metric.capitalize()} (%) of {len(points)} subnetworks of'
      f' {tables.human_count(budget)} parameters'
      f' ({budget / full.parameters:.0%})'
    )


def _by_budget(points: Sequence[Point]) -> dict[int, list[Point]]:
  """Groups subnetworks, the smallest budget first."""
  groups: dict[int, list[Point]] = {}
  for point in sorted(points, key=lambda p: p.budget):
    groups.setdefault(point.budget, []).append(point)
  return groups


def _mean_std(percent: Sequence[float]) -> str:
  text = f'{np.mean(percent):.1f}'
  if len(percent) > 1:
    text += f' ± {np.std(percent, ddof=1):.1f}'
  return text

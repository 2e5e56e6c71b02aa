"""The look of every plot: style, colours, and labels where lines end.

Figures are made without pyplot, so they need no global state and no display.
Colours are those of Okabe and Ito (https://jfly.uni-koeln.de/color/), which
colour-blind readers tell apart.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
import contextlib
import itertools
import math
import os
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib as mpl
from matplotlib import axes as mpl_axes
from matplotlib import figure as mpl_figure
from matplotlib import ticker, transforms
import numpy as np
from scipy import optimize

if TYPE_CHECKING:
  from matplotlib.typing import RcKeyType

COLORS = (
  '#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#7A5C3E',
  '#8C8C8C',
)  # fmt: skip
# How a line is broken up, in Matplotlib's words.
Dash = str | tuple[int, tuple[float, ...]]
_DASHES: tuple[Dash, ...] = ('-', (0, (5, 1.5)), (0, (1.5, 1.2)))
INK, FAINT, ALARM = '#222222', '#DDDDDD', '#D55E00'
# 8.4 inches fill a README's column at about 100 dots an inch; 2x is sharp.
_WIDTH, _DPI = 8.4, 200
STYLE: 'dict[RcKeyType, Any]' = {
  'font.size': 9.5,
  'axes.titlesize': 10.5,
  'axes.titleweight': 'bold',
  'axes.titlelocation': 'left',
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.edgecolor': '#888888',
  'axes.labelcolor': INK,
  'axes.axisbelow': True,
  'axes.grid': True,
  'axes.grid.axis': 'y',
  'grid.color': FAINT,
  'grid.linewidth': 0.7,
  'xtick.color': INK,
  'ytick.color': INK,
  'xtick.major.size': 3,
  'ytick.major.size': 0,
  'lines.linewidth': 1.5,
  'lines.solid_capstyle': 'round',
  'figure.facecolor': 'white',
  'savefig.dpi': _DPI,
  # Names of classes and folders may have dollar signs, but are not formulas.
  'text.parse_math': False,
}


class EndLabel(NamedTuple):
  """A line's name, the point where the line ends, and whether a dot is there."""

  x: float
  y: float
  text: str
  color: str
  bold: bool = False
  dot: bool = True


def new_figure(height: float) -> mpl_figure.Figure:
  """An empty figure as wide as a README, `height` inches high."""
  return mpl_figure.Figure(figsize=(_WIDTH, height), layout='constrained')


@contextlib.contextmanager
def drawing(
  height: float, path: str | os.PathLike[str], note: str = ''
) -> Iterator[mpl_axes.Axes]:
  """Yields the axes of a figure of this height, and writes it at the end."""
  with mpl.rc_context(STYLE):
    fig = new_figure(height)
    yield fig.subplots()
    footnote(fig, note)
    fig.savefig(path)


def footnote(fig: mpl_figure.Figure, text: str) -> None:
  """Writes a line below everything else; '' writes none."""
  if text:
    fig.supxlabel(text, x=0.01, ha='left', fontsize=8, color='#555555')


def legend_below(
  fig: mpl_figure.Figure, ax: mpl_axes.Axes, note: str = ''
) -> None:
  """Puts a legend below everything else, in as many columns as fit.

  With more than a few rows the figure grows, so that its axes keep their size.

  Args:
    fig: The figure.
    ax: Axes with everything that has a label.
    note: A line above the legend.
  """
  handles, names = ax.get_legend_handles_labels()
  longest = max(map(len, names), default=0)
  columns = max(1, min(4, int(_WIDTH / (0.65 + 0.074 * longest))))
  rows = -(-len(names) // columns)
  fig.set_figheight(fig.get_figheight() + 0.2 * max(0, rows - 3))
  fig.legend(
    handles, names, loc='outside lower center', ncols=columns, frameon=False,
    title=note, title_fontsize=8,
  )  # fmt: skip


def line_styles() -> Iterator[tuple[str, Dash]]:
  """Yields the colour and dashes of one line after another.

  Colours come first; dashes tell lines apart once these run out.
  """
  return itertools.cycle((c, dash) for dash in _DASHES for c in COLORS)


def height(base: float, labels: Collection[object]) -> float:
  """Returns a height in inches that has room for a column of labels."""
  return max(base, 1.1 + 0.17 * len(labels))


def by_round(
  ax: mpl_axes.Axes,
  title: str,
  unit: str,
  end: float | int,
  labels: Sequence[EndLabel] = (),
) -> None:
  """Finishes axes over rounds; names each line beside its end.

  Labels are in a column on the right. A thin line leads from the end of a curve
  to a label that had to move away, or that is further right.

  Args:
    ax: Axes on which the lines are drawn.
    title: The title above the axes.
    unit: What is on the y axis.
    end: Rounds in all; the x axis runs from 0, before the first, to here.
    labels: One for each line.
  """
  ax.set(title=title, xlim=(0, end), xlabel='rounds done', ylabel=unit)
  locator = ticker.MaxNLocator(nbins=6, integer=True, steps=[1, 2, 2.5, 5, 10])
  ax.xaxis.set_major_locator(locator)
  labels = [label for label in labels if math.isfinite(label.y)]
  if not labels:
    return
  low, high = ax.get_ylim()
  ax.set_ylim(low, high)
  fig = ax.get_figure(root=True)
  assert fig is not None
  points = 0.8 * 72 * fig.get_figheight()  # Of the axes, about.
  gap = min(12.0, points / len(labels)) * (high - low) / points
  places = spread_labels([label.y for label in labels], gap, low, high)
  beside = transforms.offset_copy(
    ax.transData, fig=fig, x=9, y=0, units='points'
  )
  for label, place in zip(labels, places, strict=True):
    # The dot also shows a line of one point.
    if label.dot:
      ax.plot(label.x, label.y, 'o', ms=3.5, color=label.color, clip_on=False)
    moved = label.x < end or abs(place - label.y) > gap / 3
    leader = {
      'arrowstyle': '-', 'color': label.color, 'lw': 0.6, 'alpha': 0.7,
      'shrinkA': 1, 'shrinkB': 2, 'relpos': (0, 0.5),
    }  # fmt: skip
    ax.annotate(
      label.text, (label.x, label.y), (end, place), textcoords=beside,
      color=label.color, va='center', fontsize=9, annotation_clip=False,
      fontweight='bold' if label.bold else 'normal',
      arrowprops=leader if moved else None,
    )  # fmt: skip


def named_chance(chance: Mapping[str, float]) -> dict[str, float]:
  """Returns accuracies by chance under short names; equal ones become one.

  Args:
    chance: Accuracies in percent, by their names in `summary.json`.

  >>> named_chance({'1 of 4 classes': 25.0, 'largest class': 40.0})
  {'chance': 25.0, 'largest class': 40.0}
  >>> named_chance({'1 of 3 classes': 33.333, 'largest class': 33.33})
  {'chance': 33.333}
  """
  found: dict[str, tuple[str, float]] = {}
  for name, value in chance.items():
    named = 'chance' if name.startswith('1 of ') else name
    found.setdefault(f'{value:.1f}', (named, value))
  return dict(found.values())


def mark_chance(
  ax: mpl_axes.Axes, chance: Mapping[str, float], end: float | int
) -> list[EndLabel]:
  """Marks the accuracy of a model that has learned nothing.

  If it is far below all lines, it is given in words: as a line it would squeeze
  the others together.

  Args:
    ax: Axes of accuracies in percent, on which the lines are drawn.
    chance: Accuracies in percent, by name.
    end: Where the axes end.

  Returns:
    The labels of its lines, for the column of all labels: inside the axes they
      would cover curves.
  """
  low, high = ax.get_ylim()
  told, labels = [], []
  ranked = sorted(named_chance(chance).items(), key=lambda item: item[1])
  for name, value in ranked:
    text = f'{name} {value:.1f}'
    if value < low - 0.6 * (high - low):
      told.append(text)
      continue
    ax.axhline(value, color='#999999', lw=0.9, ls=(0, (1, 2)), zorder=0)
    low, high = min(low, value), max(high, value)
    labels.append(EndLabel(end, value, text, '#777777', dot=False))
  margin = 0.04 * (high - low)
  ax.set_ylim(low - margin, high + margin)
  if told:
    ax.annotate(
      f'far below: {", ".join(told)}', (1, 0), (0, -18), fontsize=7.5,
      xycoords='axes fraction', textcoords='offset points', color='#777777',
      ha='right', va='top',
    )  # fmt: skip
  return labels


def short(names: Sequence[str], most: int = 22) -> list[str]:
  """Shortens long names, so that they still differ.

  The middle of a name is left out. If names would then be equal, their common
  beginning is left out instead.

  >>> short(['resnet_of_the_second_kind_a', 'resnet_of_the_second_kind_b'], 12)
  ['resn…_kind_a', 'resn…_kind_b']
  """
  head = most // 3
  cut = lambda name: f'{name[:head]}…{name[len(name) - (most - head - 1) :]}'
  found = [name if len(name) <= most else cut(name) for name in names]
  if len(set(found)) == len(set(names)):
    return found
  alike = itertools.takewhile(
    lambda letters: len(set(letters)) == 1, zip(*names, strict=False)
  )
  begin = len(list(alike))
  return [f'…{name[begin:]}' if begin else name for name in names]


def spread_labels(
  wanted: Sequence[float], gap: float, low: float, high: float
) -> np.ndarray:
  """Moves labels apart as little as possible (least squares).

  With the ideal places sorted, p_i - i * gap must not decrease: an isotonic
  regression.

  Args:
    wanted: Where each label would like to be.
    gap: Least distance of two labels.
    low: No label goes below this,
    high: nor above this, as long as there is room for all.

  Returns:
    A place for each label, in the order of `wanted`.
  """
  ideal = np.asarray(wanted, dtype=float)
  order = np.argsort(ideal, kind='stable')
  steps = gap * np.arange(len(ideal))
  places = optimize.isotonic_regression(ideal[order] - steps).x
  # Clipping an isotonic fit is the fit under those bounds.
  places = np.clip(places, low, max(low, high - gap * (len(ideal) - 1)))
  spread = np.empty_like(ideal)
  spread[order] = places + steps
  return spread

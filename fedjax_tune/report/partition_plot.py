"""The plot of who holds what: classes, sizes, domains and budgets of clients.

A few dozen clients get a bar each. More clients are sorted by domain, budget
and size, and every n-th of them is a row of an image, so that a hundred
thousand take no longer than a hundred. (If a row were the mean of several
clients, it would show no skew.)
"""

from collections.abc import Sequence
import dataclasses
import functools
import os
from typing import Any

import matplotlib as mpl
from matplotlib import axes as mpl_axes
from matplotlib import cm as mpl_cm
from matplotlib import colors as mpl_colors
from matplotlib import figure as mpl_figure
from matplotlib import ticker
import numpy as np

from fedjax_tune.report import figure, tables

MOST_BARS, _ROWS = 40, 300


@dataclasses.dataclass(frozen=True)
class Clients:
  """What is drawn of C clients in addition to their classes.

  Attributes:
    sizes: Number of examples of each, int[C].
    budgets: Blocks that each can hold, int[C].
    domains: The index of each client's domain, int[C]; -1 if it has no single
      domain.
    domain_names: Names of all domains.
    names: Names of the clients, if they have any; else ().
  """

  sizes: np.ndarray
  budgets: np.ndarray
  domains: np.ndarray
  domain_names: Sequence[str]
  names: Sequence[str] = ()

  def __len__(self) -> int:
    return len(self.sizes)

  @functools.cached_property
  def order(self) -> np.ndarray:
    """The clients by domain, budget and size, the largest first."""
    return np.lexsort((-self.sizes, -self.budgets, self.domains))

  @functools.cached_property
  def _short(self) -> list[str]:
    return _shorten(self.names)

  @functools.cached_property
  def short_domains(self) -> list[str]:
    """The names of the domains, shortened to the room there is."""
    return _shorten(self.domain_names)

  @property
  def shown(self) -> list[int]:
    """The clients whose classes are drawn, in the order of the plot."""
    if len(self) <= MOST_BARS:
      return list(range(len(self)))
    number = min(len(self), _ROWS)
    middles = (2 * np.arange(number) + 1) * len(self) // (2 * number)
    return self.order[middles].tolist()

  def describe(self, client: int) -> str:
    """Returns a client's number, name, domain and budget, as far as these differ."""
    parts = [str(client)]
    if self.names:
      parts.append(self._short[client])
    if self.domains[client] >= 0:
      parts.append(self.short_domains[int(self.domains[client])])
    if np.ptp(self.budgets):
      parts.append(f'{self.budgets[client]} blocks')
    return ' · '.join(parts)


def _shorten(names: Sequence[str]) -> list[str]:
  return figure.short([tables.plain(name) for name in names])


def plot_partition(
  histogram: np.ndarray,
  clients: Clients,
  class_names: Sequence[str],
  path: str | os.PathLike[str],
) -> None:
  """Draws `partition.png`.

  Args:
    histogram: How many of the K classes each of `clients.shown` has, [R, K].
    clients: Who they are.
    class_names: Names of the K classes.
    path: The PNG to write.

  Raises:
    ValueError: If the histogram's shape does not fit.
  """
  counts_RxK = np.asarray(histogram)
  wanted = (len(clients.shown), len(class_names))
  if counts_RxK.shape != wanted:
    raise ValueError(
      f'histogram has shape {counts_RxK.shape}; must be {wanted}, a row for each'
      ' of clients.shown and a column for each of class_names.'
    )
  draw = _bars if len(clients) <= MOST_BARS else _picture
  with mpl.rc_context(figure.STYLE):
    draw(counts_RxK, clients, class_names).savefig(path)


def _bars(
  counts_CxK: np.ndarray, clients: Clients, class_names: Sequence[str]
) -> mpl_figure.Figure:
  """One bar per client, in the colours of classes."""
  num_clients, num_classes = counts_CxK.shape
  few = num_classes <= 2 * len(figure.COLORS)
  # The legend has a line for each class.
  legend = 0.4 + 0.19 * num_classes if few else 0
  fig = figure.new_figure(max(2.4, 1.1 + 0.26 * num_clients, legend))
  ax = fig.subplots()
  ramp = mpl.colormaps['cividis'](np.linspace(0, 1, num_classes))
  ends_CxK, bars = counts_CxK.cumsum(axis=1), []
  for k in range(num_classes):
    width, start = counts_CxK[:, k], ends_CxK[:, k] - counts_CxK[:, k]
    color = figure.COLORS[k % len(figure.COLORS)] if few else ramp[k]
    # The second round of colours is hatched.
    hatch = '////' if few and k >= len(figure.COLORS) else None
    # Of many classes a client may have few.
    at = np.arange(num_clients) if few else np.flatnonzero(width)
    bar = ax.barh(
      at, width[at], left=start[at], color=color, height=0.78,
      edgecolor='white', linewidth=0.6 if few else 0.0, hatch=hatch,
    )  # fmt: skip
    bars.append(bar)
  ax.set(
    title='Examples of each client, by class',
    xlabel='examples',
    ylabel='client',
    ylim=(num_clients - 0.4, -0.6),
  )
  ax.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
  ax.set_yticks(range(num_clients), map(clients.describe, range(num_clients)))
  ax.grid(visible=True, axis='x')
  ax.grid(visible=False, axis='y')
  if few:
    # Passed explicitly: matplotlib leaves out bars' labels that begin with _.
    fig.legend(
      bars,
      _shorten(class_names),
      loc='outside right center',
      frameon=False,
      fontsize=9,
    )
  else:
    norm = mpl_colors.Normalize(0, num_classes - 1)
    mappable = mpl_cm.ScalarMappable(norm, 'cividis')
    fig.colorbar(mappable, ax=ax, label='class', pad=0.02)
  return fig


def _picture(
  counts_RxK: np.ndarray, clients: Clients, class_names: Sequence[str]
) -> mpl_figure.Figure:
  """Rows of clients: their domain, their budget, their classes, their sizes."""
  has_domains = bool(clients.domains.max() >= 0)
  has_budgets = bool(np.ptp(clients.budgets))
  widths = [0.13] * has_domains + [0.13] * has_budgets + [2.6, 1.1]
  fig = figure.new_figure(5.2)
  axes = list(fig.subplots(1, len(widths), width_ratios=widths, sharey=True))
  axes[0].set_ylabel(f'{len(clients):,} clients by domain, budget and size')
  order, left = clients.order, list(axes)
  if has_domains:
    _strip_domains(left.pop(0), clients.domains[order], clients.short_domains)
  if has_budgets:
    _strip_budgets(left.pop(0), clients.budgets[order])
  heat, sizes = left
  share = counts_RxK / np.maximum(counts_RxK.sum(axis=1, keepdims=True), 1)
  image = heat.imshow(
    share, cmap='viridis', vmin=0, **_extent(len(clients), len(class_names))
  )
  few = len(counts_RxK) < len(clients)
  some = f', {len(counts_RxK)} of the clients' * few
  heat.set(title=f'Share of each class{some}', xlabel='class')
  if len(class_names) <= 12:
    names = _shorten(class_names)
    heat.set_xticks(range(len(names)), names, rotation=45, ha='right')
  else:
    heat.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
  bar = fig.colorbar(image, ax=axes, pad=0.02, aspect=32)
  bar.ax.yaxis.set_major_formatter(ticker.PercentFormatter(1, decimals=0))
  bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
  _draw_sizes(sizes, clients.sizes[order])
  for ax in axes:
    ax.grid(visible=False)
    ax.yaxis.set_major_locator(ticker.MaxNLocator(integer=True, nbins=8))
    ax.yaxis.set_major_formatter(ticker.FuncFormatter(_plain))
    ax.tick_params(labelleft=ax is axes[0])
  return fig


def _extent(clients: int, columns: int) -> dict[str, Any]:
  return {
    'extent': (-0.5, columns - 0.5, clients - 0.5, -0.5),
    'aspect': 'auto',
    'interpolation': 'nearest',
  }


def _strip_domains(
  ax: mpl_axes.Axes, domains_C: np.ndarray, names: Sequence[str]
) -> None:
  """Colours each domain, and names it in its middle if there is room."""
  colors = [figure.COLORS[d % len(figure.COLORS)] for d in range(len(names))]
  ax.imshow(
    _thin(domains_C)[:, None],
    cmap=mpl_colors.ListedColormap(colors),
    vmin=-0.5,
    vmax=len(names) - 0.5,
    **_extent(len(domains_C), 1),
  )
  ax.set_xticks([0], ['domain'], rotation=45, ha='right')
  for domain in np.unique(domains_C):
    at = np.flatnonzero(domains_C == domain)
    if len(at) > len(domains_C) / 30:
      ax.text(
        0, at.mean(), names[int(domain)], rotation=90, color='white',
        ha='center', va='center', fontsize=7,
      )  # fmt: skip


def _strip_budgets(ax: mpl_axes.Axes, budgets_C: np.ndarray) -> None:
  """Shades each budget, and says how many blocks it is."""
  most = int(budgets_C.max())
  ax.imshow(
    _thin(budgets_C)[:, None],
    cmap='Blues',
    vmin=0,
    vmax=1.4 * most,  # The darkest would hide the numbers.
    **_extent(len(budgets_C), 1),
  )
  ax.set_xticks([0], ['blocks'], rotation=45, ha='right')
  changes = np.flatnonzero(np.diff(budgets_C)) + 1
  for first, end in zip([0, *changes], [*changes, len(budgets_C)], strict=True):
    if end - first > len(budgets_C) / 40:
      middle = (first + end - 1) / 2
      ax.text(
        0, middle, str(budgets_C[first]), ha='center', va='center', fontsize=7
      )


def _thin(values_C: np.ndarray) -> np.ndarray:
  """Returns every n-th value, as more values than dots would show nothing."""
  step = max(1, len(values_C) // (4 * _ROWS))
  return values_C[step // 2 :: step]


def _draw_sizes(ax: mpl_axes.Axes, sizes_C: np.ndarray) -> None:
  """Draws the mean size of groups of neighbours, and their range."""
  count = len(sizes_C)
  begins = np.arange(min(count, _ROWS)) * count // min(count, _ROWS)
  held = np.diff(begins, append=count)
  middle = begins + (held - 1) / 2
  ax.fill_betweenx(
    middle,
    np.minimum.reduceat(sizes_C, begins),
    np.maximum.reduceat(sizes_C, begins),
    color=figure.COLORS[0],
    alpha=0.25,
    lw=0,
  )
  ax.plot(np.add.reduceat(sizes_C, begins) / held, middle)
  ax.set(title='Examples of a client', xlabel='examples')
  if sizes_C.max() > 30 * max(1, sizes_C.min()):
    ax.set_xscale('log')
    ax.xaxis.set_minor_formatter(ticker.NullFormatter())
  else:
    ax.set_xlim(0, 1.05 * sizes_C.max())
  ax.xaxis.set_major_formatter(ticker.FuncFormatter(_plain))


def _plain(value: float, _: int | None) -> str:
  return f'{value:,.6g}'

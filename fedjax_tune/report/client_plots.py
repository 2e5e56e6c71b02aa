"""Pictures of how clients fare: by class, by cost, and methods side by side."""

from collections.abc import Mapping, Sequence
import math
import os

import matplotlib as mpl
from matplotlib import axes as mpl_axes
from matplotlib import ticker
import numpy as np

from fedjax_tune.report import clients, figure, styles, tables
from fedjax_tune.typing import Record

_COLORS = dict(zip(clients.MODELS, figure.COLORS, strict=False))
_MARKERS = dict(zip(clients.MODELS, 'os^', strict=True))
# More dots of a class would hide each other.
_MOST_DOTS = 300
_COST = 'a local step of a client'


def plot_run(
  rows: Sequence[Record],
  path: str | os.PathLike[str],
  metric: str = 'accuracy',
) -> None:
  """Draws each client's accuracy, by class and by what a step costs.

  Args:
    rows: The clients of a run, from `clients.csv`.
    path: The PNG to write.
    metric: What is measured.
  """
  classes = clients.by_class(rows)
  models = [m for m in clients.MODELS if any(map(math.isfinite, _of(rows, m)))]
  with mpl.rc_context(figure.STYLE):
    fig = figure.new_figure(max(3.2, 1.6 + 0.5 * len(classes)))
    left, right = fig.subplots(1, 2, width_ratios=(1.6, 1))
    _by_class(left, classes, models, metric)
    _by_cost(right, classes, models, metric)
    handles, names = right.get_legend_handles_labels()
    fig.legend(
      handles, names, loc='outside lower center', ncols=3, frameon=False
    )
    fig.savefig(path)


def plot_methods(
  runs: Mapping[str, Mapping[int, Sequence[Record]]],
  methods: Mapping[str, str],
  path: str | os.PathLike[str],
  metric: str = 'accuracy',
) -> None:
  """Draws how well each method serves its clients, methods side by side.

  The left plot has each method's clients in order, the worst first; the right
  plot has the means of its classes by the cost of a step.

  Args:
    runs: For each label and seed the clients of the run; all seeds count.
    methods: The method of each label.
    path: The PNG to write.
    metric: What is measured.
  """
  looks = styles.of({label: methods[label] for label in runs})
  names = figure.short([tables.plain(label) for label in runs])
  with mpl.rc_context(figure.STYLE):
    fig = figure.new_figure(4.2)
    left, right = fig.subplots(1, 2, sharey=True)
    for (label, seeds), name in zip(runs.items(), names, strict=True):
      color, dash, marker = looks[label]
      rows = [row for own in seeds.values() for row in own]
      values = np.sort([x for x in _of(rows, 'own') if math.isfinite(x)])
      share = 100 * (np.arange(len(values)) + 0.5) / max(1, len(values))
      left.plot(
        share, values, color=color, ls=dash, label=name,
        marker=marker if len(values) < 30 else None, ms=3,
      )  # fmt: skip
      classes = clients.by_class(rows).values()
      points = sorted(
        (_cost(some), 100 * clients.spread(r['own'] for r in some)['mean'])
        for some in classes
        if any(math.isfinite(r['own']) for r in some)
      )
      if points:
        x, mean = zip(*points, strict=True)
        right.plot(x, mean, color=color, ls=dash, marker=marker, ms=4)
    left.set(
      title='Clients, the worst first',
      xlabel='clients (%)',
      ylabel=f'{metric} of what each holds (%)',
      xlim=(0, 100),
    )
    right.set_title('Means of classes, by cost')
    _finish_cost(right)
    figure.legend_below(fig, left)
    fig.savefig(path)


def _of(rows: Sequence[Record], model: str) -> list[float]:
  return [100 * row[model] for row in rows]


def _by_class(
  ax: mpl_axes.Axes,
  classes: Mapping[str, Sequence[Record]],
  models: Sequence[str],
  metric: str,
) -> None:
  """A row for each class: a dot for each client, a bar at their mean."""
  rng = np.random.default_rng(0)
  height = 0.8 / max(1, len(models))
  for i, rows in enumerate(classes.values()):
    for m, model in enumerate(models):
      middle = i - 0.4 + height * (m + 0.5)
      shown = rows[:: -(-len(rows) // _MOST_DOTS)]
      spread = middle + 0.3 * height * rng.uniform(-1, 1, len(shown))
      color = _COLORS[model]
      ax.plot(
        _of(shown, model), spread, _MARKERS[model], ms=3, mew=0, alpha=0.4,
        color=color,
      )  # fmt: skip
      mean = clients.spread(_of(rows, model))['mean']
      if mean is not None:
        ends = [middle - 0.45 * height, middle + 0.45 * height]
        ax.plot([mean, mean], ends, color=color, lw=2.4)
  ax.set(
    title='Clients, by class',
    xlabel=f'{metric} (%), the bar is the mean',
    ylim=(len(classes) - 0.4, -0.6),
  )
  labels = [f'{tables.plain(n)} ({len(c)})' for n, c in classes.items()]
  ax.set_yticks(range(len(classes)), labels)
  ax.grid(visible=True, axis='x')
  ax.grid(visible=False, axis='y')


def _by_cost(
  ax: mpl_axes.Axes,
  classes: Mapping[str, Sequence[Record]],
  models: Sequence[str],
  metric: str,
) -> None:
  """The mean of each class, with the deviation of its clients."""
  for model in models:
    found = [clients.spread(_of(rows, model)) for rows in classes.values()]
    cost = [_cost(rows) for rows in classes.values()]
    known = [
      (x, own['mean'], own['deviation'])
      for x, own in sorted(zip(cost, found, strict=True), key=lambda p: p[0])
      if own['clients']
    ]
    x, mean, deviation = zip(*known, strict=True)
    ax.errorbar(
      x, mean, deviation, color=_COLORS[model], marker=_MARKERS[model], ms=4,
      capsize=2, elinewidth=0.8, label=f'{model}: {clients.MODELS[model]}',
    )  # fmt: skip
  ax.set(title='Means of classes, by cost', ylabel=f'{metric} (%)')
  _finish_cost(ax)


def _finish_cost(ax: mpl_axes.Axes) -> None:
  ax.set_xlabel(_COST)
  ax.set_xlim(left=0)
  ax.xaxis.set_major_locator(ticker.MaxNLocator(nbins=4))
  # A unit of nothing would touch the ticks of what is on the left.
  ax.xaxis.set_major_formatter(lambda x, _: tables.human_flops(x) if x else '0')


def _cost(rows: Sequence[Record]) -> float:
  return float(np.mean([row['flops_per_step'] for row in rows]))

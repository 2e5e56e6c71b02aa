"""Plots accuracy by its cost: time on the clients' devices, and bytes."""

from collections.abc import Mapping, Sequence
import os

import matplotlib as mpl
import numpy as np

from fedjax_tune.report import figure, plots, styles, tables, targets
from fedjax_tune.typing import Record

_MOVED = 'moved, all clients, both ways'
_TIME = 'on the simulated devices'
# What one of a unit is, from the smallest to the largest.
_UNITS = {
  _MOVED: {'B': 1, 'kB': 1e3, 'MB': 1e6, 'GB': 1e9, 'TB': 1e12},
  _TIME: {'seconds': 1, 'minutes': 60, 'hours': 3600},
}


def plot_frontier(
  runs: Mapping[str, Sequence[Sequence[Record]]],
  path: str | os.PathLike[str],
  methods: Mapping[str, str] | None = None,
  metric: str = 'accuracy',
  note: str = '',
) -> None:
  """Draws accuracy by bytes moved and, if devices are given, by time.

  Args:
    runs: For each label the rounds of each seed's run. A line is the mean over
      its seeds, of accuracy and of cost, at the evaluations that all have.
    path: The PNG to write.
    methods: The method of each label, if the label is not its name.
    metric: What is measured.
    note: A line below the plot.
  """
  timed = any(
    targets.spent(row).simulated_s
    for seeds in runs.values()
    for row in seeds[0]
  )
  kinds = [_TIME, _MOVED] if timed else [_MOVED]
  looks = styles.of(methods or {name: name for name in runs})
  shown = figure.short([tables.plain(name) for name in runs])
  with mpl.rc_context(figure.STYLE):
    fig = figure.new_figure(4.2)
    axes = fig.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    found = {name: _means(seeds) for name, seeds in runs.items()}
    for ax, kind in zip(axes, kinds, strict=True):
      most = max(
        (float(spent[kind].max(initial=0)) for _, spent in found.values()),
        default=0.0,
      )
      unit, one = _unit(kind, most)
      for (name, (accuracy, spent)), label in zip(
        found.items(), shown, strict=True
      ):
        color, dash, marker = looks[name]
        ax.plot(
          spent[kind] / one, accuracy, color=color, ls=dash, marker=marker,
          ms=3.5, label=label,
        )  # fmt: skip
      ax.set_xlabel(f'{unit} {kind}')
      if most:
        # What costs nothing stands on 0, and is not cut by the axis.
        ax.set_xlim(left=-0.03 * most / one)
    title = f'{metric.capitalize()} by what it cost'
    axes[0].set(title=title, ylabel=f'{metric} (%)')
    figure.legend_below(fig, axes[0], note)
    fig.savefig(path)


def _unit(kind: str, most: float) -> tuple[str, float]:
  """Returns the largest unit that is at most `most`, and its size."""
  first, *larger = _UNITS[kind].items()
  return [first, *(unit for unit in larger if most >= unit[1])][-1]


def _means(
  seeds: Sequence[Sequence[Record]],
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """Returns accuracy in percent, and what was spent, at each evaluation."""

  def point(row: Record) -> tuple[float, float, float]:
    spent = targets.spent(row)
    accuracy = 100 * row['eval/accuracy']
    return accuracy, spent.simulated_s, spent.moved_bytes

  points = [
    {
      row['round']: point(row)
      for row in rows
      if row.get('eval/accuracy') is not None
    }
    for rows in seeds
  ]
  _, values = plots.at_common_rounds(points)
  accuracy, seconds, moved = values.reshape(len(seeds), -1, 3).mean(0).T
  return accuracy, {_TIME: seconds, _MOVED: moved}

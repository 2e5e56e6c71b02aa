"""Accuracy by what it cost: time on the clients' devices, and bytes."""

from collections.abc import Mapping, Sequence
import os

import matplotlib as mpl
import numpy as np

from fedjax_tune.report import figure, plots, styles, tables, targets
from fedjax_tune.typing import Record

_MOVED = 'GB moved, all clients, both ways'
_TIME = 'minutes on the simulated devices'


def plot_frontier(
  runs: Mapping[str, Sequence[Sequence[Record]]],
  path: str | os.PathLike[str],
  methods: Mapping[str, str] | None = None,
  metric: str = 'accuracy',
  note: str = '',
) -> None:
  """Draws accuracy by bytes moved and, where devices are given, by time.

  Args:
    runs: For each label the rounds of each seed's run. A line is the mean over
      its seeds, of accuracy and of cost, at the evaluations that all have.
    path: The PNG to write.
    methods: Of each label, if they are called something else.
    metric: What is measured.
    note: Stands below.
  """
  timed = any(
    targets.spent(row).simulated_s
    for seeds in runs.values()
    for row in seeds[0]
  )
  names = [_TIME, _MOVED] if timed else [_MOVED]
  looks = styles.of(methods or {name: name for name in runs})
  shown = figure.short([tables.plain(name) for name in runs])
  with mpl.rc_context(figure.STYLE):
    fig = figure.new_figure(4.2)
    axes = fig.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for (name, seeds), label in zip(runs.items(), shown, strict=True):
      accuracy, minutes, moved = _means(seeds)
      spent = [minutes, moved] if timed else [moved]
      color, dash, marker = looks[name]
      for ax, x in zip(axes, spent, strict=True):
        ax.plot(
          x, accuracy, color=color, ls=dash, marker=marker, ms=3.5, label=label
        )
    for ax, name in zip(axes, names, strict=True):
      ax.set_xlabel(name)
      ax.set_xlim(left=0)
    title = f'{metric.capitalize()} by what it cost'
    axes[0].set(title=title, ylabel=f'{metric} (%)')
    fig.legend(
      *axes[0].get_legend_handles_labels(),
      loc='outside lower center',
      ncols=4,
      frameon=False,
    )
    figure.footnote(fig, note)
    fig.savefig(path)


def _means(
  seeds: Sequence[Sequence[Record]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns accuracy in percent, minutes and GB at each evaluation."""

  def point(row: Record) -> tuple[float, float, float]:
    spent = targets.spent(row)
    accuracy = 100 * row['eval/accuracy']
    return accuracy, spent.simulated_s / 60, spent.moved_bytes / 1e9

  points = [
    {
      row['round']: point(row)
      for row in rows
      if row.get('eval/accuracy') is not None
    }
    for rows in seeds
  ]
  _, values = plots.at_common_rounds(points)
  accuracy, minutes, moved = values.reshape(len(seeds), -1, 3).mean(0).T
  return accuracy, minutes, moved

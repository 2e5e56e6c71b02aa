"""Plots of a run, and of methods side by side."""

from collections.abc import Mapping, Sequence
import os
import pathlib
import re

import matplotlib as mpl
from matplotlib import colors as mpl_colors
from matplotlib import figure as mpl_figure
from matplotlib import ticker
import numpy as np
from numpy.typing import ArrayLike

from fedjax_tune.report import figure, tables, writer
from fedjax_tune.typing import Record

Curve = tuple[Sequence[float | int], Sequence[float | int]]


def plot_run(
  workdir: str | os.PathLike[str], domain_names: Sequence[str]
) -> tuple[pathlib.Path, pathlib.Path]:
  """Draws a run's `accuracy.png` (with its loss) and `coverage.png`.

  Args:
    workdir: The run's folder with its `metrics.jsonl`.
    domain_names: The domains, one line each.

  Returns:
    The paths of the two files.

  Raises:
    ValueError: If no round has been written yet.
  """
  rows = writer.read_metrics(workdir)
  if not rows:
    raise ValueError(f'workdir={str(workdir)!r} has no finished round to plot.')
  accuracy_path = pathlib.Path(workdir) / 'accuracy.png'
  coverage_path = pathlib.Path(workdir) / 'coverage.png'
  with mpl.rc_context(figure.STYLE):
    _accuracy_figure(rows, domain_names).savefig(accuracy_path)
    _coverage_figure(rows).savefig(coverage_path)
  return accuracy_path, coverage_path


def plot_comparison(
  curves: Mapping[str, Sequence[Curve]], path: str | os.PathLike[str]
) -> None:
  """Draws accuracy by round: each method's mean and deviation over seeds.

  Args:
    curves: For each method one (rounds done, accuracies in [0, 1]) per seed;
      only rounds that all its seeds have are drawn.
    path: The PNG to write.
  """
  with figure.drawing(4.2, path) as ax:
    labels = []
    for (name, seeds), (color, dash) in zip(
      curves.items(), figure.line_styles(), strict=False
    ):
      rounds, mean, std = _mean_std(seeds)
      ax.fill_between(
        rounds, mean - std, mean + std, color=color, alpha=0.14, lw=0
      )
      ax.plot(rounds, mean, color=color, ls=dash)
      if len(rounds):
        spread = f' ± {std[-1]:.1f}' if len(seeds) > 1 else ''
        text = f'{tables.plain(name)}  {mean[-1]:.1f}{spread}'
        labels.append(figure.EndLabel(rounds[-1], mean[-1], text, color))
    end = max((label.x for label in labels), default=1)
    figure.finish(ax, 'Accuracy (%) by round', end, labels)


def _accuracy_figure(
  rows: Sequence[Record], domain_names: Sequence[str]
) -> mpl_figure.Figure:
  fig = figure.new_figure(3.6)
  left, right = fig.subplots(1, 2, width_ratios=(2.2, 1))
  num_rounds = rows[-1]['round'] + 1
  labels = []

  def line(key: str, name: str, color: str, **style: object) -> None:
    rounds, values = _curve(rows, key)
    if len(values):
      # One evaluation makes no line.
      marker = 'o' if len(values) == 1 else None
      left.plot(rounds, 100 * values, color=color, marker=marker, **style)
      end = 100 * values[-1]
      text = f'{tables.plain(name)}  {end:.1f}'
      labels.append(figure.EndLabel(rounds[-1], end, text, color))

  for domain, (color, dash) in zip(
    domain_names, figure.line_styles(), strict=False
  ):
    line(f'eval/accuracy/{domain}', domain, color=color, ls=dash, lw=1.1)
  for key in _other_evaluations(rows):
    name = key.split('/')[1]
    line(key, name, color='#777777', ls=(0, (5, 1.5)), lw=1.8)
  line('eval/accuracy', 'mean', color=figure.INK, lw=2.6)
  figure.finish(left, 'Accuracy (%) by round', num_rounds, labels)

  rounds, loss = _curve(rows, 'train/loss')
  right.plot(rounds, loss, color=figure.FAINT if len(loss) > 20 else figure.INK)
  if len(loss) > 20:  # Single rounds are noisy: a running mean on top.
    width = max(5, len(loss) // 20)
    smooth = np.convolve(loss, np.ones(width) / width, mode='valid')
    centre = rounds[(width - 1) // 2 :][: len(smooth)]
    right.plot(centre, smooth, color=figure.INK)
  figure.finish(right, 'Training loss by round', num_rounds)
  return fig


def _coverage_figure(rows: Sequence[Record]) -> mpl_figure.Figure:
  """Owners of each layer in each round; layers that nobody held stand out."""
  owners_LxT = np.array([row['coverage/layers'] for row in rows]).T
  rounds = [row['round'] + 1 for row in rows]
  num_layers, most = len(owners_LxT), max(1, int(owners_LxT.max()))
  fig = figure.new_figure(max(2.8, 1.3 + 0.17 * num_layers))
  left, right = fig.subplots(1, 2, width_ratios=(3.4, 1), sharey=True)

  shades = mpl.colormaps['Blues'](np.linspace(0.1, 0.95, most))
  colormap = mpl_colors.ListedColormap([figure.ALARM, *shades])
  image = left.imshow(
    owners_LxT,
    cmap=colormap,
    norm=mpl_colors.BoundaryNorm(np.arange(-0.5, most + 1), most + 1),
    extent=(rounds[0] - 0.5, rounds[-1] + 0.5, -0.5, num_layers - 0.5),
    aspect='auto',
    origin='lower',
    interpolation='nearest',
  )
  left.grid(visible=False)
  left.set(title='Owners of each layer, by round', ylabel='layer')
  left.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
  left.yaxis.set_major_locator(ticker.MaxNLocator(integer=True, nbins=13))
  ticks = np.unique(np.linspace(0, most, min(most, 6) + 1).round())
  bar = fig.colorbar(image, ax=left, ticks=ticks, pad=0.02, aspect=28)
  bar.ax.tick_params(which='both', length=0)
  bar.ax.set_yticklabels([f'{tick:.0f}' if tick else 'none' for tick in ticks])
  bar.outline.set_visible(False)

  mean_L = owners_LxT.mean(axis=1)
  right.barh(np.arange(num_layers), mean_L, color=figure.COLORS[0], height=0.72)
  for layer, mean in enumerate(mean_L):
    right.annotate(
      f'{mean:.1f}', (mean, layer), (3, 0), textcoords='offset points',
      va='center', fontsize=8,
    )  # fmt: skip
  right.set(title='Mean owners', xlim=(0, 1.18 * max(mean_L.max(), 1e-9)))
  right.grid(visible=False)
  right.tick_params(labelleft=False)
  return fig


def _curve(rows: Sequence[Record], key: str) -> tuple[np.ndarray, np.ndarray]:
  """Rounds done, and values; null reads as NaN and leaves a gap."""
  pairs = [(row['round'] + 1, row[key]) for row in rows if key in row]
  table = np.array(pairs, dtype=float).reshape(-1, 2)
  return table[:, 0], table[:, 1]


def _other_evaluations(rows: Sequence[Record]) -> list[str]:
  """Keys like `eval/last/accuracy`: the same model read in another way."""
  keys = dict.fromkeys(key for row in rows for key in row)
  return [key for key in keys if re.fullmatch('eval/[^/]+/accuracy', key)]


def _mean_std(
  seeds: Sequence[Curve],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Rounds common to all seeds, mean and sample deviation in percent."""
  rounds, values = at_common_rounds(
    [dict(zip(*seed, strict=True)) for seed in seeds]
  )
  values = 100 * values
  ddof = 1 if len(seeds) > 1 else 0
  return rounds, values.mean(axis=0), values.std(axis=0, ddof=ddof)


def at_common_rounds(
  seeds: Sequence[Mapping[float, ArrayLike]],
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the rounds that all seeds have, and their values [seeds, rounds, ...].

  Args:
    seeds: Of each seed the values by round, arrays of one shape.
  """
  rounds = sorted(set.intersection(*(set(own) for own in seeds)))
  values = [[own[rnd] for rnd in rounds] for own in seeds]
  return np.array(rounds, float), np.array(values, float)

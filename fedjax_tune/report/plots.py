"""Plots of a run, and of methods side by side."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import os
import pathlib
import re
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib import axes as mpl_axes
from matplotlib import colors as mpl_colors
from matplotlib import figure as mpl_figure
from matplotlib import ticker
import numpy as np
from numpy.typing import ArrayLike

from fedjax_tune.report import figure, styles, tables, writer
from fedjax_tune.typing import Record

Curve = tuple[Sequence[float | int], Sequence[float | int]]


def plot_run(
  workdir: str | os.PathLike[str],
  domain_names: Sequence[str],
  chance: Mapping[str, float] | None = None,
  metric: str = 'accuracy',
) -> tuple[pathlib.Path, pathlib.Path]:
  """Draws a run's `accuracy.png` (with its loss) and `coverage.png`.

  Args:
    workdir: The run's folder with its `metrics.jsonl`.
    domain_names: The domains, one line each.
    chance: Accuracies in [0, 1] of a model that has learned nothing, by what
      they are called.
    metric: What is measured.

  Returns:
    The paths of the two files.

  Raises:
    ValueError: If no round has been written yet.
  """
  rows = writer.read_metrics(workdir)
  if not rows:
    raise ValueError(f'workdir={str(workdir)!r} has no finished round to plot.')
  rows = [*writer.read_start(workdir), *rows]
  accuracy_path = pathlib.Path(workdir) / 'accuracy.png'
  coverage_path = pathlib.Path(workdir) / 'coverage.png'
  with mpl.rc_context(figure.STYLE):
    fig = _accuracy_figure(rows, domain_names, chance or {}, metric)
    fig.savefig(accuracy_path)
    _coverage_figure(rows).savefig(coverage_path)
  return accuracy_path, coverage_path


def plot_comparison(
  curves: Mapping[str, Sequence[Curve]],
  path: str | os.PathLike[str],
  methods: Mapping[str, str] | None = None,
  chance: Mapping[str, float] | None = None,
  metric: str = 'accuracy',
  note: str = '',
) -> None:
  """Draws accuracy by round: each method's mean and deviation over seeds.

  If no method has more than one evaluation, bars are drawn instead.

  Args:
    curves: For each label one (rounds done, accuracies in [0, 1]) per seed;
      only rounds that all its seeds have are drawn.
    path: The PNG to write.
    methods: The method of each label, if the label is not its name.
    chance: See `plot_run`.
    metric: What is measured.
    note: A line below the plot.
  """
  looks = styles.of(methods or {name: name for name in curves})
  names = dict(zip(curves, _names(curves), strict=True))
  found = {name: _mean_std(seeds) for name, seeds in curves.items()}
  percent = {name: 100 * value for name, value in (chance or {}).items()}
  with figure.drawing(figure.height(4.2, curves), path, note) as ax:
    if all(len(rounds) < 2 for rounds, _, _ in found.values()):
      lines = [
        Bar(names[name], mean[-1], std[-1], looks[name].color)
        for name, (rounds, mean, std) in found.items()
        if len(rounds)
      ]
      _bars(ax, metric.capitalize(), lines, percent, metric)
      return
    labels = []
    for name, (rounds, mean, std) in found.items():
      color, dash, _ = looks[name]
      ax.fill_between(
        rounds, mean - std, mean + std, color=color, alpha=0.14, lw=0
      )
      ax.plot(rounds, mean, color=color, ls=dash, clip_on=False)
      if len(rounds):
        spread = f' ± {std[-1]:.1f}' if len(curves[name]) > 1 else ''
        text = f'{names[name]}  {mean[-1]:.1f}{spread}'
        labels.append(figure.EndLabel(rounds[-1], mean[-1], text, color))
    end = max((label.x for label in labels), default=1)
    labels += figure.mark_chance(ax, percent, end)
    title = f'{metric.capitalize()} by round'
    figure.by_round(ax, title, f'{metric} (%)', end, labels)


def _names(curves: Iterable[str]) -> list[str]:
  return figure.short([tables.plain(name) for name in curves])


class Bar(NamedTuple):
  """One value, drawn as a bar: its name, percent, deviation and colour."""

  name: str
  value: float
  deviation: float
  color: str


def _bars(
  ax: mpl_axes.Axes,
  title: str,
  lines: Sequence[Bar],
  chance: Mapping[str, float],
  metric: str,
) -> None:
  """Draws one evaluation, which makes no line."""
  for i, (_, value, deviation, color) in enumerate(lines):
    ax.barh(
      i, value, color=color, height=0.68, xerr=deviation or None,
      error_kw={'ecolor': '#A0A0A0', 'capsize': 3},
    )  # fmt: skip
    spread = f' ± {deviation:.1f}' if deviation else ''
    ax.annotate(
      f'{value:.1f}{spread}', (value + deviation, i), (4, 0), va='center', fontsize=9,
      textcoords='offset points',
    )  # fmt: skip
  unit = f'{metric} (%)'
  chance = figure.named_chance(chance)
  for value in chance.values():
    ax.axvline(value, color='#999999', lw=0.9, ls=(0, (1, 2)))
  if chance:
    told = (f'{name} {value:.1f}' for name, value in chance.items())
    unit += f'; dotted: {", ".join(told)}'
  ax.set_yticks(range(len(lines)), [bar.name for bar in lines])
  ax.invert_yaxis()
  ax.set(title=title, xlabel=unit)
  # Room for the numbers.
  ax.set_xlim(right=1.15 * ax.get_xlim()[1])
  ax.grid(visible=False, axis='y')
  ax.grid(visible=True, axis='x')


class _Line(NamedTuple):
  """A line of `accuracy.png`: key, name, colour, and how it is drawn."""

  key: str
  name: str
  color: str
  look: Mapping[str, Any]


def _lines(
  rows: Sequence[Record], domain_names: Sequence[str], metric: str
) -> Iterator[_Line]:
  """Yields the lines of a run: domains, other models, and the mean."""
  several = len(domain_names) > 1
  if len(domain_names) == 1:  # It is the mean.
    domain_names = ()
  names, looks = _names(domain_names), figure.line_styles()
  for domain, name, (color, dash) in zip(
    domain_names, names, looks, strict=False
  ):
    key = f'eval/accuracy/{domain}'
    yield _Line(key, name, color, {'ls': dash, 'lw': 1.1})
  others = _other_evaluations(rows)
  names = _names(key.split('/')[1] for key in others)
  for i, (key, name) in enumerate(zip(others, names, strict=True)):
    color, dash = _OTHERS[i % len(_OTHERS)]
    yield _Line(key, name, color, {'ls': dash, 'lw': 1.8})
  yield _Line(
    'eval/accuracy', 'mean' if several else metric, figure.INK, {'lw': 2.6}
  )


# Other models than that which counts, told apart by shade and dash.
_OTHERS: tuple[tuple[str, figure.Dash], ...] = tuple(
  (grey, dash)
  for dash in ((0, (5, 1.5)), (0, (1.5, 1.2)))
  for grey in ('#777777', '#444444', '#A0A0A0')
)


def _accuracy_figure(
  rows: Sequence[Record],
  domain_names: Sequence[str],
  chance: Mapping[str, float],
  metric: str,
) -> mpl_figure.Figure:
  lines = [
    (line, *_curve(rows, line.key))
    for line in _lines(rows, domain_names, metric)
  ]
  lines = [line for line in lines if len(line[1])]
  fig = figure.new_figure(figure.height(3.6, lines))
  left, right = fig.subplots(1, 2, width_ratios=(2.2, 1))
  percent = {name: 100 * value for name, value in chance.items()}
  if lines and all(len(rounds) == 1 for _, rounds, _ in lines):
    done = int(lines[0][1][0])
    bars = [Bar(x.name, 100 * y[0], 0.0, x.color) for x, _, y in lines]
    title = f'{metric.capitalize()} after {tables.counted(done, "round")}'
    _bars(left, title, bars, percent, metric)
  elif lines:
    labels = []
    for line, rounds, values in lines:
      left.plot(
        rounds, 100 * values, color=line.color, clip_on=False, **line.look
      )
      text = f'{line.name}  {100 * values[-1]:.1f}'
      labels.append(
        figure.EndLabel(
          rounds[-1],
          100 * values[-1],
          text,
          line.color,
          bold=line.key == 'eval/accuracy',
        )
      )
    end = rows[-1]['round'] + 1
    labels += figure.mark_chance(left, percent, end)
    title = f'{metric.capitalize()} by round'
    figure.by_round(left, title, f'{metric} (%)', end, labels)
  _loss(right, rows)
  return fig


def _loss(ax: mpl_axes.Axes, rows: Sequence[Record]) -> None:
  rounds, loss = _curve(rows, 'train/loss')
  noisy = len(loss) > 20
  ax.plot(
    rounds,
    loss,
    color=figure.FAINT if noisy else figure.INK,
    marker='o' if len(loss) == 1 else None,
    # Else the axis cuts the last point, which lies on its end.
    clip_on=False,
  )
  if noisy:  # A running mean on top of single rounds.
    width = max(5, len(loss) // 20)
    smooth = np.convolve(loss, np.ones(width) / width, mode='valid')
    centre = rounds[(width - 1) // 2 :][: len(smooth)]
    ax.plot(centre, smooth, color=figure.INK, clip_on=False)
  figure.by_round(ax, 'Training loss', 'loss', rows[-1]['round'] + 1)


def _coverage_figure(rows: Sequence[Record]) -> mpl_figure.Figure:
  """Owners of each layer in each round; layers that nobody held stand out."""
  rows = [row for row in rows if 'coverage/layers' in row]
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
  left.set(
    title='Owners of each layer, by round',
    xlabel='round, counted from 1',
    ylabel='layer, counted from 0',
  )
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
  right.set(
    title='Mean owners',
    xlabel='clients',
    xlim=(0, 1.18 * max(mean_L.max(), 1e-9)),
  )
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
    seeds: For each seed the values by round, arrays of one shape.
  """
  rounds = sorted(set.intersection(*(set(own) for own in seeds)))
  values = [[own[rnd] for rnd in rounds] for own in seeds]
  return np.array(rounds, float), np.array(values, float)

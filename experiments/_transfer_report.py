"""The tables and the figure of the runs on transfer."""

from collections.abc import Mapping, Sequence
import pathlib
from typing import Any

import numpy as np

from experiments import _cells
from fedjax_tune.report import figure

# What the runs of one table have in common.
GROUP = ('rounds', 'setting', 'sites', 'joins', 'labels')
Row = Mapping[str, Any]


def table(rows: Sequence[Row]) -> str:
  """Returns the accuracies of the poor tier, and of the rich one at the end."""
  text = []
  for group, own in _grouped(rows, GROUP).items():
    marks = list(dict.fromkeys(row['mark'] for row in own))
    names = [f'{k} {v}' for k, v in zip(GROUP, group, strict=True)]
    head = ['design', *marks, 'rich tier', 'KiB up', 'seeds']
    text += ['', ', '.join(names), '', f'| {" | ".join(head)} |']
    text.append('|---|' + '---:|' * (len(head) - 1))
    for (design,), of in _grouped(own, ('design',)).items():
      at = _grouped(of, ('mark',))
      last = at[marks[-1],]
      cells = [_spread([row['poor'] for row in at[mark,]]) for mark in marks]
      cells.append(_spread([row['rich'] for row in last]))
      cells += [f'{last[0]["uplink"] / 1024:.0f}', str(len(last))]
      text.append(f'| {design} | {" | ".join(cells)} |')
  return '\n'.join(text[1:]) + '\n'


def _grouped(
  rows: Sequence[Row], keys: Sequence[str]
) -> dict[tuple[Any, ...], list[Row]]:
  """Returns the rows of each combination of values, designs in their order."""
  found: dict[tuple[Any, ...], list[Row]] = {}
  order = list(_cells.DESIGNS)
  for row in sorted(rows, key=lambda row: order.index(row['design'])):
    found.setdefault(tuple(row[key] for key in keys), []).append(row)
  return found


def _spread(values: Sequence[float]) -> str:
  """Returns mean and sample deviation of accuracies, in percent."""
  mean = f'{100 * np.mean(values):.1f}'
  return mean + f' ± {100 * np.std(values, ddof=1):.1f}' if values[1:] else mean


def draw(rows: Sequence[Row], folder: pathlib.Path) -> None:
  """Draws the poor tier's accuracy at the end against its labels.

  A figure for each setting that has several numbers of labels, in which every
  design that has several is a line.
  """
  last = [row for row in rows if row['mark'] in ('after 10', 'end')]
  for group, own in _grouped(last, GROUP[:-1]).items():
    curves = {
      design: _by_labels(of)
      for (design,), of in _grouped(own, ('design',)).items()
    }
    several = {name: of for name, of in curves.items() if len(of) > 1}
    if several:
      name = '_'.join(str(part) for part in group[1:])
      _draw_one(several, folder / f'heterotune_transfer_{name}.png')


def _by_labels(rows: Sequence[Row]) -> dict[int, float]:
  """Returns the mean accuracy, in percent, for each number of labels."""
  return {
    labels: 100 * float(np.mean([row['poor'] for row in of]))
    for (labels,), of in sorted(_grouped(rows, ('labels',)).items())
  }


def _draw_one(
  curves: Mapping[str, Mapping[int, float]], path: pathlib.Path
) -> None:
  """Draws a line for each design."""
  ends, styles = [], figure.line_styles()
  sizes = sorted({labels for curve in curves.values() for labels in curve})
  with figure.drawing(4.2, path) as ax:
    for design, curve in curves.items():
      color, dash = next(styles)
      labels, mean = list(curve), list(curve.values())
      ax.plot(labels, mean, color=color, linestyle=dash, marker='o', ms=3)
      ends.append(figure.EndLabel(labels[-1], mean[-1], design, color))
    title = 'The poor tier, after its last round'
    figure.by_round(ax, title, 'accuracy, %', sizes[-1], ends)
    ax.set_xscale('log', base=2)
    ax.set_xlim(sizes[0], sizes[-1])
    ax.set_xticks(sizes, [str(size) for size in sizes])
    ax.set_xlabel('its labels')

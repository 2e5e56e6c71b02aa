"""Gathers the finished runs of a sweep: a list, tables and a plot."""

from collections.abc import Sequence
import csv
import io
import json
import pathlib
from typing import Any

from fedjax_tune.report import costs, metrics, plots, tables, targets

# Full models on every client, which others are compared with.
_BASELINE = 'all_large'


def write_results(
  workdir: pathlib.Path, labels: Sequence[str] = ()
) -> list[dict[str, Any]]:
  """Writes results.jsonl, .csv and .md and comparison.png into `workdir`.

  Args:
    workdir: Of the sweep; runs are in LABEL/seedK below it.
    labels: These come first, in this order; then others found there.

  Returns:
    The summaries of all finished runs, each with its `label`.
  """
  summaries = _summaries(workdir, labels)
  if not summaries:
    return []
  lines = [json.dumps(summary) + '\n' for summary in summaries]
  metrics.write_text(workdir / 'results.jsonl', ''.join(lines))
  metrics.write_text(workdir / 'results.csv', _csv(summaries))
  runs: dict[str, dict[int, list[dict[str, Any]]]] = {}
  for summary in summaries:
    label, seed = summary['label'], summary['seed']
    rows = metrics.read_metrics(workdir / label / f'seed{seed}')
    runs.setdefault(label, {})[seed] = rows
  text = tables.comparison_markdown(summaries)
  if _BASELINE in runs:
    text += (
      f'\nTo reach {targets.SHARE:.0%} of what {_BASELINE} ends with, each seed'
      ' for itself:\n\n' + targets.target_markdown(runs, _BASELINE)
    )
  if models := tables.models_markdown(summaries):
    text += f'\nModels beside that of the first table:\n\n{models}'
  classes = {label: _classes(workdir / label) for label in runs}
  text += f'\nA client of each class:\n\n{costs.clients_markdown(classes)}'
  metrics.write_text(workdir / 'results.md', text)
  curves = {
    label: [_curve(rows) for rows in by_seed.values()]
    for label, by_seed in runs.items()
  }
  plots.plot_comparison(curves, workdir / 'comparison.png')
  return summaries


def _summaries(
  workdir: pathlib.Path, labels: Sequence[str]
) -> list[dict[str, Any]]:
  order = {label: place for place, label in enumerate(labels)}
  found = []
  for path in workdir.glob('*/seed*/summary.json'):
    label = path.parent.parent.name
    found.append({'label': label, **json.loads(path.read_text())})
  return sorted(
    found,
    key=lambda s: (order.get(s['label'], len(order)), s['label'], s['seed']),
  )


def _classes(folder: pathlib.Path) -> list[costs.ClassCost]:
  """Costs of a label's first run; seeds differ in who is in which class."""
  path = min(folder.glob('seed*/costs.json'))
  return [costs.ClassCost(**row) for row in json.loads(path.read_text())]


def _csv(summaries: Sequence[dict[str, Any]]) -> str:
  """One line a run; what is nested by name gets a column a name."""
  flat = [_flatten(summary) for summary in summaries]
  columns = list(dict.fromkeys(name for row in flat for name in row))
  text = io.StringIO()
  writer = csv.DictWriter(text, columns, lineterminator='\n')
  writer.writeheader()
  writer.writerows(flat)
  return text.getvalue()


def _flatten(summary: dict[str, Any]) -> dict[str, Any]:
  flat = {}
  for name, value in summary.items():
    if isinstance(value, dict):
      flat |= {f'{name}/{key}': part for key, part in value.items()}
    else:
      flat[name] = value
  return flat


def _curve(rows: Sequence[dict[str, Any]]) -> plots.Curve:
  """Accuracy against rounds done; a null reads as NaN."""
  pairs = [
    (row['round'] + 1, row['eval/accuracy'])
    for row in rows
    if 'eval/accuracy' in row
  ]
  rounds = [rnd for rnd, _ in pairs]
  return rounds, [float('nan') if a is None else a for _, a in pairs]

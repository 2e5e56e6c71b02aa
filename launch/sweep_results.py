"""Gathers the finished runs of a sweep: a list, two tables and a plot."""

from collections.abc import Sequence
import csv
import io
import json
import pathlib
from typing import Any

from fedjax_tune.report import metrics, plots, tables


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
  metrics.write_text(
    workdir / 'results.md', tables.comparison_markdown(summaries)
  )
  curves: dict[str, list[plots.Curve]] = {}
  for summary in summaries:
    label, seed = summary['label'], summary['seed']
    curve = _curve(workdir / label / f'seed{seed}')
    curves.setdefault(label, []).append(curve)
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


def _curve(workdir: pathlib.Path) -> plots.Curve:
  """Accuracy against rounds done; a null reads as NaN."""
  pairs = [
    (row['round'] + 1, row['eval/accuracy'])
    for row in metrics.read_metrics(workdir)
    if 'eval/accuracy' in row
  ]
  rounds = [rnd for rnd, _ in pairs]
  return rounds, [float('nan') if a is None else a for _, a in pairs]

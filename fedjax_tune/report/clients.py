"""How each client fares: a line for each client, and summaries."""

import collections
from collections.abc import Iterable, Mapping, Sequence
import csv
import io
import math
import os
import pathlib

import numpy as np

from fedjax_tune.report import tables
from fedjax_tune.typing import Json, Record

FILE = 'clients.csv'
# What is judged for each client, and what a reader is told of it.
MODELS = {
  'server': "the server's model",
  'own': 'what the client holds',
  'tuned': 'that after local steps',
}
_TEXTS = ('label', 'class', 'domain')


def to_csv(rows: Sequence[Record]) -> str:
  """Returns a line for each client; values that are not finite are empty."""
  text = io.StringIO()
  made = csv.DictWriter(text, list(rows[0]), lineterminator='\n')
  made.writeheader()
  made.writerows(
    {k: '' if _lacks(v) else v for k, v in row.items()} for row in rows
  )
  return text.getvalue()


def _lacks(value: object) -> bool:
  return isinstance(value, float) and not math.isfinite(value)


def read(workdir: str | os.PathLike[str]) -> list[Json]:
  """Reads what a run wrote about its clients; [] if it wrote nothing."""
  path = pathlib.Path(workdir) / FILE
  if not path.exists():
    return []
  with path.open(encoding='utf-8', newline='') as file:
    return [
      {k: v if k in _TEXTS else float(v or 'nan') for k, v in row.items()}
      for row in csv.DictReader(file)
    ]


def summarize(rows: Sequence[Record]) -> Json:
  """Summarizes the results of all clients, and of each class."""
  classes = by_class(rows)
  return {
    **_of_models(rows),
    'by_class': {
      name: {'clients': len(some), **_of_models(some)}
      for name, some in classes.items()
    },
  }


def by_class(rows: Sequence[Record]) -> dict[str, list[Record]]:
  """Groups clients; the class that computes most comes first."""
  classes: dict[str, list[Record]] = collections.defaultdict(list)
  for row in sorted(rows, key=lambda row: -row['flops_per_step']):
    classes[row['class']].append(row)
  return dict(classes)


def _of_models(rows: Sequence[Record]) -> Json:
  found = {name: spread(row[name] for row in rows) for name in MODELS}
  return {name: own for name, own in found.items() if own['clients']}


def spread(values: Iterable[float]) -> Json:
  """Returns the spread of a metric over the clients that have it.

  `deviation` is the population's, not a sample's; `worst_tenth` is the mean
  over the worst tenth of the clients, their number rounded up.

  >>> spread([0.5, 1.0, float('nan')])
  {'clients': 2, 'mean': 0.75, 'deviation': 0.25, 'worst_tenth': 0.5}
  """
  known = np.array([x for x in values if math.isfinite(x)])
  if not known.size:
    return {
      'clients': 0, 'mean': None, 'deviation': None, 'worst_tenth': None
    }  # fmt: skip
  tenth = np.sort(known)[: math.ceil(len(known) / 10)]
  return {
    'clients': len(known),
    'mean': float(known.mean()),
    'deviation': float(known.std()),
    'worst_tenth': float(tenth.mean()),
  }


def class_table(summary: Record) -> tables.Terminal:
  """Shows how each class of clients fares, for the terminal.

  Args:
    summary: The summary of the clients, from `summary.json`.
  """
  models = [name for name in MODELS if name in summary]
  groups = {
    **summary['by_class'],
    'all': {**summary, 'clients': _most(summary)},
  }
  header = ['class', 'clients']
  header += [f'{name}{what}' for name in models for what in (' %', ' worst')]
  cells = [
    [name, str(group['clients'])]
    + [cell for model in models for cell in _pair(group.get(model))]
    for name, group in groups.items()
  ]
  return tables.Terminal('How clients fare', header, cells)


def _most(summary: Record) -> int:
  return sum(group['clients'] for group in summary['by_class'].values())


def _pair(found: Record | None) -> tuple[str, str]:
  if not found:
    return '-', '-'
  mean, deviation = 100 * found['mean'], 100 * found['deviation']
  return f'{mean:.1f} ± {deviation:.1f}', f'{100 * found["worst_tenth"]:.1f}'


def comparison_markdown(
  runs: Mapping[str, Mapping[int, Sequence[Record]]],
  alone: str,
  metric: str = 'accuracy',
) -> str:
  """Compares methods client by client, as a Markdown table.

  Args:
    runs: For each label and seed the clients of the run.
    alone: The label of clients that train alone; '' if there is none. Each
      client is compared with what it reached there, in the run of the same
      seed.
    metric: What is measured.
  """
  header = ['method', 'model', f'{metric} %', 'deviation', 'worst tenth']
  header += ['gain over alone', 'better off %'] if alone else []
  cells = []
  for label, seeds in runs.items():
    for model in MODELS:
      found = [spread(row[model] for row in rows) for rows in seeds.values()]
      if not all(own['clients'] for own in found):
        continue
      kinds = ('mean', 'deviation', 'worst_tenth')
      means = [100 * np.mean([own[kind] for own in found]) for kind in kinds]
      line = [label, model, *(f'{mean:.1f}' for mean in means)]
      cells.append(line + _gains(seeds, runs.get(alone, {}), model, alone))
  return tables.markdown(header, cells)


def _gains(
  seeds: Mapping[int, Sequence[Record]],
  alone: Mapping[int, Sequence[Record]],
  model: str,
  label: str,
) -> list[str]:
  """Compares with training alone, client by client."""
  if not label:
    return []
  gains = []
  for seed, rows in seeds.items():
    there = {row['client']: row['own'] for row in alone.get(seed, ())}
    gains += [
      row[model] - there[row['client']]
      for row in rows
      if row['client'] in there
    ]
  gains = np.array([gain for gain in gains if math.isfinite(gain)])
  if not gains.size:
    return ['-', '-']
  return [f'{100 * gains.mean():+.1f}', f'{100 * np.mean(gains > 0):.0f}']

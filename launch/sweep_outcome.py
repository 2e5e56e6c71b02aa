"""Reads what a finished run of a sweep wrote: all of it, or nothing."""

import os
import pathlib
from typing import Any, NamedTuple

from fedjax_tune.costs import table
from fedjax_tune.data import json_files
from fedjax_tune.report import writer
from fedjax_tune.typing import Record

# The fields of a summary that tables and plots need.
_KINDS: dict[str, type | tuple[type, ...]] = {
  'method': str,
  'seed': int,
  'rounds': int,
  'accuracy': (int, float, type(None)),
  'accuracy_by_domain': dict,
  'client_steps_per_s': (int, float),
  'uplink_bytes': int,
  'downlink_bytes': int,
  'train_flops': int,
}


# The fields of every round that tables and plots need.
_COSTS = ('cost/uplink_bytes', 'cost/downlink_bytes', 'cost/train_flops')


class Outcome(NamedTuple):
  """The results of a run.

  Attributes:
    summary: The run's `summary.json`.
    rows: The rows of its rounds.
    classes: What its classes of clients cost.
  """

  summary: dict[str, Any]
  rows: list[Record]
  classes: list[table.ClassCost]

  def over_last(self, evaluations: int) -> dict[str, Any]:
    """Returns the summary with accuracies averaged over the last evaluations.

    Single evaluations swing where a round sees few clients; their mean tells
    methods apart with fewer seeds.

    Args:
      evaluations: How many to average; a run that has fewer is averaged over
        all.

    Returns:
      The summary; its accuracies (whole, by domain, and of other models) are
      means.
    """
    if evaluations == 1:
      return self.summary
    tested = [row for row in self.rows if 'eval/accuracy' in row]
    tested = tested[-evaluations:]

    def mean(name: str) -> float | None:
      # A null stands for a value that is not finite, which no mean is then. A
      # tier that joins late is judged from then on.
      values = [row[name] for row in tested if name in row]
      return None if None in values else sum(values) / len(values)

    by_domain = {
      domain: mean(f'eval/accuracy/{domain}')
      for domain in self.summary['accuracy_by_domain']
    }
    others = {
      model: mean(f'eval/{model}/accuracy')
      for model in self.summary.get('other_accuracies', {})
    }
    return self.summary | {
      'accuracy': mean('eval/accuracy'),
      'accuracy_by_domain': by_domain,
      'other_accuracies': others,
    }


def read(workdir: str | os.PathLike[str]) -> Outcome:
  """Reads what a run wrote.

  Args:
    workdir: The run's folder.

  Raises:
    OSError: A file is missing, or cannot be read.
    ValueError: A file is not as runs write it, or its rounds differ from those
      in the other files.
  """
  folder = pathlib.Path(workdir)
  summary = json_files.read_object(folder / 'summary.json')
  for name, kind in _KINDS.items():
    if not isinstance(summary.get(name), kind) or name not in summary:
      raise ValueError(f'{folder / "summary.json"} is not what a run writes.')
  rows = writer.read_metrics(folder)
  try:
    rounds = [row['round'] for row in rows]
    last = rows[-1]['eval/accuracy']
    _ = [row[name] for row in rows for name in _COSTS]
  except (LookupError, TypeError) as error:
    text = f'{folder / "metrics.jsonl"} is not what a run writes.'
    raise ValueError(text) from error
  if rounds != list(range(summary['rounds'])) or last != summary['accuracy']:
    raise ValueError(
      f'{folder / "metrics.jsonl"} tells of other rounds than summary.json.'
    )
  path = folder / 'costs.json'
  try:
    classes = [table.ClassCost(**row) for row in json_files.read(path)]
  except TypeError as error:
    raise ValueError(f'{path} is not what a run writes.') from error
  return Outcome(summary, rows, classes)

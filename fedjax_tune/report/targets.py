"""What it takes a method to become as good as another."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from fedjax_tune.report import tables

# Of the baseline's last accuracy; the last points take long and are luck.
SHARE = 0.98


@dataclasses.dataclass(frozen=True)
class Spent:
  """What a run had spent when it was first as good as it should be.

  Attributes:
    rounds: Rounds done.
    moved_bytes: Both ways, all clients together.
    flops: Floating-point operations of all clients together.
    simulated_s: Time on the simulated devices; 0 if there are none.
  """

  rounds: int
  moved_bytes: int
  flops: int
  simulated_s: float


def spent_until(
  rows: Sequence[Mapping[str, Any]], target: float
) -> Spent | None:
  """Returns what a run spent to reach an accuracy; None if it never did.

  Args:
    rows: The rounds of a run, from `metrics.read_metrics`.
    target: The accuracy to reach.
  """
  for row in rows:
    if (row.get('eval/accuracy') or 0) >= target:
      return Spent(
        row['round'] + 1,
        row['cost/uplink_bytes'] + row['cost/downlink_bytes'],
        row['cost/train_flops'],
        row.get('time/simulated_s', 0.0),
      )
  return None


def target_markdown(
  runs: Mapping[str, Mapping[int, Sequence[Mapping[str, Any]]]], baseline: str
) -> str:
  """Compares methods at the accuracy that a baseline ends with.

  Args:
    runs: For each label and seed the rounds of the run. A seed's target is
      `SHARE` of the last accuracy of the baseline's run of that seed; seeds
      that the baseline lacks are left out.
    baseline: The label to compare with.

  Returns:
    A Markdown table of means over the seeds that got there.
  """
  goals = {
    seed: SHARE * rows[-1]['eval/accuracy']
    for seed, rows in runs[baseline].items()
  }
  header = [
    'method', 'seeds there', 'rounds', 'GB moved', 'train TFLOP',
    'simulated h', 'times faster',
  ]  # fmt: skip
  found = {
    label: [
      spent_until(rows, goals[seed])
      for seed, rows in by_seed.items()
      if seed in goals
    ]
    for label, by_seed in runs.items()
  }
  own = _mean(found[baseline], 'simulated_s')
  cells = []
  for label, spent in found.items():
    there = [s for s in spent if s]
    time = _mean(there, 'simulated_s')
    cells.append(
      [
        label,
        f'{len(there)} of {len(spent)}',
        tables.digits(_mean(there, 'rounds')),
        tables.digits(_mean(there, 'moved_bytes') / 1e9),
        tables.digits(_mean(there, 'flops') / 1e12),
        tables.digits(time / 3600) if time else '-',
        tables.digits(own / time) if time else '-',
      ]
    )
  return tables.markdown(header, cells)


def _mean(spent: Sequence[Spent | None], field: str) -> float:
  values = [getattr(s, field) for s in spent if s]
  return float(np.mean(values)) if values else float('nan')

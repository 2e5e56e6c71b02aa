"""Computes what a method needs to become as good as another."""

from collections.abc import Mapping, Sequence
import dataclasses

import numpy as np

from fedjax_tune.report import tables
from fedjax_tune.typing import Record

# Of the baseline's final accuracy; reaching its last points is slow, and luck.
SHARE = 0.98


@dataclasses.dataclass(frozen=True)
class Spent:
  """What a run had spent after some round.

  Attributes:
    rounds: Rounds done.
    moved_bytes: Bytes in both directions, all clients together.
    flops: Floating-point operations of all clients together.
    simulated_s: Time on the simulated devices; 0 if there are none.
  """

  rounds: int
  moved_bytes: int
  flops: int
  simulated_s: float


def spent_until(rows: Sequence[Record], target: float) -> Spent | None:
  """Returns what a run spent to reach an accuracy; None if it never did.

  Args:
    rows: The rounds of a run, from `writer.read_metrics`.
    target: The accuracy to reach.
  """
  for row in rows:
    accuracy = row.get('eval/accuracy')
    if accuracy is not None and accuracy >= target:
      return spent(row)
  return None


def spent(row: Record) -> Spent:
  """Returns what a run had spent after a round, a row of its metrics."""
  return Spent(
    row['round'] + 1,
    row['cost/uplink_bytes'] + row['cost/downlink_bytes'],
    row['cost/train_flops'],
    row.get('time/simulated_s', 0.0),
  )


def target_markdown(
  runs: Mapping[str, Mapping[int, Sequence[Record]]],
  baseline: str,
  ends: Mapping[int, float | None],
) -> str:
  """Compares methods at the accuracy that a baseline ends with.

  Args:
    runs: For each label and seed the rounds of the run.
    baseline: The label to compare with.
    ends: The accuracy that the baseline ends with, by seed. A seed's target is
      `SHARE` of it. Seeds that the baseline lacks are left out, and seeds where
      its accuracy ends at 0 or below, as a correlation may.

  Returns:
    A Markdown table of means over the seeds that got there; 'times faster'
    compares simulated times seed by seed.
  """
  # A null stands for a value that is not finite.
  goals = {s: SHARE * end for s, end in ends.items() if end and end > 0}
  header = [
    'method', 'seeds there', 'rounds', 'GB moved', 'train TFLOP',
    'simulated h', 'times faster',
  ]  # fmt: skip
  found = {
    label: {
      seed: spent_until(rows, goals[seed])
      for seed, rows in by_seed.items()
      if seed in goals
    }
    for label, by_seed in runs.items()
  }
  own = found[baseline]
  cells = []
  for label, by_seed in found.items():
    there = [spent for spent in by_seed.values() if spent]
    pairs = [(own[seed], spent) for seed, spent in by_seed.items()]
    faster = [
      a.simulated_s / b.simulated_s
      for a, b in pairs
      if a and b and b.simulated_s
    ]
    cells.append(
      [
        label,
        f'{len(there)} of {len(by_seed)}',
        *(
          _mean([getattr(spent, field) / unit for spent in there])
          for field, unit in _UNITS.items()
        ),
        # Without devices no time is simulated.
        _mean([x.simulated_s / 3600 for x in there if x.simulated_s]),
        _mean(faster),
      ]
    )
  return tables.markdown(header, cells)


# Field of `Spent` -> the unit of its column.
_UNITS = {'rounds': 1, 'moved_bytes': 1e9, 'flops': 1e12}


def _mean(values: Sequence[float]) -> str:
  return tables.digits(float(np.mean(values))) if values else '-'

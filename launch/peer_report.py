"""The report of the peers: the speed of each whose losses agree."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedjax_tune.report import tables

from . import machine

OURS = 'this engine'
_TOLERANCE = 1e-3

# For each workload and program the lines of its runs.
Lines = Mapping[str, Mapping[str, list[dict[str, Any]]]]

_HEAD = """\
# This engine and its peers

`python -m launch.bench --peers{flags}` wrote this file. One core, one thread,
each program in a process of its own, in turn, {times}; the same data, cohorts
and initial weights. A speed counts only if the losses of all rounds agree with
this engine's to {tolerance}. Client-steps/s are the median over the steady
rounds of a run; the table has the median of the runs, and their range.

CPU: {cpu}. Packages: {versions}.
"""


def markdown(lines: Lines, repeats: int, rounds: int = 0) -> str:
  """Returns the report, as Markdown.

  Args:
    lines: What the programs printed.
    repeats: How often each was run.
    rounds: Rounds of each run; 0 takes the workload's number.
  """
  flags = f' --workload={next(iter(lines))}' if len(lines) == 1 else ''
  flags += f' --repeats={repeats}'
  flags += f' --rounds={rounds}' if rounds else ''
  versions: dict[str, str] = {}
  for programs in lines.values():
    for runs in programs.values():
      for line in runs:
        versions |= line.get('versions', {})
        versions |= {'jax': line['jax']} if 'jax' in line else {}
  parts = [
    _HEAD.format(
      flags=flags,
      times='once' if repeats == 1 else f'{repeats} times',
      tolerance=_TOLERANCE,
      cpu=machine.cpu(),
      versions=', '.join(f'{k} {v}' for k, v in sorted(versions.items())),
    )
  ]
  for workload, programs in lines.items():
    rows = _rows(programs)
    parts += [f'## Workload {workload}\n', tables.markdown(*rows)]
  return '\n'.join(parts)


def disagreement(losses: list[float], ours: list[float]) -> str:
  """Says how losses differ from ours, or nothing where they agree.

  >>> disagreement([2.3531, 2.2726], [2.3532, 2.2725])
  ''
  >>> disagreement([2.3532, 2.2815], [2.3532, 2.2725])
  'refused: losses differ by 0.0090'
  """
  if len(losses) != len(ours):
    return f'refused: {len(losses)} losses, not {len(ours)}'
  worst = float(np.max(np.abs(np.subtract(losses, ours))))
  # So that NaN is refused, too.
  if worst <= _TOLERANCE:
    return ''
  return f'refused: losses differ by {worst:.4f}'


def _rows(
  programs: Mapping[str, list[dict[str, Any]]],
) -> tuple[list[str], list[list[str]]]:
  """Returns the header and the rows of a workload's table."""
  (ours, *_) = programs[OURS]
  if 'error' in ours:
    raise RuntimeError(f'{OURS} failed: {ours["error"]}')
  speed = _median(programs[OURS], 'client_steps_per_s')
  header = [
    'program',
    'client-steps/s',
    'range',
    f'relative to {OURS}',
    'peak memory (MiB)',
    'losses',
  ]
  return header, [
    [name, *_cells(runs, ours['losses'], speed)]
    for name, runs in programs.items()
  ]


def _cells(
  runs: list[dict[str, Any]], ours: list[float], speed: float
) -> list[str]:
  """Returns a program's cells after its name."""
  if errors := [line['error'] for line in runs if 'error' in line]:
    return [f'failed: {errors[0]}', '', '', '', '']
  memory = f'{_median(runs, "peak_rss_mib"):.0f}'
  losses = ', '.join(f'{x:.4f}' for x in runs[0]['losses'])
  refused = [why for r in runs if (why := disagreement(r['losses'], ours))]
  if refused:
    return [refused[0], '', '', memory, losses]
  own = _median(runs, 'client_steps_per_s')
  speeds = [line['client_steps_per_s'] for line in runs]
  span = f'{min(speeds):.4g} to {max(speeds):.4g}'
  return [f'{own:.4g}', span, f'{own / speed:.2f}', memory, losses]


def _median(runs: list[dict[str, Any]], field: str) -> float:
  """Returns the median over the runs that have a line."""
  return float(np.median([line[field] for line in runs if field in line]))

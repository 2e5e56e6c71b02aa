"""Gathers the finished runs of a sweep: a list, tables and a plot."""

from collections.abc import Mapping, Sequence
import csv
import io
import json
import pathlib
from typing import Any, NamedTuple

from fedjax_tune.costs import table
from fedjax_tune.engine import personal
from fedjax_tune.report import clients, tables, targets, writer
from fedjax_tune.typing import Record

from . import sweep_outcome
from .sweep_plan import PlannedRun

# Full models on every client, which others are compared with.
_BASELINE = 'all_large'
# Clients that never average, which those of other methods are compared with.
_ALONE = 'local_only'


class Results(NamedTuple):
  """What a sweep has so far.

  Attributes:
    summaries: The summaries of finished runs, each with its `label`. A label
      has a star if the method is judged differently; `notes` says how.
    notes: What the tables leave out, and how runs in them differ.
    plots: Names of the pictures, which are in the folder of results.md.
  """

  summaries: list[dict[str, Any]]
  notes: list[str]
  plots: list[str]


def write_results(
  workdir: pathlib.Path, runs: Sequence[PlannedRun], last: int = 1
) -> Results | None:
  """Writes results.jsonl, .csv and .md, and both plots, into `workdir`.

  They cover the finished runs that the sweep asks for, with the settings that
  it asks for; anything else in `workdir` is named and left out.

  Args:
    workdir: The sweep's folder; runs are in LABEL/seedK below it.
    runs: All runs of the sweep; their labels come in this order.
    last: How many of each run's last evaluations the tables' accuracy averages.

  Returns:
    What was written; None if no run is finished.
  """
  labels = list(dict.fromkeys(run.label for run in runs))
  done = [run for run in runs if run.finished and not run.problem()]
  done.sort(key=lambda run: (labels.index(run.label), run.seed))
  found = [(run, sweep_outcome.read(run.workdir)) for run in done]
  summaries = [
    {'label': run.label, **own.over_last(last)} for run, own in found
  ]
  if not summaries:
    return None
  notes = _notes(workdir, runs, done)
  if last > 1:
    notes.append(f"Accuracies are means of each run's last {last} evaluations.")
  shown, told = _judged_alone(summaries, done)
  notes += [told] * bool(told)
  lines = [json.dumps(summary) + '\n' for summary in summaries]
  writer.write_text(workdir / 'results.jsonl', ''.join(lines))
  writer.write_text(workdir / 'results.csv', _csv(summaries))
  rows: dict[str, dict[int, list[Record]]] = {}
  for run, own in found:
    rows.setdefault(shown[run.label], {})[run.seed] = own.rows
  starred = [{**own, 'label': shown[own['label']]} for own in summaries]
  metric = tables.measured(summaries)
  compared = _compare_clients(workdir, done, metric)
  text = tables.comparison_markdown(starred)
  if notes:
    text += '\n' + '\n'.join(f'- {note}' for note in notes) + '\n'
  text += (
    _to_reach(rows, shown.get(_BASELINE, ''), summaries)
    + _models(summaries)
    + _classes(found)
    + compared
  )
  writer.write_text(workdir / 'results.md', text)
  # Here and not above, and so below: Matplotlib and SciPy take half a second.
  from fedjax_tune.report import frontier, plots

  curves: dict[str, list[plots.Curve]] = {}
  for run, own in found:
    curves.setdefault(shown[run.label], []).append(_curve(run, own.rows))
  methods = {shown[run.label]: run.experiment.method for run, _ in found}
  place, chance = workdir / 'comparison.png', _chance(summaries)
  plots.plot_comparison(curves, place, methods, chance, metric, told)
  seeds = {label: list(by_seed.values()) for label, by_seed in rows.items()}
  place = workdir / 'frontier.png'
  frontier.plot_frontier(seeds, place, methods, metric, told)
  drawn = ['comparison.png', 'frontier.png'] + ['clients.png'] * bool(compared)
  return Results(starred, notes, drawn)


def _to_reach(
  rows: Mapping[str, Mapping[int, Sequence[Record]]],
  baseline: str,
  summaries: Sequence[dict[str, Any]],
) -> str:
  """Returns what each method needs to reach the baseline's end, if that ran."""
  if not baseline:
    return ''
  ends = {
    s['seed']: s['accuracy'] for s in summaries if s['label'] == _BASELINE
  }
  return (
    f'\nTo reach {targets.SHARE:.0%} of what {_BASELINE} ends with, each seed'
    f' for itself:\n\n{targets.target_markdown(rows, baseline, ends)}'
  )


def _models(summaries: Sequence[dict[str, Any]]) -> str:
  """Returns the accuracies of other models, if runs have any."""
  if not (models := tables.models_markdown(summaries)):
    return ''
  text = f'\nModels beside that of the first table:\n\n{models}'
  if personal.WORST in models:
    text += (
      f'\n{personal.WORST} is the client whose own model fares worst on data'
      ' like its own.\n'
    )
  return text


def _classes(
  found: Sequence[tuple[PlannedRun, sweep_outcome.Outcome]],
) -> str:
  """Returns what a client of each class costs."""
  # Of the first seed; seeds differ in who is in which class.
  first = {run.label: own.classes for run, own in reversed(found)}
  classes = {run.label: first[run.label] for run, _ in found}
  return f'\nA client of each class:\n\n{table.clients_markdown(classes)}'


def _judged_alone(
  summaries: Sequence[dict[str, Any]], done: Sequence[PlannedRun]
) -> tuple[dict[str, str], str]:
  """Marks methods that are not judged on the test split like the others.

  Returns:
    How each label is shown, with a star behind these methods, and what the star
    means, '' if there is none.
  """
  alone = {
    own['label']
    for own in summaries
    if personal.WORST in own.get('other_accuracies', {})
  }
  shown = {
    own['label']: own['label'] + ' *' * (own['label'] in alone)
    for own in summaries
  }
  if not alone:
    return shown, ''
  held_out = {
    bool(run.experiment.clients.held_out) for run in done if run.label in alone
  }
  kinds = {True: 'held-out examples', False: 'part of the test split'}
  on = ' or '.join(kinds[kind] for kind in sorted(held_out, reverse=True))
  return shown, (
    f"(*) Mean over clients, each one's own model on its own {on}."
  )


def _compare_clients(
  workdir: pathlib.Path, done: Sequence[PlannedRun], metric: str
) -> str:
  """Writes what runs report about clients, if any do; returns it as a table."""
  runs: dict[str, dict[int, list[Record]]] = {}
  lines, alone = [], ''
  for run in done:
    if rows := clients.read(run.workdir):
      runs.setdefault(run.label, {})[run.seed] = list(rows)
      lines += [{'label': run.label, 'seed': run.seed, **row} for row in rows]
      if run.experiment.method == _ALONE:
        alone = alone or run.label
  if not runs:
    return ''
  writer.write_text(workdir / clients.FILE, clients.to_csv(lines))
  methods = {run.label: run.experiment.method for run in done}
  from fedjax_tune.report import client_plots

  client_plots.plot_methods(runs, methods, workdir / 'clients.png', metric)
  return '\nHow clients fare, means over seeds:\n\n' + (
    clients.comparison_markdown(runs, alone, metric)
  )


def _notes(
  workdir: pathlib.Path, runs: Sequence[PlannedRun], done: Sequence[PlannedRun]
) -> list[str]:
  """Says what the tables leave out, and how runs in them differ."""
  notes = []
  if missing := [run.name for run in runs if run not in done]:
    notes.append(f'Not finished, and not in the tables: {", ".join(missing)}.')
  asked = {run.workdir for run in runs}
  others = [
    path.parent
    for path in sorted(workdir.glob('*/seed*/config.json'))
    if path.parent not in asked
  ]
  if others:
    names = ', '.join(str(p.relative_to(workdir)) for p in others)
    notes.append(
      f'In the folder, but not asked for by this sweep, and not in the tables:'
      f' {names}.'
    )
  rounds = {run.label: run.experiment.rounds for run in done}
  if len(set(rounds.values())) > 1:
    each = ', '.join(f'{label} {n}' for label, n in rounds.items())
    notes.append(f'Rounds differ: {each}.')
  return notes


def _csv(summaries: Sequence[dict[str, Any]]) -> str:
  """One line per run; values nested by name get a column per name."""
  flat = [_flatten(summary) for summary in summaries]
  columns = list(dict.fromkeys(name for row in flat for name in row))
  text = io.StringIO()
  made = csv.DictWriter(text, columns, lineterminator='\n')
  made.writeheader()
  made.writerows(flat)
  return text.getvalue()


def _flatten(summary: dict[str, Any]) -> dict[str, Any]:
  flat = {}
  for name, value in summary.items():
    if isinstance(value, dict):
      inside = _flatten(value)
      flat |= {f'{name}/{key}': part for key, part in inside.items()}
    else:
      flat[name] = value
  return flat


def _curve(
  run: PlannedRun, rows: Sequence[Record]
) -> tuple[list[int], list[float]]:
  """Accuracy by rounds done, with round 0 if it is known."""
  pairs = [
    (row['round'] + 1, row['eval/accuracy'])
    for row in (*writer.read_start(run.workdir), *rows)
    if 'eval/accuracy' in row
  ]
  rounds = [rnd for rnd, _ in pairs]
  # A null reads as NaN.
  return rounds, [float('nan') if a is None else a for _, a in pairs]


def _chance(summaries: Sequence[dict[str, Any]]) -> dict[str, float]:
  """Returns the accuracy by chance, if all runs agree on it."""
  found = [summary.get('chance', {}) for summary in summaries]
  return found[0] if all(own == found[0] for own in found) else {}

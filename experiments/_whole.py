"""Runs a cell with whole models, as any run of the package."""

from typing import Any

import jax

from experiments import _cells
from fedjax_tune.data import corpus
from fedjax_tune.models import pretrained
from fedjax_tune.training import build
from fedjax_tune.training.run import Run


def run_cell(cell: _cells.Cell) -> list[dict[str, Any]]:
  """Runs one; returns a row for each mark.

  The public examples are some that nobody has, as `build` chooses them.
  """
  e, marks = cell.experiment(), cell.marks()
  parts, _ = _cells.divide(_labels(e), cell)
  run = Run(build.build(e, parts=parts))
  state, key, rows = run.engine.init(), jax.random.key(e.seed), []
  for rnd in range(e.rounds):
    planned = run.setup.planner.plan(rnd)
    state, _ = run.engine.round(state, planned, key, e.local.lr)
    if rnd + 1 in marks:
      found = run.judge(state, f'round {rnd}')
      names = _cells.SETTINGS[cell.setting].names
      accuracies = {name: found[f'eval/{name}/accuracy'] for name in names}
      traffic = run.traffic(planned.members)
      uplink = sum(traffic[m.sig].uplink for m in planned.members)
      mark = marks[rnd + 1]
      rows.append(_cells.row_of(cell, mark, accuracies, uplink))
  return rows


def _labels(e: Any) -> Any:
  """Returns the labels of all training examples."""
  folder = build.data_dir(e.data)
  loaded = pretrained.load_pretrained(
    e.tiers.weights[0], folder, e.data.image_size
  )
  return corpus.load(e.data, loaded.tokenizer, loaded.pad)[0].labels

r"""What a tier with few labels gains from one with many: HeteroTune's designs.

  python -m launch.prepare --dataset=movie_reviews --weights=minilm_l6,minilm_l3
  python -m launch.prepare --dataset=emoji_styles --image_size=42 \
    --weights=dinov2_vits14
  python -m experiments.heterotune_transfer --out=DIR --settings=l3,l6 --seeds=0,1,2
  python -m experiments.heterotune_transfer --out=DIR --sites=all --settings=l3,d6
  python -m experiments.heterotune_transfer --out=DIR --table

Settings, by which tier is poor: `l3` and `l6`, of MiniLM-L6 and -L3 on film reviews;
`d6` and `d12`, of DINOv2's first 12, 8 and 6 blocks on drawing styles. Rich tiers
have 2,560 labels in eight clients, the poor one few in two. All take part in every
round, those of the poor tier from round 10 on ('late') or from the first
('start'); after 10, 11 and 20 rounds one sees how good its model is before it has
trained, one round later, and ten. Nobody has the 512 examples on which the tiers are
aligned.

With `--sites=last` each text model has one adapter, behind its last MLP. What comes
before never changes, so it is computed once (DIR/*.npy), and a run takes seconds
(`_tails.py`). With `--sites=all` every block has one, and a run takes minutes, as it
does of pictures (`_whole.py`). So this file runs itself: each run adds its
lines to DIR/runs.jsonl when it is done, and what is there is not run again; one that
was killed begins anew. `get_config` is one experiment with whole models, whose cost
`launch.inspect` tells.
"""

import argparse
from collections.abc import Sequence
import dataclasses
import itertools
import json
import pathlib
from typing import Any

import jax

from experiments import _cells, _tails, _transfer_report, _whole
from experiments._cells import DESIGNS, SETTINGS, Cell
from fedjax_tune import config

# Of the texts that tails read, evenly spread over all.
_TEXTS = 5632


def get_config(setting: str = 'l3') -> config.Experiment:
  """Returns the experiment of the design that shares cores and head.

  Args:
    setting: Which tier is poor, a key of `SETTINGS`; with '_all' behind it every
      block has an adapter, as it always has of pictures.

  Raises:
    ValueError: It is none of these.
  """
  name = setting.removesuffix('_all')
  if name not in SETTINGS:
    listed = ', '.join(SETTINGS)
    raise ValueError(f'SETTING={setting!r} must be one of {listed}.')
  whole = name != setting or not _cells.is_text(name)
  shared = 'aligned, cores and head'
  cell = Cell(name, 'late', 64, shared, 0, 'all' if whole else 'last')
  return cell.experiment()


def run_on_tails(
  cell: Cell, frozen: _tails.Frozen, like: _tails.Run | None
) -> tuple[list[dict[str, Any]], _tails.Run]:
  """Runs one; returns a row for each mark, and what others can run on.

  Args:
    cell: Which.
    frozen: What the models' tails read.
    like: A run of the same design and setting, whose programs serve this one
      and whose random projections it has.
  """
  e, marks = cell.experiment(), cell.marks()
  parts, public = _cells.divide(frozen.train.labels, cell)
  own = _tails.make(e, frozen, public)
  made = like or _tails.Run.build(e, frozen, parts, public)
  planner = _tails.make_planner(e, own, frozen, parts)
  state = made.engine.init()._replace(theta=own.model.theta)
  key, rows = jax.random.key(e.seed), []
  for rnd in range(e.rounds):
    planned = planner.plan(rnd)
    state, _ = made.engine.round(state, planned, key, e.local.lr)
    if rnd + 1 in marks:
      found = made.accuracies(state.theta)
      uplink = made.uplink(planned)
      rows.append(_cells.row_of(cell, marks[rnd + 1], found, uplink))
  return rows, made


def read(out: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the rows of all runs so far; the first ones lack two fields."""
  path = out / 'runs.jsonl'
  lines = path.read_text().splitlines() if path.exists() else ()
  first = {'sites': 'last', 'rounds': 20}
  return [first | json.loads(line) for line in lines]


def run_missing(cells: Sequence[Cell], out: pathlib.Path) -> None:
  """Runs those that are not there yet, and writes each when it is done."""
  frozen, made, of = None, None, None
  for cell in cells:
    known = dataclasses.asdict(cell)
    if any(row == {**row, **known} for row in read(out)):
      continue
    if cell.sites == 'last':
      models = SETTINGS[cell.setting].weights
      frozen = frozen or _tails.freeze(get_config(), models, out, _TEXTS)
      if of != (of := (cell.setting, cell.design)):
        made = None
      rows, made = run_on_tails(cell, frozen, made)
    else:
      rows = _whole.run_cell(cell)
    with (out / 'runs.jsonl').open('a') as lines:
      lines.writelines(json.dumps(row) + '\n' for row in rows)


def choose(args: argparse.Namespace) -> list[Cell]:
  """Returns the cells that are asked for; pictures have no short cut."""
  designs = [d for d in DESIGNS if not args.designs or d in args.designs]
  found = itertools.product(
    args.settings, designs, args.joins, args.labels, args.seeds
  )
  of = lambda s: args.sites if _cells.is_text(s) else 'all'
  return [Cell(s, j, n, d, k, of(s), args.rounds) for s, d, j, n, k in found]


def main() -> None:
  """Runs what is asked for, or tells what there is."""
  parser = argparse.ArgumentParser(description=__doc__)
  several = lambda kind: lambda text: tuple(map(kind, text.split(',')))
  parser.add_argument('--out', type=pathlib.Path, required=True)
  parser.add_argument('--settings', type=several(str), default=('l3', 'l6'))
  parser.add_argument('--sites', choices=('last', 'all'), default='last')
  parser.add_argument('--joins', type=several(str), default=('late',))
  parser.add_argument('--labels', type=several(int), default=(64,))
  parser.add_argument('--seeds', type=several(int), default=(0, 1, 2))
  parser.add_argument('--designs', nargs='+', choices=DESIGNS, default=())
  parser.add_argument('--rounds', type=int, default=20)
  parser.add_argument('--table', action='store_true')
  args = parser.parse_args()
  if args.table:
    rows = read(args.out)
    (args.out / 'table.md').write_text(_transfer_report.table(rows))
    _transfer_report.draw(rows, args.out)
    return
  args.out.mkdir(parents=True, exist_ok=True)
  jax.config.update('jax_compilation_cache_dir', str(args.out / 'compiled'))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
  run_missing(choose(args), args.out)


if __name__ == '__main__':
  main()

r"""What a tier with few labels gains from one with many: HeteroTune's designs.

  python -m launch.prepare --dataset=movie_reviews --weights=minilm_l6,minilm_l3
  python -m experiments.heterotune_transfer --out=DIR --settings=l3,l6 --seeds=0,1,2
  python -m experiments.heterotune_transfer --out=DIR --table

MiniLM-L6 and -L3, one the model of a rich tier, one that of a poor tier: eight
clients have 2,560 labels among them, two others few. All take part in every
round, those of the poor tier from round 10 on ('late') or from the first
('start'); after 10, 11 and 20 rounds one sees how good its model is before it has
trained, one round later, and ten. Nobody has the 512 texts on which the tiers are
aligned.

Each model has one adapter, behind its last MLP. What comes before never changes, so
it is computed once (DIR/*.npy), and a run takes seconds. So this file runs
itself: each run adds its lines to DIR/runs.jsonl, and what is there is not run
again. `get_config` is the experiment with whole models.
"""

import argparse
from collections.abc import Mapping, Sequence
import dataclasses
import itertools
import json
import pathlib
from typing import Any

import jax
import numpy as np

from experiments import _tails, heterotune_reviews
from fedjax_tune import config
from fedjax_tune.report import figure

# Setting -> the poor tier. The deeper one, to which others are aligned, is first.
_MODELS = ('minilm_l6', 'minilm_l3')
_POOR_TIER = {'l3': 'minilm_l3', 'l6': 'minilm_l6'}
_RICH, _POOR, _LABELS, _PUBLIC, _TEXTS = 8, 2, 2560, 512, 5632
_JOIN, _ROUNDS = 10, 20

# Design -> the fields that make it.
_FREE = {'fedadapter.projections': 'free', 'tiers.head': 'own'}
_APART = {'heterotune.share': False}
DESIGNS: dict[str, dict[str, Any]] = {
  'free, apart': _FREE | _APART,
  'free, cores': _FREE,
  'aligned, apart': {'tiers.head': 'own'} | _APART,
  'aligned, cores': {'tiers.head': 'own'},
  'random, cores': _FREE | {'fedadapter.projections': 'random'},
  'head alone': {'model.tune': 'head'},
  'head alone, ridge': {'model.tune': 'head', 'tiers.head_map': 'ridge'},
  'aligned, cores and head': {},
  'aligned, cores and head, ridge': {'tiers.head_map': 'ridge'},
  'aligned start, cores and head': {'fedadapter.projections': 'aligned_start'},
  'aligned and private, cores and head': {'fedadapter.private': True},
  'free, cores and head': _FREE | {'tiers.head': 'common_any'},
}


def get_config(setting: str = 'l3') -> config.Experiment:
  """Returns the experiment of the design that shares cores and head.

  Args:
    setting: Which tier is poor: 'l3' or 'l6'.

  Raises:
    ValueError: It is none of these.
  """
  if setting not in _POOR_TIER:
    raise ValueError(f"SETTING={setting!r} must be 'l3' or 'l6'.")
  experiment = heterotune_reviews.get_config()
  experiment.rounds = _ROUNDS
  counts = [_POOR if name == _POOR_TIER[setting] else _RICH for name in _MODELS]
  each = lambda *values: sum(
    ((v,) * n for v, n in zip(values, counts, strict=True)), ()
  )
  joins = (_JOIN if n == _POOR else 0 for n in counts)
  experiment.tiers = config.Tiers(
    weights=each(*_MODELS), joins=each(*joins), head='common'
  )
  experiment.fedadapter = config.Fedadapter(
    rank=64, placement='parallel', projections='aligned'
  )
  experiment.heterotune = config.Heterotune(
    branches=(1,) * (_RICH + _POOR), sites=1, every_block=False
  )
  experiment.data = config.Data(
    name='movie_reviews', domains=('rotten_tomatoes',), lengths=(32,)
  )
  experiment.clients = config.Clients(
    partition='iid', count=_RICH + _POOR, budgets=(), min_examples=1,
    cohort='uniform', cohort_size=_RICH + _POOR,
  )  # fmt: skip
  return experiment


@dataclasses.dataclass(frozen=True)
class Cell:
  """A run.

  Attributes:
    setting: Which tier is poor.
    joins: 'late' or 'start'.
    labels: Those of the poor tier, at most 1,024.
    design: A key of `DESIGNS`.
    seed: Of everything but the public texts.
  """

  setting: str
  joins: str
  labels: int
  design: str
  seed: int

  def experiment(self) -> config.Experiment:
    """Returns its configuration."""
    made = get_config(self.setting)
    made.seed = self.seed
    for path, value in DESIGNS[self.design].items():
      section, field = path.split('.')
      setattr(getattr(made, section), field, value)
    if self.joins == 'start':
      made.tiers.joins = ()
    return made

  def marks(self) -> dict[int, str]:
    """Returns after how many rounds to evaluate, and what to call that."""
    if self.joins == 'start':
      return {_ROUNDS: 'end'}
    return {_JOIN: 'before', _JOIN + 1: 'after 1', _ROUNDS: 'after 10'}


def divide(
  labels: np.ndarray, cell: Cell, tiers: Sequence[str]
) -> tuple[list[np.ndarray], np.ndarray]:
  """Returns the positions of each client's examples, and the public ones.

  The poor tier's grow with their number; all others stay the same.

  Args:
    labels: Of all examples, 0 or 1.
    cell: The run.
    tiers: The model of each client.
  """
  public = np.linspace(0, len(labels) - 1, _PUBLIC).astype(int)
  rng = np.random.default_rng((cell.seed, 14))
  own = np.setdiff1d(np.arange(len(labels)), public)
  order = [rng.permutation(own[labels[own] == k]) for k in (0, 1)]
  pick = lambda first, count: np.stack(
    [part[first : first + count // 2] for part in order], 1
  ).ravel()
  few = iter(np.array_split(pick(0, cell.labels), _POOR))
  many = iter(np.array_split(pick(512, _LABELS), _RICH))
  poor = _POOR_TIER[cell.setting]
  return [next(few if tier == poor else many) for tier in tiers], public


def run_cell(
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
  parts, public = divide(frozen.train.labels, cell, e.tiers.weights)
  own = _tails.make(e, frozen, public)
  made = like or _tails.Run.build(e, frozen, parts, public)
  planner = _tails.make_planner(e, own, frozen, parts)
  state = made.engine.init()._replace(theta=own.model.theta)
  key, poor, rows = jax.random.key(e.seed), _POOR_TIER[cell.setting], []
  (rich,) = set(_MODELS) - {poor}
  for rnd in range(_ROUNDS):
    planned = planner.plan(rnd)
    state, _ = made.engine.round(state, planned, key, e.local.lr)
    if rnd + 1 in marks:
      found = made.accuracies(state.theta)
      rows.append(
        dataclasses.asdict(cell)
        | {'mark': marks[rnd + 1], 'poor': found[poor], 'rich': found[rich]}
        | {'uplink': made.uplink(planned)}
      )
  return rows, made


def read(out: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the rows of all runs so far."""
  path = out / 'runs.jsonl'
  lines = path.read_text().splitlines() if path.exists() else ()
  return [json.loads(line) for line in lines]


def run_missing(cells: Sequence[Cell], out: pathlib.Path) -> None:
  """Runs those that are not there yet, and writes each when it is done."""
  frozen, made, of = None, None, None
  for cell in cells:
    known = dataclasses.asdict(cell)
    if any(row == {**row, **known} for row in read(out)):
      continue
    frozen = frozen or _tails.freeze(get_config(), _MODELS, out, _TEXTS)
    if of != (of := (cell.setting, cell.design)):
      made = None
    rows, made = run_cell(cell, frozen, made)
    with (out / 'runs.jsonl').open('a') as lines:
      lines.writelines(json.dumps(row) + '\n' for row in rows)


# What the runs of one table have in common.
_GROUP = ('setting', 'joins', 'labels')
Row = Mapping[str, Any]


def table(rows: Sequence[Row]) -> str:
  """Returns the accuracies of the poor tier, and of the rich one at the end."""
  text = []
  for group, own in _grouped(rows, _GROUP).items():
    marks = list(dict.fromkeys(row['mark'] for row in own))
    names = [f'{k} {v}' for k, v in zip(_GROUP, group, strict=True)]
    head = ['design', *marks, 'rich tier', 'KiB up', 'seeds']
    text += ['', ', '.join(names), '', f'| {" | ".join(head)} |']
    text.append('|---|' + '---:|' * (len(head) - 1))
    for (design,), of in _grouped(own, ('design',)).items():
      at = _grouped(of, ('mark',))
      last = at[marks[-1],]
      cells = [_spread([row['poor'] for row in at[mark,]]) for mark in marks]
      cells.append(_spread([row['rich'] for row in last]))
      cells += [f'{last[0]["uplink"] / 1024:.0f}', str(len(last))]
      text.append(f'| {design} | {" | ".join(cells)} |')
  return '\n'.join(text[1:]) + '\n'


def _grouped(
  rows: Sequence[Row], keys: Sequence[str]
) -> dict[tuple[Any, ...], list[Row]]:
  """Returns the rows of each combination of values, designs in their order."""
  found: dict[tuple[Any, ...], list[Row]] = {}
  order = list(DESIGNS)
  for row in sorted(rows, key=lambda row: order.index(row['design'])):
    found.setdefault(tuple(row[key] for key in keys), []).append(row)
  return found


def _spread(values: Sequence[float]) -> str:
  """Returns mean and sample deviation of accuracies, in percent."""
  mean = f'{100 * np.mean(values):.1f}'
  return mean + f' ± {100 * np.std(values, ddof=1):.1f}' if values[1:] else mean


def draw(rows: Sequence[Row], path: pathlib.Path) -> None:
  """Draws the poor tier's accuracy at the end against its labels.

  Of the setting with most numbers of labels, a line for each design that has
  several.
  """
  last = [row for row in rows if row['mark'] in ('after 10', 'end')]
  settings = _grouped(last, _GROUP[:-1]).values()
  count = lambda own: len({row['labels'] for row in own})
  own = max(settings, key=count)
  ends, styles = [], figure.line_styles()
  with figure.drawing(4.2, path) as ax:
    for (design,), of in _grouped(own, ('design',)).items():
      by_labels = sorted(_grouped(of, ('labels',)).items())
      labels = [n for (n,), _ in by_labels]
      if len(labels) == 1:
        continue
      color, dash = next(styles)
      mean = [
        100 * float(np.mean([row['poor'] for row in part]))
        for _, part in by_labels
      ]
      ax.plot(labels, mean, color=color, linestyle=dash, marker='o', ms=3)
      ends.append(figure.EndLabel(labels[-1], mean[-1], design, color))
    sizes = sorted({row['labels'] for row in own})
    title = 'The poor tier, after ten rounds of its own'
    figure.by_round(ax, title, 'accuracy, %', sizes[-1], ends)
    ax.set_xscale('log', base=2)
    ax.set_xlim(sizes[0], sizes[-1])
    ax.set_xticks(sizes, [str(size) for size in sizes])
    ax.set_xlabel('its labels')


def main() -> None:
  """Runs what is asked for, or tells what there is."""
  parser = argparse.ArgumentParser(description=__doc__)
  several = lambda kind: lambda text: tuple(map(kind, text.split(',')))
  parser.add_argument('--out', type=pathlib.Path, required=True)
  parser.add_argument('--settings', type=several(str), default=('l3', 'l6'))
  parser.add_argument('--joins', type=several(str), default=('late',))
  parser.add_argument('--labels', type=several(int), default=(64,))
  parser.add_argument('--seeds', type=several(int), default=(0, 1, 2))
  parser.add_argument('--designs', nargs='+', choices=DESIGNS, default=())
  parser.add_argument('--table', action='store_true')
  args = parser.parse_args()
  if args.table:
    rows = read(args.out)
    (args.out / 'table.md').write_text(table(rows))
    draw(rows, args.out / 'heterotune_transfer.png')
    return
  args.out.mkdir(parents=True, exist_ok=True)
  jax.config.update('jax_compilation_cache_dir', str(args.out / 'compiled'))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
  designs = [d for d in DESIGNS if not args.designs or d in args.designs]
  cells = itertools.product(
    args.settings, designs, args.joins, args.labels, args.seeds
  )
  run_missing([Cell(s, j, n, d, k) for s, d, j, n, k in cells], args.out)


if __name__ == '__main__':
  main()

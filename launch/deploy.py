r"""Cuts a subnetwork out of a finished run, or compares many.

  python -m launch.deploy --workdir=DIR --budget=0.7 [--out=FOLDER]
  python -m launch.deploy --workdir=DIR --space=head_dim=0.5,ffn=0.4
  python -m launch.deploy --workdir=DIR --model=minilm_l3 [--budget=0.7]
  python -m launch.deploy --workdir=DIR --curve [--budget=0.7] [--samples=100]

The first two evaluate the subnetwork on the run's test data and write it as a
Hugging Face folder, with `deploy.json` about it. A budget is a share of the
parameters (up to 1), or a number of them; the largest subnetwork within it is
taken. The third takes one of several models that a run ends with, for example a
tier of HeteroTune, and takes it whole unless a budget or space is given. If no
class of `transformers` has the model's additions, the folder is for
`fedjax_tune.load_model`. The fourth evaluates random subnetworks of many sizes,
or of one budget, with and without salience, and writes curve.json, .md and
.png, or box.json, .md and .png.
"""

import dataclasses

from absl import flags
from rich import console as rich_console
from rich import progress as rich_progress

from fedjax_tune.deploy import deployment, finished, folders, subnetworks
from fedjax_tune.files import mirror
from fedjax_tune.methods.raffm import salience
from fedjax_tune.report import scaling, tables, writer
from fedjax_tune.report.progress import waiting
from fedjax_tune.typing import Allocation

from . import command_line, start

_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder of a finished run.', required=True
)
_BUDGET = flags.DEFINE_float(
  'budget', None, 'Parameters: a share of all (up to 1), or their number.'
)
_SPACE = flags.DEFINE_string('space', None, 'FIELD=SHARE,... to keep.')
_MODEL = flags.DEFINE_string(
  'model', '', 'Which, where the run ends with several.'
)
_OUT = flags.DEFINE_string('out', None, 'Results; DIR/deployed by default.')
_CURVE = flags.DEFINE_bool('curve', False, 'Compare random subnetworks.')
_SAMPLES = flags.DEFINE_integer(
  'samples', 100, 'How many to compare.', lower_bound=1
)
_PRIORITY = flags.DEFINE_enum(
  'priority',
  None,
  list(salience.SCOPES),
  "What salience reorders before cutting; 'none', the default, cuts as trained;"
  ' --curve compares qk+vo+ffn.',
)
_TEST_EXAMPLES = flags.DEFINE_integer(
  'test_examples', 0, 'Of each domain; 0 is what the run took.', lower_bound=0
)
_SEED = flags.DEFINE_integer(
  'seed', 0, 'Of the comparison.', lower_bound=0, upper_bound=2**32 - 1
)


def main(argv: list[str]) -> None:
  """Loads the run, and either cuts one subnetwork or compares many."""
  start.reject_arguments(argv)
  _check_flags()
  workdir, console = start.folder(_WORKDIR), start.console()
  out = f'{workdir}/deployed' if _OUT.value is None else start.folder(_OUT)
  with mirror.opened('out', out, new=True) as place:
    with waiting(console, 'Reading the run and its data'):
      trained = finished.load(workdir, _TEST_EXAMPLES.value, _MODEL.value)
    start.tell_devices(console)
    start.cache_programs(trained.setup.experiment)
    (_compare if _CURVE.value else _extract)(trained, place, console)
    place.send()


def _check_flags() -> None:
  if not _CURVE.value:
    command_line.only_with('--curve', _SAMPLES, _SEED)
  given = [
    name
    for name, value in (('budget', _BUDGET.value), ('space', _SPACE.value))
    if value is not None
  ]
  if _CURVE.value and 'space' in given:
    raise ValueError('--curve takes --budget, or neither; not --space.')
  if _CURVE.value and _PRIORITY.value == 'none':
    raise ValueError('--priority=none leaves --curve nothing to compare.')
  if len(given) > 1 or not (given or _CURVE.value or _MODEL.value):
    raise ValueError(
      'one of --budget, --space and --curve must be given; a --model is whole'
      ' without.'
    )


def _extract(
  trained: finished.Trained, place: mirror.Place, console: rich_console.Console
) -> None:
  row: Allocation = {}
  if _BUDGET.value is not None:
    row = subnetworks.largest(_BUDGET.value, trained)
  elif _SPACE.value is not None:
    row = subnetworks.parse(_SPACE.value, trained)
  with waiting(console, 'Evaluating and writing'):
    record = deployment.write(
      trained, row, place.folder, _PRIORITY.value or 'none'
    )
  cut = ', '.join(
    f'{axis} {n} of {trained.sizes[axis]}'
    for axis, n in record['subnetwork'].items()
    if n < trained.sizes[axis]
  )
  console.print(
    f'{tables.human_count(record["parameters"])} of'
    f' {tables.human_count(record["full_parameters"])} parameters'
    f' ({record["share"]:.1%}): {cut or "the full model"}\n'
    f'{record["metric"]} {record["accuracy"]:.1%}, of the full model'
    f' {record["full_accuracy"]:.1%}\n'
    f'{tables.human_bytes(record["file_bytes"])} in {place.shown}',
  )
  largest = deployment.largest_class(trained.test)
  if largest is not None and record['accuracy'] <= largest[1]:
    console.print(
      f'Always answering {largest[0]!r} gets {largest[1]:.1%}: the run trained'
      ' nothing of this size, or not enough. Try a larger --budget.'
    )


def _compare(
  trained: finished.Trained, place: mirror.Place, console: rich_console.Console
) -> None:
  out = place.folder
  folders.check(out)
  seed, budget = _SEED.value, _BUDGET.value
  priority = _PRIORITY.value or 'qk+vo+ffn'
  drawn = subnetworks.draw(trained, _SAMPLES.value, seed, budget)
  # The full model comes last.
  drawn.append((trained.num_params({}), trained.sizes))
  *points, full = rich_progress.track(
    subnetworks.measure(trained, drawn, seed, priority),
    'Subnetworks',
    total=len(drawn),
    console=console,
  )
  name = 'curve' if budget is None else 'box'
  plot = scaling.plot_curve if budget is None else scaling.plot_box
  compared = scaling.Comparison(points, full, trained.test.task.primary)
  record = {
    'metric': compared.metric,
    'priority': priority,
    'test_examples': len(trained.test),
    'full': dataclasses.asdict(full),
    'subnetworks': [dataclasses.asdict(point) for point in points],
  }
  writer.write_json(out / f'{name}.json', record)
  writer.write_text(out / f'{name}.md', scaling.scaling_markdown(compared))
  plot(compared, out / f'{name}.png')
  console.print(scaling.scaling_table(compared))
  console.print(f'{name}.json, {name}.md and {name}.png are in {place.shown}')


if __name__ == '__main__':
  start.run(main)

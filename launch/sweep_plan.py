"""What a sweep runs: each method with each seed."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
import dataclasses
import pathlib
import re

from absl import flags

from fedjax_tune import config
from fedjax_tune.training import defaults, provisions
from fedjax_tune.training import workdir as workdirs

from . import sweep_outcome

# From a run's part of the command line to its experiment.
Resolve = Callable[[Sequence[str]], config.Experiment]


@dataclasses.dataclass(frozen=True)
class PlannedRun:
  """One method with one seed.

  Attributes:
    label: Names the method and its variant; also the folder.
    seed: The run's seed.
    flags: The run's part of `launch.train`'s command line.
    workdir: Where the run writes.
    experiment: The experiment that results from these flags, with no field left
      open.
    own: The fields that the run's method entry sets.
  """

  label: str
  seed: int
  flags: tuple[str, ...]
  workdir: pathlib.Path
  experiment: config.Experiment
  own: tuple[str, ...] = ()

  @property
  def name(self) -> str:
    return f'{self.label} seed {self.seed}'

  @property
  def log(self) -> pathlib.Path:
    """Where the run's process writes its output."""
    return self.workdir / 'log.txt'

  @property
  def begun(self) -> bool:
    """Whether the run has begun, that is, accepted its configuration."""
    return (self.workdir / 'config.json').exists()

  @property
  def finished(self) -> bool:
    """Whether its results are complete for all rounds that are asked for.

    There may be fewer rounds if `patience` ended the run. If a file is lost or
    damaged, or if the report of its clients is asked for later, `launch.train
    --resume` writes it.
    """
    e = self.experiment
    try:
      summary = sweep_outcome.read(self.workdir).summary
    except (OSError, ValueError):
      return False
    if e.clients.report and 'clients' not in summary:
      return False
    return summary['rounds'] == e.rounds or (
      e.patience > 0 and summary.get('ended_early') is True
    )

  def problem(self, *, running: bool = False) -> str:
    """Says why this run may not begin or go on in its folder.

    Args:
      running: Whether its process is at work; the process ends by itself if the
        folder is out of reach for longer than a moment.
    """
    fields = dataclasses.asdict(self.experiment)
    try:
      workdirs.check_begun(self.workdir, fields, resume=True)
    except ValueError as error:
      return str(error)
    except OSError as error:
      return '' if running else str(error)
    return ''


def parse_method(entry: str) -> tuple[str, tuple[str, ...]]:
  """Splits `[LABEL=]NAME[:FIELD=VALUE]...` into label and overrides.

  A value may have colons, as data and weights do: 'a=fedra:data.name=csv:FILE'.

  >>> parse_method('fedra:fedra.coverage_repair=true')
  ('fedra_coverage_repair', ('method=fedra', 'fedra.coverage_repair=true'))

  Raises:
    ValueError: If the entry does not have this form.
  """
  head, *fields = re.split(r':(?=[\w.]+=)', entry)
  label, _, method = head.rpartition('=')
  if not re.fullmatch(r'\w+', method) or not all(
    re.fullmatch(r'[\w.]+=.*', field) for field in fields
  ):
    raise ValueError(
      f'methods: {entry!r} must read [LABEL=]NAME[:FIELD=VALUE]...'
    )
  label = label or '_'.join([method, *map(_slug, fields)])
  if not re.fullmatch(r'\w[\w.-]*', label):
    raise ValueError(f'methods: label {label!r} cannot name a folder.')
  return label, (f'method={method}', *fields)


def _slug(field: str) -> str:
  """The label of a variant: its value, with the field's name if needed."""
  name, _, value = field.partition('=')
  name = name.rpartition('.')[2]
  if value.lower() in ('true', 'false'):
    return name if value.lower() == 'true' else f'no_{name}'
  text = value if re.match('[A-Za-z]', value) else name + value
  return re.sub(r'[^\w.-]+', '_', text).strip('_')


def plan(
  file: str,
  methods: str,
  seeds: Sequence[str],
  common: Sequence[str],
  workdir: pathlib.Path,
  resolve: Resolve,
) -> list[PlannedRun]:
  """All runs, seeds outermost, so that one seed's table is complete early.

  Args:
    file: The experiment file.
    methods: Entries; the fields that one sets override `common`.
    seeds: The seeds as the user wrote them.
    common: FIELD=VALUE for every run.
    workdir: The sweep's folder.
    resolve: Reads the file and applies flags.

  Raises:
    ValueError: An entry is malformed or given twice, or a run's experiment is
      wrong; the message has a line for each.
  """
  problems: list[str] = []
  entries = _entries(methods, problems)
  found = [_seed(seed, problems) for seed in seeds]
  numbers = [seed for seed in found if seed is not None]
  problems += _twice('methods', [label for label, _ in entries])
  problems += _twice('seeds', numbers)
  if not seeds:
    problems.append('seeds: at least one must be given.')
  shared = _shared(common, problems)
  runs: list[PlannedRun] = []
  wrong: dict[str, list[str]] = {}
  for seed in numbers or [0]:
    for label, own in entries:
      fields = shared | own | {'seed': str(seed)}
      line = (
        f'--config={file}',
        *(f'--config.{name}={value}' for name, value in fields.items()),
      )
      if (experiment := _resolve(resolve, label, line, wrong)) is not None:
        folder = workdir / label / f'seed{seed}'
        runs.append(
          PlannedRun(label, seed, line, folder, experiment, tuple(own))
        )
  labels = {label for label, _ in entries}
  for text, by in wrong.items():
    # What all share need not be read once for each.
    everyone = len(labels) > 1 and labels == set(by)
    problems.append(f'{"all methods" if everyone else ", ".join(by)}: {text}')
  _refuse(problems)
  _refuse(_alike(runs))
  return runs


def _entries(
  methods: str, problems: list[str]
) -> list[tuple[str, dict[str, str]]]:
  """Returns the label and the fields of each method entry."""
  # A comma inside brackets belongs to a value.
  found = []
  for entry in re.split(r',(?![^(\[]*[)\]])', methods):
    try:
      label, items = parse_method(entry.strip())
    except ValueError as error:
      problems.append(str(error))
    else:
      where = f'methods: {entry.strip()!r}'
      found.append((label, _distinct(where, items, problems)))
  return found


def _shared(common: Sequence[str], problems: list[str]) -> dict[str, str]:
  """Returns the fields that every run sets."""
  good = [item for item in common if re.fullmatch(r'[\w.]+=.*', item)]
  problems += [
    f'set: {item!r} must read FIELD=VALUE.'
    for item in common
    if item not in good
  ]
  shared = _distinct('set', good, problems)
  if 'method' in shared:
    problems.append('set: method must be given by --methods.')
  return shared


def _resolve(
  resolve: Resolve,
  label: str,
  line: tuple[str, ...],
  wrong: dict[str, list[str]],
) -> config.Experiment | None:
  """Returns a run's experiment; if it is wrong, notes why and returns None."""
  try:
    return defaults.resolve(resolve(line))
  except (flags.Error, ValueError, OSError) as error:
    for text in str(error).splitlines():
      by = wrong.setdefault(text, [])
      if label not in by:  # Seeds share their label's problems.
        by.append(label)
  return None


def _alike(runs: Sequence[PlannedRun]) -> list[str]:
  """Names labels that stand for the same experiment."""
  lines = []
  for i, run in enumerate(runs):
    for other in runs[:i]:
      if run.seed == other.seed == runs[0].seed and (
        run.experiment == other.experiment
      ):
        lines.append(
          f'methods: {other.label} and {run.label} are the same experiment.'
        )
  return lines


def _refuse(problems: list[str]) -> None:
  if problems:
    raise ValueError('\n'.join(problems))


def _seed(text: str, problems: list[str]) -> int | None:
  """Reads a seed; its folder is named by the number, however it is written."""
  if re.fullmatch(r'[0-9]+', text.strip()):
    return int(text)
  problems.append(f'seeds: {text!r} must be a whole number, 0 or more.')
  return None


def _twice(field: str, values: Iterable[str | int]) -> list[str]:
  twice = [str(value) for value, n in Counter(values).items() if n > 1]
  return [f'{field}: {", ".join(twice)} must occur only once.'] if twice else []


def _distinct(
  where: str, items: Iterable[str], problems: list[str]
) -> dict[str, str]:
  """Returns FIELD=VALUE items as a mapping; notes fields given twice."""
  fields: dict[str, str] = {}
  for item in items:
    name, _, value = item.partition('=')
    if name == 'seed':
      problems.append(f'{where}: seed must be given by --seeds.')
    if name in fields:
      problems.append(f'{where}: {name} must be given only once.')
    fields[name] = value
  return fields


def provide(runs: Sequence[PlannedRun], fetch: bool) -> None:
  """Checks that the runs' data and weights are there; fetches them if asked.

  Raises:
    FileNotFoundError, RuntimeError: See `provisions`.
    ValueError: A field is wrong, such as the name of the set.
  """
  # Runs with the same label differ only in their seeds.
  for run in {run.label: run for run in runs}.values():
    if fetch:
      provisions.obtain(run.experiment)
    provisions.check(run.experiment)

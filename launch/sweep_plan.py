"""What a sweep runs: each method with each seed."""

from collections.abc import Sequence
import dataclasses
import pathlib
import re


@dataclasses.dataclass(frozen=True)
class Run:
  """One method with one seed.

  Attributes:
    label: Names the method and its variant; also the folder.
    seed: Of the run.
    flags: Its part of `launch.train`'s command line.
    workdir: Where it writes.
  """

  label: str
  seed: int
  flags: tuple[str, ...]
  workdir: pathlib.Path

  @property
  def name(self) -> str:
    return f'{self.label} seed {self.seed}'

  @property
  def begun(self) -> bool:
    """Whether it got as far as to accept its configuration."""
    return (self.workdir / 'config.json').exists()

  @property
  def finished(self) -> bool:
    return (self.workdir / 'summary.json').exists()


def parse_method(entry: str) -> tuple[str, tuple[str, ...]]:
  """Splits `[LABEL=]NAME[:FIELD=VALUE]...` into label and overrides.

  >>> parse_method('fedra:fedra.coverage_repair=true')
  ('fedra_coverage_repair', ('method=fedra', 'fedra.coverage_repair=true'))

  Raises:
    ValueError: If the entry does not have this form.
  """
  head, *fields = entry.split(':')
  label, _, method = head.rpartition('=')
  if not re.fullmatch(r'\w+', method) or not all(
    re.fullmatch(r'[\w.]+=.+', field) for field in fields
  ):
    raise ValueError(
      f'methods: {entry!r} must read [LABEL=]NAME[:FIELD=VALUE]...'
    )
  label = label or '_'.join([method, *map(_slug, fields)])
  if not re.fullmatch(r'\w[\w.-]*', label):
    raise ValueError(f'methods: label {label!r} cannot name a folder.')
  return label, (f'method={method}', *fields)


def _slug(field: str) -> str:
  """What tells a variant apart: its value, with a name if it needs one."""
  name, _, value = field.partition('=')
  name = name.rpartition('.')[2]
  if value.lower() in ('true', 'false'):
    return name if value.lower() == 'true' else f'no_{name}'
  text = value if re.match('[A-Za-z]', value) else name + value
  return re.sub(r'[^\w.-]+', '_', text).strip('_')


def plan(
  config: str,
  methods: str,
  seeds: Sequence[str],
  common: Sequence[str],
  workdir: pathlib.Path,
) -> list[Run]:
  """All runs, seeds outermost, so that one seed's table is whole early.

  Raises:
    ValueError: If an entry is malformed or given twice.
  """
  # A comma inside brackets belongs to a value.
  entries = re.split(r',(?![^(\[]*[)\]])', methods)
  parsed = [parse_method(entry.strip()) for entry in entries]
  labels = [label for label, _ in parsed]
  for field, values in (('methods', labels), ('seeds', list(seeds))):
    twice = sorted({v for v in values if values.count(v) > 1})
    if twice:
      raise ValueError(f'{field}: {", ".join(twice)} must occur only once.')
  if bad := [seed for seed in seeds if not re.fullmatch(r'\d+', seed)]:
    raise ValueError(f'seeds: {bad[0]!r} must be a whole number, 0 or more.')
  if bad := [item for item in common if not re.fullmatch(r'[\w.]+=.*', item)]:
    raise ValueError(f'set: {bad[0]!r} must read FIELD=VALUE.')
  return [
    Run(
      label,
      int(seed),
      (
        f'--config={config}',
        *(f'--config.{item}' for item in (*common, *overrides)),
        f'--config.seed={seed}',
      ),
      workdir / label / f'seed{seed}',
    )
    for seed in seeds
    for label, overrides in parsed
  ]

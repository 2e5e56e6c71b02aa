"""The rules of an experiment that can be checked without its data."""

from collections.abc import Collection, Iterator, Mapping
import dataclasses
import functools
import math
import typing
from typing import Any

from fedjax_tune import config
from fedjax_tune.config import meanings
from fedjax_tune.config.field_rules import AUTO, REGISTERED, RULES, one_of

# Parameters and rates are float32 on the device: what is smaller is 0 there,
# what is larger infinite.
_LEAST, _MOST = 1e-37, 1e38


def validate(
  experiment: config.Experiment, choices: Mapping[str, Collection[str]]
) -> None:
  """Checks all that can be checked without data or weights.

  Args:
    experiment: What to check.
    choices: The names in the registries, by the path of the field that takes
      such a name; `plugins.choices` gathers them.

  Raises:
    ValueError: With a line for each problem, naming field, value and rule.
  """
  rules = {
    path: one_of(*choices[path]) if rule is REGISTERED else rule
    for path, rule in RULES.items()
  }
  ill_formed = dict(_ill_formed(experiment))
  problems = list(ill_formed.values())
  for path, rule in rules.items():
    # What its type or its section's already breaks has no values to look at.
    if any(path == p or path.startswith(f'{p}.') for p in ill_formed):
      continue
    for place, value in _values(experiment, path):
      if not rule.holds(value):
        text = rule.text(value)
        stop = '' if text.endswith('?') else '.'
        problems.append(f'{place}={value!r} {text}{stop}')
  if not ill_formed:
    problems += [*_empty(experiment), *_mixed(experiment)]
    problems += _disagreements(experiment, choices['clients.partition'])
  if problems:
    raise ValueError('\n'.join(problems))


def _values(
  experiment: config.Experiment, path: str
) -> list[tuple[str, object]]:
  """Returns a field's value with its path, or those of its elements."""
  value = functools.reduce(getattr, path.split('.'), experiment)
  if isinstance(value, tuple):
    return [(f'{path}[{i}]', element) for i, element in enumerate(value)]
  return [(path, value)]


def _ill_formed(section: Any, within: str = '') -> Iterator[tuple[str, str]]:
  """Yields the path of each unknown field or wrong type, and what is wrong."""
  kinds = {f.name: f.type for f in dataclasses.fields(section)}
  for name, value in vars(section).items():
    place = f'{within}{name}'
    if name not in kinds:
      yield place, f'{place} is not a field{meanings.like(place, [*RULES])}'
    elif not _fits(value, kinds[name]):
      yield place, f'{place}={value!r} must be {_describe(kinds[name])}.'
    elif dataclasses.is_dataclass(value):
      yield from _ill_formed(value, f'{place}.')


def _fits(value: object, kind: Any) -> bool:
  if typing.get_origin(kind) is tuple:
    element = typing.get_args(kind)[0]
    return isinstance(value, tuple) and all(_fits(x, element) for x in value)
  if isinstance(value, bool):
    return kind is bool
  if kind is float:
    return isinstance(value, int | float) and _is_float32(value)
  return isinstance(value, kind)


def _is_float32(value: float) -> bool:
  # An int may be too large to be compared as a float, so it goes first.
  size = abs(value)
  return size == 0 or (size <= _MOST and _LEAST <= size < math.inf)


def _describe(kind: Any) -> str:
  if kind is float:
    return 'a finite float, 0 or within the range of float32'
  return f'of type {kind if typing.get_origin(kind) else kind.__name__}'


def _empty(experiment: config.Experiment) -> Iterator[str]:
  """Yields tuples that need an element, or an order."""
  lengths = experiment.data.lengths
  if list(lengths) != sorted(set(lengths)):
    yield f'data.lengths={lengths} must be ascending.'
  if not experiment.fedadapter.after:
    yield 'fedadapter.after=() must not be empty.'
  for name in ('rates', 'axes'):
    if not getattr(experiment.width, name):
      yield f'width.{name}=() must not be empty.'
  for name in ('head_dim', 'heads', 'ffn', 'embed', 'layers'):
    if not getattr(experiment.raffm, name):
      yield f'raffm.{name}=() must not be empty.'


def _mixed(experiment: config.Experiment) -> Iterator[str]:
  """Yields tuples whose elements must be of one kind, and are not."""
  budgets, targets = experiment.clients.budgets, experiment.lora.targets
  if len({isinstance(x, int) for x in budgets}) > 1:
    yield (
      f'clients.budgets={budgets} must be all whole numbers of blocks, or all'
      ' shares of them: 1 is one block, 1.0 the whole model.'
    )
  if AUTO in targets and len(targets) > 1:
    yield f"lora.targets={targets} must be ('{AUTO}',), or name maps alone."


def _disagreements(
  experiment: config.Experiment, partitions: Collection[str]
) -> Iterator[str]:
  """Yields what is wrong with fields in combination.

  Args:
    experiment: What to check.
    partitions: Names of the known partitions. If a name begins with 'domain',
      each client belongs to one domain.
  """
  joins = experiment.tiers.joins
  if joins and max(joins) >= experiment.rounds:
    yield (
      f'tiers.joins={experiment.tiers.joins} must lie below rounds='
      f'{experiment.rounds}.'
    )
  local = experiment.local
  known = RULES['local.warmup'].holds(local.warmup)
  if known and local.warmup and local.warmup >= experiment.rounds:
    yield (
      f'local.warmup={local.warmup} must lie below rounds={experiment.rounds}.'
    )
  if local.schedule == 'exponential' and local.steps:
    yield (
      f"local.schedule='exponential' falls with each local epoch, so that"
      f' local.steps={local.steps} must be 0.'
    )
  cfg = experiment.clients
  if cfg.report and experiment.engine.fsdp:
    yield (
      f'clients.report={cfg.report} must be 0 with engine.fsdp=True: clients'
      ' are judged on one device, which holds the whole model.'
    )
  if experiment.engine.unroll and (
    experiment.engine.fsdp or experiment.model.remat
  ):
    yield (
      'engine.unroll=True must be False with engine.fsdp=True or'
      ' model.remat=True: these hold a block only while it runs.'
    )
  if cfg.fit and not cfg.devices and RULES['clients.fit'].holds(cfg.fit):
    yield (
      f"clients.fit={cfg.fit!r} must be '', or clients.devices='' name the"
      ' hardware that clients have.'
    )
  if cfg.partition == AUTO or cfg.partition not in partitions:
    return
  if cfg.partition.startswith('domain'):
    return
  where = f'with clients.partition={cfg.partition!r}'
  if cfg.cohort == 'one_per_domain':
    yield f"clients.cohort='one_per_domain' must be 'uniform' {where}."
  whole = all(isinstance(x, int) for x in cfg.budgets)
  if whole and 0 < cfg.count < len(cfg.budgets):
    yield (
      f'clients.budgets={cfg.budgets} must have at most clients.count='
      f'{cfg.count} numbers {where}.'
    )

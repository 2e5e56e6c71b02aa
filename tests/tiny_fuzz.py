"""Draws experiments, field by field, from the dataclasses and their rules."""

from collections.abc import Iterator
import dataclasses
import functools
import typing
from typing import Any

from hypothesis import strategies as st

from fedjax_tune import config, plugins
from fedjax_tune.config.field_rules import RULES
from fedjax_tune.costs import hardware

# What a field of a type may be given, sensible or not.
_INTS = (-1, 0, 1, 2, 3, 5, 17, 10**6, 10**9, 2**31, 2**32, 2**63, 2**70)
_FLOATS = (
  -1.0, 0.0, 1e-50, 1e-9, 0.1, 0.5, 1.0, 2.0, 40.0, 1e6, 1e38, 1e300,
  float('nan'), float('inf'), 10**400,
)  # fmt: skip
_STRINGS = ('', ' ', 'x', '[red]', '../x', '~', 'gs://b/r', '\0', '\udcff', 'ü')
_OTHERS = (None, 'x', 1.5, True, 7, (), (1,), [1], {}, object)
# Names in registries.
_CHOICES = plugins.choices()
# Names of what is built later.
_LATER = {'clients.devices': ('', *hardware.SETTINGS)}
# A run that is drawn stays this small; data and weights are given.
_SMALL = {int: (0, 1, 2, 3, 4, 8), float: (0.0, 0.1, 0.5, 0.9, 1.0, 2.0)}
_GIVEN = (
  'imports',
  'data.name', 'data.data_dir', 'data.domains', 'data.image_size', 'rounds',
  'data.lengths', 'model.weights', 'tiers.weights', 'engine.devices',
  'engine.compilation_cache', 'tiers.depth',
)  # fmt: skip


def fields(section: Any = config.Experiment, prefix: str = '') -> Iterator:
  """Yields the path and the type of each field that holds a value."""
  for name, kind in typing.get_type_hints(section).items():
    if dataclasses.is_dataclass(kind):
      yield from fields(kind, f'{prefix}{name}.')
    else:
      yield prefix + name, kind


def names(path: str) -> tuple[str, ...]:
  """Returns the names that a field may have, where they are few."""
  listed = RULES[path].choices or _CHOICES.get(path) or _LATER.get(path)
  return tuple(listed or ())


def candidates(path: str, kind: Any) -> tuple[Any, ...]:
  """Returns values for a field, most of them wrong."""
  if typing.get_origin(kind) is tuple:
    (element, _) = typing.get_args(kind)
    ones = [(v,) for v in _plain(path, element)]
    return (*ones, (), *_OTHERS)
  return (*_plain(path, kind), *_OTHERS)


def _plain(path: str, kind: Any) -> tuple[Any, ...]:
  if kind is bool:
    return (False, True)
  pool = {int: _INTS, float: _FLOATS, str: _STRINGS}[kind]
  return (*pool, *names(path))


def is_valid(path: str, kind: Any, value: Any) -> bool:
  """Says whether a field may have a value, as its rule has it."""
  if typing.get_origin(kind) is tuple:
    element = typing.get_args(kind)[0]
    return isinstance(value, tuple) and all(
      _is_valid(path, element, v) for v in value
    )
  return _is_valid(path, kind, value)


def _is_valid(path: str, kind: Any, value: Any) -> bool:
  if isinstance(value, bool):
    return kind is bool
  if not isinstance(value, (int, float) if kind is float else kind):
    return False
  if kind is float and value and not 1e-37 <= abs(value) <= 1e38:
    return False
  known = _CHOICES.get(path)
  return RULES[path].holds(value) and (not known or value in known)


def change(experiment: config.Experiment, path: str, value: Any) -> None:
  """Sets a field."""
  *sections, name = path.split('.')
  setattr(functools.reduce(getattr, sections, experiment), name, value)


def _small(path: str, kind: Any) -> st.SearchStrategy:
  """Draws a field's value that its rule allows, of no great size."""
  if typing.get_origin(kind) is tuple:
    element = typing.get_args(kind)[0]
    return st.lists(_small(path, element), max_size=2).map(tuple)
  if kind is bool:
    return st.booleans()
  values = names(path) or _SMALL.get(kind, ('',))
  return st.sampled_from([v for v in values if _is_valid(path, kind, v)])


@st.composite
def changes(draw: st.DrawFn) -> dict[str, Any]:
  """Draws changes of a tiny run: its combinations first, then some fields."""
  kinds = dict(fields())
  drawn = {'method': draw(_small('method', str))}
  tunes = list(RULES['model.tune'].choices)
  drawn['model.tune'] = draw(st.sampled_from(tunes))
  drawn['clients.partition'] = draw(_small('clients.partition', str))
  drawn['server.optimizer'] = draw(_small('server.optimizer', str))
  drawn['server.weighting'] = draw(_small('server.weighting', str))
  drawn['data.task'] = draw(st.sampled_from(['', '', 'next_token']))
  others = [path for path in kinds if path not in (*drawn, *_GIVEN)]
  for path in draw(st.lists(st.sampled_from(others), max_size=5, unique=True)):
    drawn[path] = draw(_small(path, kinds[path]))
  return drawn

"""Every field of an experiment: its name, type, default and docstring."""

from collections.abc import Iterator
import dataclasses
import inspect
import re
import typing
from typing import Any, NamedTuple

from fedjax_tune.config.experiment import Experiment


class Field(NamedTuple):
  """A field that holds a value.

  Attributes:
    path: Its dotted name, such as 'local.lr'.
    kind: Its type, as one writes it.
    default: Its value if nobody sets it.
    text: What its section's docstring says of it.
  """

  path: str
  kind: str
  default: object
  text: str


def fields(section: Any = Experiment, prefix: str = '') -> Iterator[Field]:
  """Yields the fields of a section and of the sections in it.

  Args:
    section: A dataclass, or an instance, whose values are then the defaults.
    prefix: What goes before each name.
  """
  instance = section() if isinstance(section, type) else section
  texts = _attributes(inspect.getdoc(type(instance)) or '')
  for name, kind in typing.get_type_hints(type(instance)).items():
    value = getattr(instance, name)
    if dataclasses.is_dataclass(value):
      yield from fields(value, f'{prefix}{name}.')
    else:
      text = texts.get(name, '')
      yield Field(prefix + name, _written(kind), value, text)


def _written(kind: Any) -> str:
  return str(kind) if typing.get_origin(kind) else kind.__name__


def _attributes(doc: str) -> dict[str, str]:
  r"""Reads the section `Attributes:` of a docstring.

  >>> _attributes('Some.\n\nAttributes:\n  lr: The\n    rate.\n  momentum: Of it.')
  {'lr': 'The rate.', 'momentum': 'Of it.'}
  """
  _, _, listed = doc.partition('Attributes:\n')
  found: dict[str, str] = {}
  name = ''
  for line in listed.splitlines():
    if begins := re.match(r'  (\w+): (.*)', line):
      name = begins[1]
      found[name] = begins[2]
    elif line.startswith('    ') and name:
      found[name] += f' {line.strip()}'
  return found

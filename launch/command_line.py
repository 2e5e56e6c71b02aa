"""Reads a command line flag by flag, and says what is wrong with each."""

from collections.abc import Collection, Iterator, Sequence
import dataclasses
import re
from typing import Any

from absl import flags
from ml_collections.config_flags import tuple_parser

from fedjax_tune.config import field_rules, fields, meanings

_PARSERS: dict[type, flags.ArgumentParser[Any]] = {
  int: flags.IntegerParser(),
  float: flags.FloatParser(),
  bool: flags.BooleanParser(),
  tuple: tuple_parser.TupleParser(),
  str: flags.ArgumentParser(),
}
# What absl's parsers want, whose own words are Python's.
_KINDS = {'int': 'a whole number', 'float': 'a number', 'bool': 'true or false'}
# Of absl itself, which reads them before all others.
_SPECIAL = ('flagfile', 'undefok')


@dataclasses.dataclass(frozen=True)
class Given:
  """A flag as somebody typed it.

  Attributes:
    name: Its name without dashes; '' for an argument that is no flag.
    text: Its value; None if none is given.
    words: The arguments that make it up.
  """

  name: str
  text: str | None
  words: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Sifted:
  """A command line, and what is wrong with it.

  Attributes:
    argv: The arguments that are right, the program's name first.
    problems: A line for each unknown flag or field, and for each value that a
      flag of the command cannot have.
    ill: For each field the texts that are no values of its type.
  """

  argv: list[str]
  problems: list[str]
  ill: dict[str, str]

  @property
  def clean(self) -> bool:
    """Whether nothing is wrong."""
    return not self.problems and not self.ill


def read(
  argv: Sequence[str], switches: Collection[str] = ()
) -> Iterator[Given]:
  """Yields what is on a command line.

  Args:
    argv: The program's name first.
    switches: Flags that take a value only as --NAME=VALUE.
  """
  rest = list(argv[1:])
  while rest:
    word = rest.pop(0)
    found = re.fullmatch(r'--?([A-Za-z][^=]*)(?:=(.*))?', word, re.DOTALL)
    if word == '--':
      yield Given('', None, (word, *rest))
      return
    if found is None:
      yield Given('', None, (word,))
      continue
    name, text = found[1], found[2]
    alone = name in switches or name.removeprefix('no') in switches
    if text is None and rest and not (alone or _is_flag(rest[0])):
      text = rest.pop(0)
      yield Given(name, text, (word, text))
    else:
      yield Given(name, text, (word,))


def _is_flag(word: str) -> bool:
  return re.match('--?[A-Za-z]', word) is not None


def sift(values: flags.FlagValues, argv: Sequence[str], config: str) -> Sifted:
  """Removes from a command line each argument that is wrong by itself.

  Args:
    values: The flags that are defined.
    argv: The program's name first.
    config: The flag whose fields are set by --config.FIELD=VALUE.
  """
  known = {field.path: field.default for field in fields.fields()}
  switches = {f'{config}.{p}' for p, x in known.items() if type(x) is bool}
  switches |= {name for name in values if values[name].boolean}
  left, problems, ill = list(argv[:1]), [], {}
  for given in read(argv, switches):
    problem, of_field = '', re.fullmatch(rf'(?:no)?{config}\.(.+)', given.name)
    if of_field is None:
      if given.name not in ('', config, *_SPECIAL):
        problem = _of_flag(values, given, switches, [*known])
    elif (path := of_field[1]) not in known:
      problem = (
        f'--{config}.{path} is not a field{meanings.like(path, [*known])}'
      )
    elif given.text is None and f'{config}.{path}' not in switches:
      problem = f'--{given.name} must have a value.'
    elif given.text is not None and not _parses(
      _PARSERS[type(known[path])], given.text
    ):
      ill[path] = given.text
      continue
    if problem:
      problems.append(problem)
    else:
      left += given.words
  return Sifted(left, problems, ill)


def _of_flag(
  values: flags.FlagValues,
  given: Given,
  switches: Collection[str],
  known: Sequence[str],
) -> str:
  """Says what is wrong with a flag that sets no field, if anything is."""
  name = given.name
  if name not in values and name.removeprefix('no') not in switches:
    if near := meanings.nearest(name, [*values]):
      return f'--{name} is not a flag{meanings.hint(f"--{near}")}'
    # A sweep's --set, or the fields of other commands.
    prefix = '--set=' if 'set' in values else '--config.'
    meant = meanings.near(name, known) if 'config' in values else []
    hint = meanings.hint(*(f'{prefix}{path}' for path in meant)) or '.'
    return f'--{name} is not a flag{hint}'
  if name not in values:
    return ''
  if given.text is None and name not in switches:
    return f'--{name} must have a value.'
  try:
    if given.text is not None:
      values[name].parser.parse(given.text)
  except (ValueError, TypeError) as error:
    return f'--{name}={given.text} {_rule(values[name].parser, error)}'
  return ''


def _rule(parser: flags.ArgumentParser[Any], error: Exception) -> str:
  """Says which rule a value breaks, if its parser refuses it."""
  if isinstance(parser, flags.EnumParser):
    return field_rules.one_of(*parser.enum_values).text('') + '.'
  bounds = f'{error}'.partition(' is not ')[2]
  kind = parser.flag_type()
  return f'must be {bounds or _KINDS.get(kind, kind)}.'


def _parses(parser: flags.ArgumentParser[Any], text: str) -> bool:
  """Whether a text is a value of the parser's type."""
  try:
    parser.parse(text)
  except (ValueError, TypeError):
    return False
  return True


def only_with(what: str, *holders: flags.FlagHolder[Any]) -> None:
  """Refuses flags that would do nothing.

  Args:
    what: The flag that they need, which is not given.
    *holders: The flags.

  Raises:
    ValueError: One of the flags is given.
  """
  for holder in holders:
    if holder.present:
      raise ValueError(f'--{holder.name} goes with {what}.')

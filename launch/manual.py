"""What `--help` and `--print_config` show: every field, every method."""

from collections.abc import Iterator, Mapping
import dataclasses
import inspect
import textwrap

from fedjax_tune import config
from fedjax_tune.config import field_rules, fields, meanings
from fedjax_tune.config.field_rules import RULES
from fedjax_tune.methods import METHODS
from fedjax_tune.methods.facts import Method

_WIDTH = 80


def options(flag: str = 'config') -> str:
  """Describes every field, with its type and default, and every method.

  Args:
    flag: The flag that sets a field, as --flag.FIELD=VALUE.
  """
  lines = [
    f'  --{flag}: The experiment file, FILE.py; FILE.py:TEXT hands it a text.',
    '  --help=WORD: Show the fields and methods that have WORD in their name.',
    '  --[no]print_config: Show every field of the experiment, and end.',
    '  --[no]traceback: Show with an error where in the code it arose.',
    '  --[no]version: Show the version, and end.',
    '',
    f'Fields, set by --{flag}.FIELD=VALUE. After = stands the default, which an',
    'experiment file may change; --print_config shows the values of one.',
  ]
  return '\n'.join([*lines, *_fields(''), *_methods('', flag)])


def about(word: str, flag: str = 'config') -> str:
  """Describes the fields and methods that have a word in their name.

  Args:
    word: What to look for.
    flag: The flag that sets a field.

  Raises:
    ValueError: There are none.
  """
  lines = [*_fields(word.lower()), *_methods(word.lower(), flag)]
  if not lines:
    known = [field.path for field in fields.fields()]
    raise ValueError(
      f'--help={word} must be in the name of a field or a method'
      f'{meanings.like(word, known)}'
    )
  return '\n'.join(lines).strip()


def _fields(word: str) -> Iterator[str]:
  section = ''
  for field in fields.fields():
    if word not in field.path:
      continue
    within = field.path.rpartition('.')[0]
    if within != section:
      section = within
      yield from ('', f'[{section}] {_about(section)}')
    yield from _field(field)


def _methods(word: str, flag: str) -> Iterator[str]:
  found = {name: m for name, m in METHODS.items() if word in name}
  if found:
    yield from ('', f'Methods, for --{flag}.method=NAME:', '')
  for name, method in found.items():
    yield from _wrapped(f'  {name}', _method(method))


def written(experiment: config.Experiment, usual: Mapping[str, object]) -> str:
  """Lists the values of all fields, one line each.

  A line that ends with a comment has a value that is not the default.

  Args:
    experiment: What to list.
    usual: Defaults that depend on data set and model (`training/defaults.py`).
  """
  default = {field.path: field.default for field in fields.fields()}
  default.update(usual)
  lines = []
  for field in fields.fields(experiment):
    line = f'{field.path}={field.default!r}'
    if field.default != default[field.path]:
      line += f'  # not {default[field.path]!r}'
    lines.append(line)
  return '\n'.join(lines)


def _about(section: str) -> str:
  """Returns the first line of a section's docstring."""
  kinds = {
    f.name: f.default_factory for f in dataclasses.fields(config.Experiment)
  }
  return (inspect.getdoc(kinds[section]) or '').partition('\n')[0]


def _field(field: fields.Field) -> Iterator[str]:
  yield from _wrapped(
    f'  {field.path}={field.default!r}',
    f'({_kind(field)}) {field.text}',
  )


def _kind(field: fields.Field) -> str:
  """Returns the type, or the values if they are few and not in the text."""
  rule = RULES[field.path]
  untold = [name for name in rule.choices if repr(name) not in field.text]
  if untold and rule is not field_rules.REGISTERED:
    return f'{field.kind}, of {", ".join(map(repr, rule.choices))}'
  return field.kind


def _method(method: Method) -> str:
  """Says what a method is, and where it comes from."""
  first = (inspect.getdoc(method.build) or '').partition('\n\n')[0]
  text = first.removeprefix('Builds ').replace('\n', ' ')
  return f'{text} [{method.source}]' if method.source else text


def _wrapped(head: str, text: str) -> list[str]:
  return [
    head,
    *textwrap.wrap(
      text, _WIDTH, initial_indent=' ' * 6, subsequent_indent=' ' * 6
    ),
  ]

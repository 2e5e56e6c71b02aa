"""How the user starts a command, for messages that name one."""

import os
import pathlib
import re

# What was typed before a command's name; a command's own processes inherit it.
_TYPED = 'FEDJAX_TUNE_COMMAND'


def remember(program: str) -> None:
  """Remembers what the user typed before the name of a command.

  Args:
    program: For example 'fedjax-tune'.
  """
  os.environ[_TYPED] = program


def start_of(name: str) -> str:
  """Returns how to start a command, in the way the user started this one.

  If none was started, as in a notebook, this is the way of this repository, or
  of the installed package.
  """
  if program := os.environ.get(_TYPED):
    return f'{program} {name}'
  here = pathlib.Path(__file__).parents[1]
  checkout = (here / 'launch').is_dir()
  return f'python -m launch.{name}' if checkout else f'fedjax-tune {name}'


def as_typed(text: str) -> str:
  """Rewrites the commands in a text in the way the user started this one.

  >>> as_typed('`python -m launch.train`, as launch.prepare does')
  '`python -m launch.train`, as launch.prepare does'
  """
  if _TYPED not in os.environ:
    return text
  named = r'(?:python -m )?\blaunch\.(?!py\b)([a-z]\w*)'
  return re.sub(named, lambda found: start_of(found[1]), text)

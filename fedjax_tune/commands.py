"""How the user starts a command, for messages that name one."""

import os
import pathlib
import re

# What was typed before a command's name; a command's own processes inherit it.
_TYPED = 'FEDJAX_TUNE_COMMAND'


def remember(program: str) -> None:
  """Notes what the user has typed before the name of a command.

  Args:
    program: Such as 'fedjax-tune'.
  """
  os.environ[_TYPED] = program


def start_of(name: str) -> str:
  """Returns how to start a command, as the user has started this one.

  Where none was started, as in a notebook: that of this repository, or of the
  installed package.
  """
  if program := os.environ.get(_TYPED):
    return f'{program} {name}'
  here = pathlib.Path(__file__).parents[1]
  checkout = (here / 'launch').is_dir()
  return f'python -m launch.{name}' if checkout else f'fedjax-tune {name}'


def as_typed(text: str) -> str:
  """Writes the commands in a text as the user has started this one.

  >>> as_typed('`python -m launch.train`, as launch.prepare does')
  '`python -m launch.train`, as launch.prepare does'
  """
  if _TYPED not in os.environ:
    return text
  named = r'(?:python -m )?\blaunch\.(?!py\b)([a-z]\w*)'
  return re.sub(named, lambda found: start_of(found[1]), text)

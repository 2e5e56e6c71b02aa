"""All commands under one name: `fedjax-tune COMMAND`, or `python -m launch COMMAND`.

`fedjax-tune train ...` is `python -m launch.train ...`, and so on: an installed
package has no folder `launch` to start commands from.
"""

import os
import runpy
import signal
import sys

import fedjax_tune
from fedjax_tune import commands
from fedjax_tune.config import meanings

from . import end_at_once

COMMANDS = {
  'prepare': 'fetch a data set or weights, which no other command does',
  'inspect': 'tell what an experiment costs, before anything runs',
  'train': 'run one experiment',
  'sweep': 'run one with several methods and seeds, and compare them',
  'deploy': 'cut a subnetwork out of a finished run, or compare many',
  'export': 'write what a run learned for transformers, peft or this package',
  'bench': 'measure the engine on a workload',
}


def main() -> None:
  """Runs the command named first, with the arguments after it."""
  program, name = _program(), sys.argv[1] if len(sys.argv) > 1 else '--help'
  if name in ('--help', '-h', '-help'):
    sys.stdout.write(_usage(program))
    return
  if name == '--version':
    sys.stdout.write(f'fedjax-tune {fedjax_tune.__version__}\n')
    return
  if name not in COMMANDS:
    near = meanings.nearest(name, COMMANDS)
    hint = meanings.hint(near and repr(near)) or '.'
    listed = ', '.join(COMMANDS)
    sys.stderr.write(f'error: command {name!r} must be one of {listed}{hint}\n')
    sys.exit(2)
  commands.remember(program)
  # As `python -m` has it: a user's own modules are found where he is.
  if (here := os.getcwd()) not in sys.path:
    sys.path.insert(0, here)
  if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, end_at_once)
  del sys.argv[1]
  runpy.run_module(f'{__package__}.{name}', run_name='__main__', alter_sys=True)


def _program() -> str:
  """Returns what was typed before the name of a command."""
  module = os.path.basename(sys.argv[0]) == '__main__.py'
  return f'python -m {__package__}' if module else 'fedjax-tune'


def _usage(program: str) -> str:
  lines = [f'  {name:<8} {does}' for name, does in COMMANDS.items()]
  return (
    f'{program} COMMAND --FLAG=VALUE ...\n\n'
    + '\n'.join(lines)
    + f'\n\n`{program} COMMAND --help` shows the flags of one.\n'
  )


if __name__ == '__main__':
  main()

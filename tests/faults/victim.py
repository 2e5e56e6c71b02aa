"""Trains tiny runs, one after another, until somebody kills it.

python victim.py FOLDER CASE OPTIMIZER... trains CASE with each server
optimizer in FOLDER/OPTIMIZER, and goes on where an earlier process was killed.
'fedavg-2' is fedavg again, of another seed.
"""

import pathlib
import sys
import time

import conftest
import lab

from fedjax_tune.training import loop


def _slowly(self, *args):
  # Rounds of tiny models are too short to be hit.
  time.sleep(0.02)
  return _CHARGE(self, *args)


_CHARGE = loop.Run.charge


def main() -> None:
  """Trains what the command line names."""
  assert conftest  # Its settings are those of the tests.
  folder, case, *optimizers = sys.argv[1:]
  lab.cache_programs(pathlib.Path(folder).parent / 'programs')
  for name in optimizers:
    optimizer, _, seed = name.partition('-')
    lr = 1.0 if optimizer == 'fedavg' else 0.1
    server = {'optimizer': optimizer, 'lr': lr}
    e = lab.experiment(case, server=server, seed=int(seed or 1))
    patch = lab.patched(loop.Run, 'charge', _slowly)
    lab.go(pathlib.Path(folder) / name, e, resume=True, patch=patch)


if __name__ == '__main__':
  main()

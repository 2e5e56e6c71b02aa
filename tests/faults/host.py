"""One host of tiny runs, on the CPU.

python host.py FOLDER PORT COUNT INDEX CASE... trains each CASE in
FOLDER/CASE: the name of a method, 'alone' (a client a round), 'asked' (a signal
comes to the last host, and the run goes on afterwards) or 'killed' (likewise,
but it ends the last host, so that '--resume' is for other processes).
"""

import os
import pathlib
import signal
import sys

import conftest
import jax
import lab
import numpy as np
import pytest

import fedjax_tune as ft
from fedjax_tune import endings
from fedjax_tune.engine import hosts
from fedjax_tune.report import partition_plot, plots
from fedjax_tune.training import loop

_SIDE, _ROUNDS = 16, 3


def _experiment(case: str):
  methods = {'alone': 'fedra', 'asked': 'scaffold', 'killed': 'scaffold'}
  e = ft.Experiment(rounds=_ROUNDS, eval_every=2, checkpoint_every=1)
  e.method = methods.get(case, case)
  e.model.weights, e.data.image_size = 'random:vit_test', _SIDE
  e.clients.partition, e.clients.count = 'iid', 5
  e.clients.cohort, e.clients.cohort_size = 'uniform', 3
  e.clients.budgets, e.clients.min_examples = (4, 2, 2, 3, 4), 1
  if e.method == 'scaffold':
    e.clients.budgets, e.local.momentum = (), 0.0
  if case == 'alone':
    e.clients.cohort_size = 1
  e.lora.rank, e.local.batch_size, e.local.steps = 2, 4, 2
  e.engine.compilation_cache, e.engine.devices = False, 1
  return e


def _data():
  def images(count, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=count)
    shown = rng.integers(0, 100, (count, _SIDE, _SIDE, 3))
    return (shown + 60 * labels[:, None, None, None]).astype(np.uint8), labels

  return ft.from_arrays(*images(60, 0), *images(31, 1))


def train(folder, case, resume=False):
  """Trains a case; on the last host something happens in its second round."""
  number = {'asked': signal.SIGTERM, 'killed': signal.SIGKILL}.get(case)
  charge = loop.Run.charge

  def count(self, meter, members):
    if number and meter['flops'] and hosts.index() == hosts.count() - 1:
      os.kill(os.getpid(), number)
    return charge(self, meter, members)

  with pytest.MonkeyPatch.context() as patch:
    # A second each, and tested elsewhere.
    patch.setattr(plots, 'plot_run', lambda *_: None)
    patch.setattr(partition_plot, 'plot_partition', lambda *_: None)
    if not resume:
      patch.setattr(loop.Run, 'charge', count)
    # Where it goes on it has its programs.
    patch.setattr(loop, 'Run', lab.shared_run)
    workdir, e = str(folder / case), _experiment(case)
    return ft.train(e, workdir, data=_data(), resume=resume)


def main() -> None:
  """Trains what the command line names."""
  assert conftest  # Its settings are those of the tests.
  folder, port, number, index, *cases = sys.argv[1:]
  if int(number) > 1:
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    jax.distributed.initialize(f'localhost:{port}', int(number), int(index))
  # Each has a folder, of which that of the first alone is ever made.
  own = pathlib.Path(folder) / ('runs' if index == '0' else 'none')
  resume = '--resume' in cases
  for case in cases:
    if case.startswith('--'):
      continue
    try:
      train(own, case, resume)
    except endings.Interrupted as error:
      print(error, flush=True)  # noqa: T201
      if case == 'killed':
        os._exit(4)  # As `launch.start` does.
      train(own, case, True)
  print(f'host {index} is done')  # noqa: T201


if __name__ == '__main__':
  main()

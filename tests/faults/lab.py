"""Whole runs of tiny stacks: `training.train` on data in memory.

A run's programs are compiled once a process; what starts from disk, what is
written and what is compared is that of any run.
"""

from collections.abc import Callable, Iterator
import contextlib
import copy
import dataclasses
import functools
import io
import json
import pathlib
from typing import Any

import jax
import numpy as np
import pytest
from rich import console as rich_console
import tiny

from fedjax_tune import config
from fedjax_tune.data import corpus, partition
from fedjax_tune.report import partition_plot, plots, writer
from fedjax_tune.training import build, checkpoint, loop

ROUNDS = 6


def experiment(case: str = 'all_small', **changes: Any) -> config.Experiment:
  """Returns a tiny experiment of some rounds, a checkpoint every second."""
  options = {'rounds': ROUNDS, 'checkpoint_every': 2, 'eval_every': 2}
  return tiny.experiment(case, **(options | changes))


def data(num: int = 48) -> corpus.Corpus:
  """Returns examples; the first ones are those of a smaller number."""
  return tiny.examples(num, tiny.STACK_SIZE, seed=7)


def setup(
  e: config.Experiment, examples: corpus.Corpus, weights: str = 'a stack'
) -> build.Setup:
  """Returns what `build.build` would return, of a stack.

  Args:
    e: The experiment.
    examples: The training data.
    weights: Stands for the hash of the pretrained weights.
  """
  run = tiny.run(e, data=examples)
  owned = partition.Partition(run.planner.indices, run.planner.domains)
  return build.Setup(
    experiment=e,
    algorithm=run.algorithm,
    train=examples,
    test=tiny.examples(31, tiny.STACK_SIZE, seed=8),
    partition=owned,
    budgets=tuple(map(int, e.clients.budgets)),
    sizes={'layer': tiny.DEPTH},
    devices=(),
    find=None,
    fits=(),
    planner=run.planner,
    tokenizers={},
    readers={},
    weights=weights,
    notes=(),
  )


_compiled: dict[str, Any] = {}


def shared_run(made: build.Setup) -> loop.Run:
  """Returns a run that shares the programs of others."""
  e = dataclasses.asdict(made.experiment)
  # What no program depends on.
  for name in ('rounds', 'seed', 'patience', 'keep_best'):
    del e[name]
  del e['local']['lr']
  read = jax.tree.map(lambda x: f'{x.shape[1:]} {x.dtype}', made.train.inputs)
  key = json.dumps([e, read])
  if key not in _compiled:
    _compiled[key] = _RUN(made)
  run = copy.copy(_compiled[key])
  run.setup = made
  return run


_RUN = loop.Run


def go(
  workdir: pathlib.Path | str,
  e: config.Experiment | None = None,
  *,
  examples: corpus.Corpus | None = None,
  weights: str = 'a stack',
  patch: contextlib.AbstractContextManager[Any] | None = None,
  **options: Any,
) -> str:
  """Trains, and returns what was shown.

  Args:
    workdir: Of the run.
    e: The experiment; that of `experiment()` by default.
    examples: The training data.
    weights: Stands for the hash of the pretrained weights.
    patch: Is entered for the run.
    **options: Of `training.train`.
  """
  shown = io.StringIO()
  made = functools.partial(setup, examples=examples or data(), weights=weights)
  with pytest.MonkeyPatch.context() as monkey, patch or _NOTHING:
    monkey.setattr(build, 'build', lambda e, **_: made(e))
    monkey.setattr(loop, 'Run', shared_run)
    # A second each, and tested elsewhere.
    for place, name in (
      (plots, 'plot_run'),
      (partition_plot, 'plot_partition'),
    ):
      monkey.setattr(place, name, lambda *_: None)
    loop.train(
      e or experiment(),
      str(workdir),
      console=rich_console.Console(file=shown, width=1000),
      **options,
    )
  return shown.getvalue()


_NOTHING = contextlib.nullcontext()


# The type, shape and bytes of each leaf.
State = dict[str, tuple[str, tuple[int, ...], bytes]]


def result(workdir: pathlib.Path) -> tuple[State, list[dict[str, Any]]]:
  """Returns the last state, and the rows without clock times."""
  kept = checkpoint.find(workdir).newest
  assert kept is not None
  rows = [
    {k: v for k, v in row.items() if not k.startswith('time/')}
    for row in writer.read_metrics(workdir)
  ]
  state = {
    name: (str(leaf.dtype), leaf.shape, leaf.tobytes())
    for name, leaf in kept.leaves.items()
  }
  return state, rows


def cache_programs(folder: pathlib.Path) -> None:
  """Keeps compiled programs for other processes."""
  jax.config.update('jax_compilation_cache_dir', str(folder))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)


def flipped(examples: corpus.Corpus) -> corpus.Corpus:
  """Returns the examples with other labels."""
  labels = np.flip(examples.labels).copy()
  return dataclasses.replace(examples, labels=labels)


class Stopped(BaseException):
  """Ends a run as the end of its process would."""


def during(rnd: int, act: Callable[[], None]) -> Any:
  """Returns a patch that calls `act` in the middle of a round."""
  charge, calls = loop.Run.charge, []

  def counting(self, meter, members):
    calls.append(members)
    if len(calls) == rnd + 1:
      act()
    return charge(self, meter, members)

  return patched(loop.Run, 'charge', counting)


def stopped_in(rnd: int) -> Any:
  """Returns a patch that ends a run in the middle of a round of it."""

  def stop():
    raise Stopped

  return during(rnd, stop)


@contextlib.contextmanager
def patched(owner: Any, name: str, new: Any) -> Iterator[None]:
  """Replaces an attribute."""
  with pytest.MonkeyPatch.context() as monkey:
    monkey.setattr(owner, name, new)
    yield

"""CONTRIBUTING.md, followed to the letter, makes a method that works."""

import pathlib
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from fedjax_tune.methods import METHODS
from fedjax_tune.methods.facts import Method

_ROOT = pathlib.Path(__file__).parents[1]
_PAGE = (_ROOT / 'CONTRIBUTING.md').read_text()
_FILE, _ENTRY = re.findall('```python\n(.*?)```', _PAGE, re.DOTALL)
# In the first of its rounds nobody holds the first two blocks.
_BUDGETS, _SEED = (2, 1, 2, 1), 3


@pytest.fixture
def run(monkeypatch):
  """A run of the page's method, in which a client takes one step of SGD."""
  module = types.ModuleType('windows')
  exec(_FILE, vars(module))
  for name, method in eval(
    f'{{{_ENTRY}}}', {'Method': Method, 'windows': module}
  ).items():
    monkeypatch.setitem(METHODS, name, method)
  sgd = {'steps': 1, 'momentum': 0.0, 'weight_decay': 0.0, 'clip_norm': 0.0}
  e = tiny.experiment(
    'windows',
    seed=_SEED,
    clients={'budgets': _BUDGETS},
    local=sgd,
    lora={'dropout': 0.0},
  )
  return tiny.run(e)


def test_windows_are_consecutive_and_uniform(run):
  rounds = 600
  rows = [run.algorithm.rule.draw(rnd, range(4)) for rnd in range(rounds)]
  for client, budget in enumerate(_BUDGETS):
    held = np.array([row[client]['layer'] for row in rows])
    assert held.shape == (rounds, budget)
    np.testing.assert_array_equal(np.diff(held), 1)
    starts = tiny.DEPTH - budget + 1
    counts = np.bincount(held[:, 0], minlength=starts)
    # Of each start; five standard deviations.
    spread = np.sqrt(rounds * (starts - 1)) / starts
    assert len(counts) == starts
    assert np.abs(counts - rounds / starts).max() < 5 * spread


def _gradient(run, theta, held, batch):
  """Returns that of a client's loss, for the blocks that it holds."""
  context = tiny.context(run.algorithm, 0)._replace(held=held)

  def loss(local):
    model = run.foundation.assemble(run.foundation.base, local, held)
    key = jax.random.key(0)
    return run.algorithm.client.loss(model, batch, context, key)[0]

  local = jax.tree.map(
    lambda x, at: jnp.asarray(x[at]), theta, tiny.held(theta, run.axes, held)
  )
  return jax.device_get(jax.grad(loss)(local))


def test_two_rounds_are_means_over_those_who_held_a_block(run):
  theta = jax.tree.map(np.array, run.theta)
  lr, nobodys = run.experiment.local.lr, 0
  for rnd in range(2):
    total = jax.tree.map(np.zeros_like, theta)
    holders = jax.tree.map(np.zeros_like, theta)
    for work in run.planner.plan(rnd).works:
      for i in np.flatnonzero(work.slab.weight):
        held = jax.tree.map(lambda x, i=i: x[i], work.slab.held)
        batch = jax.tree.map(lambda x, i=i: x[i, 0], work.own.batches)
        gradient = _gradient(run, theta, held, batch)
        for at, g, num, den in zip(
          jax.tree.leaves(
            tiny.held(theta, run.axes, held),
            is_leaf=lambda x: isinstance(x, tuple),
          ),
          *map(jax.tree.leaves, (gradient, total, holders)),
          strict=True,
        ):
          num[at] -= lr * g
          den[at] += 1
    nobodys += sum(np.sum(den == 0) for den in jax.tree.leaves(holders))
    theta = jax.tree.map(
      lambda x, num, den: x + num / np.maximum(den, 1), theta, total, holders
    )
  tiny.assert_close(run.rounds(2).theta, theta, rtol=1e-4, atol=1e-6)
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), theta, run.theta)
  assert min(jax.tree.leaves(moved)) > 1e-4
  assert nobodys


def test_the_file_is_in_our_style():
  for command in (['check'], ['format', '--diff']):
    subprocess.run(
      [sys.executable, '-m', 'ruff', *command, '--stdin-filename=windows.py'],
      input=_FILE,
      text=True,
      check=True,
      cwd=_ROOT,
    )


def test_the_row_is_one_of_the_readme():
  (row,) = re.findall('```md\n(.*)\n```', _PAGE)
  assert re.fullmatch(r'\| `windows` \| [^|]+ \| [^|]+ \|', row)


def test_what_the_page_names_is_there():
  paths = set(re.findall(r'`((?:fedjax_tune|tests)/[\w/]+\.py)`', _PAGE))
  there = {path for path in paths if (_ROOT / path).exists()}
  assert paths - there == {'fedjax_tune/methods/depth/windows.py'}
  for name, path in (
    ('_BUDGETS', 'fedjax_tune/config/unread.py'),
    ('_OTHERS', 'tests/fedavg_test.py'),
  ):
    assert f'`{name}`' in _PAGE
    assert f'\n{name} = ' in (_ROOT / path).read_text()

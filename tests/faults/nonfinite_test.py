"""Whole runs in which numbers are not numbers."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import lab
import numpy as np
import pytest

from fedjax_tune import endings
from fedjax_tune.engine import round as round_lib
from fedjax_tune.report import writer

# Of client 2, one of four.
_HIS = slice(24, 36)


def _experiment(case='all_small', **changes):
  # Apart from the runs of other tests, whose programs read bytes.
  return lab.experiment(case, **({'eval_every': 3, 'rounds': 4} | changes))


def _data():
  found = lab.data()
  return dataclasses.replace(found, inputs=np.asarray(found.inputs, np.float32))


def _broken(examples, at):
  inputs = examples.inputs.copy()
  inputs[at] = np.nan
  return dataclasses.replace(examples, inputs=inputs)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('nonfinite')


@pytest.fixture(scope='module')
def whole(folder):
  """The run without a fault."""
  lab.go(folder / 'whole', _experiment(), examples=_data())
  return lab.result(folder / 'whole')


def test_a_broken_client_is_named_and_the_others_learn(folder, whole):
  workdir = folder / 'client'
  shown = lab.go(workdir, _experiment(), examples=_broken(_data(), _HIS))
  assert shown.count('rejected client 2 ') == 4
  rows = writer.read_metrics(workdir)
  for row, sound in zip(rows, whole[1], strict=True):
    assert row['train/rejected_clients'] == [2]
    assert (row['train/clients'], row['train/rejected']) == (3, 1)
    assert 0 < row['train/loss'] < 10
    # All held the same two layers.
    assert row['coverage/layers'] == [3, 3, 0, 0]
    assert sound['train/rejected_clients'] == []
    assert sound['coverage/layers'] == [4, 4, 0, 0]
  assert rows[-1]['eval/accuracy'] > 0
  summary = json.loads((workdir / 'summary.json').read_text())
  assert (summary['rejected'], summary['rejected_clients']) == (4, [2])


@pytest.mark.parametrize('fault', ['data', 'rate'])
def test_a_run_of_broken_clients_ends(folder, whole, fault):
  del whole
  workdir = folder / f'clients_{fault}'
  examples, e = _data(), _experiment()
  if fault == 'data':
    examples = _broken(examples, slice(None))
  else:
    e.local.lr = 1e30
  message = r'^round 1: no client sent finite numbers, of clients 0, 1, 2, 3\.'
  with pytest.raises(endings.Diverged, match=message):
    lab.go(workdir, e, examples=examples)
  (row,) = writer.read_metrics(workdir)
  assert row['train/loss'] is row['train/accuracy'] is None
  assert row['train/rejected_clients'] == [0, 1, 2, 3]
  assert row['coverage/layers'] == [0] * 4
  assert not (workdir / 'summary.json').exists()
  assert not list((workdir / 'checkpoints').glob('[0-9]*'))


def _spoilt(rnd, part, honest):
  """Returns a patch that makes a part of the server's state infinite."""
  run = round_lib.Engine.round

  def spoil(self, state, plan, *args):
    state, sums = run(self, state, plan, *args)
    if plan.rnd == rnd:
      bad = jax.tree.map(lambda x: x + jnp.inf, getattr(state, part))
      state = state._replace(**{part: bad})
      sums = sums | {'finite': np.bool_(not honest)}
    return state, sums

  return lab.patched(round_lib.Engine, 'round', spoil)


@pytest.mark.parametrize(
  ('honest', 'message'),
  [
    (True, r'^round 3: theta\.blocks\.lora_a and \d+ more of the server must'),
    # What is not seen in the state shows in what comes out.
    (False, r"^round 3: evaluation 'full': the outputs of 31 of 31 test"),
  ],
)
def test_a_server_that_is_not_finite_ends_the_run(
  folder, whole, honest, message
):
  workdir = folder / f'server_{honest}'
  with pytest.raises(endings.Diverged, match=message):
    lab.go(
      workdir,
      _experiment(),
      examples=_data(),
      patch=_spoilt(2, 'theta', honest),
    )
  assert [row['round'] for row in writer.read_metrics(workdir)] == [0, 1]
  assert not (workdir / 'summary.json').exists()
  # What was good is there, and the run goes on from it.
  lab.go(workdir, _experiment(), examples=_data(), resume=True)
  assert lab.result(workdir) == whole


def test_a_checkpoint_that_is_not_finite_is_not_resumed(folder, whole):
  del whole
  workdir, e = folder / 'old', _experiment()
  # As runs left them that looked for nothing: it is saved after the second round.
  with pytest.raises(endings.Diverged, match=r'^round 3: theta'):
    lab.go(workdir, e, examples=_data(), patch=_spoilt(1, 'theta', False))
  with pytest.raises(endings.Diverged, match=r'^after 2 rounds: theta\.'):
    lab.go(workdir, e, examples=_data(), resume=True)

"""The benchmark: its workloads, and what it says about its peers."""

import os
import subprocess
import sys

import numpy as np
import pytest

from fedjax_tune.training import build
from launch import (
  drawn_data,
  fixed_engine,
  fixed_workload,
  peer_report,
  peer_runs,
  rounds,
  workloads,
)
from launch.peers import harness, plain_jax, torch_loop, torch_model

# ml_collections loads the file in a way that Python will drop.
pytestmark = pytest.mark.filterwarnings('ignore:the load_module')

_TINY = fixed_workload.WORKLOADS['tiny']


@pytest.fixture(scope='module', name='init')
def _init():
  return torch_model.tensors(torch_model.build(_TINY))


@pytest.fixture(scope='module', name='ours')
def _ours(init):
  side = fixed_engine.prepare(_TINY, init)
  timing = rounds.time_rounds({'own': side}, 2)['own']
  return rounds.describe(side, timing)


@pytest.mark.parametrize('peer', [plain_jax, torch_loop])
def test_peers_learn_what_the_engine_learns(peer, init, ours):
  options = harness.Options(_TINY, init, 2, autocast=False)
  _, losses = harness.time_rounds(options, peer.start(options))
  assert losses[0] != losses[1]
  assert not peer_report.disagreement(losses, ours['losses'])
  np.testing.assert_allclose(losses, ours['losses'], atol=1e-5)


def test_a_line_counts(init, ours):
  trained = [x for n, x in init.items() if 'lora_' in n or 'modules_to' in n]
  assert ours['uplink_bytes'] == sum(4 * x.size for x in trained)
  assert ours['compiles'] == 1
  assert len(ours['round_s']) == len(ours['plan_s']) == 2
  assert ours['first_round_s'] == ours['round_s'][0]


def test_weights_that_lack_a_tensor_are_refused(init):
  part = {n: x for n, x in init.items() if 'lora_A' not in n}
  with pytest.raises(KeyError, match='lora_A'):
    fixed_engine.prepare(_TINY, part)


# -- workloads that are experiments


def _setup(work, experiment):
  return build.build(experiment, data=work.data, parts=work.parts)


def test_unequal_clients_are_of_three_classes():
  work = workloads.unequal('random:vit_test', 4, 'tiny')
  own, full = (_setup(work, e) for e in work.sides.values())
  held = lambda setup: {
    (m.sig['layer'], m.sig['ffn'], m.sig['rank'])
    for m in setup.planner.rounds[0]
  }
  assert held(own) == {(4, 32, 8), (2, 16, 4), (1, 8, 2)}
  assert held(full) == {(4, 32, 8)}
  batches = own.planner.plan(0).works[0].own.batches
  assert batches.inputs.shape[1:] == (5, 2, 32, 32, 3)
  assert batches.inputs.dtype == np.float32


def test_texts_are_as_long_as_their_site_has_them():
  work = workloads.texts('random:text_test', 64, (8, 16, 32))
  own, whole = (_setup(work, e) for e in work.sides.values())
  assert {m.sig.length for m in whole.planner.rounds[0]} == {32}
  assert {m.sig.length for m in own.planner.rounds[0]} <= {8, 16, 32}
  # In full a fourth of the clients fills a third of 256 tokens.
  lengths = drawn_data.reviews(8, 64, 256, 64).lengths
  assert lengths is not None
  longest = lengths.reshape(8, -1).max(axis=1)
  assert longest[[3, 7]].max() <= 78
  assert longest[[0, 1, 2, 4, 5, 6]].min() == 256


def test_next_tokens_are_those_that_follow():
  work = workloads.language('random:llama_test', 64)
  side = rounds.prepare(work.experiment, work.data, work.parts)
  timing = rounds.time_rounds({'own': side}, 2)['own']
  # Of 64 tokens none is likelier at the start.
  assert timing.losses[0] == pytest.approx(np.log(64), abs=0.1)
  assert timing.losses[1] < timing.losses[0]
  batches = side.plan(0).works[0].own.batches
  assert batches.label.shape == (4, 2, 4, 32)
  ids = np.asarray(batches.inputs.ids)
  np.testing.assert_array_equal(batches.label[..., :-1], ids[..., 1:])
  assert timing.steps == 8


def test_pictures_and_the_quickstart_are_experiments_that_are_valid():
  work = workloads.pictures('random:vit_test', 16)
  assert len(_setup(work, work.experiment).planner.rounds[0]) == 8
  quick = workloads.WORKLOADS['Q']()
  assert (quick.experiment.method, quick.data) == ('fedra', None)


def test_data_that_are_missing_are_told_with_their_command(
  monkeypatch, tmp_path
):
  monkeypatch.setenv('FEDJAX_TUNE_DATA', str(tmp_path))
  quick = workloads.WORKLOADS['Q']()
  want = 'launch.prepare .*--weights=dinov2_vits14'
  with pytest.raises(FileNotFoundError, match=want):
    rounds.prepare(quick.experiment, quick.data, quick.parts)


def test_comparisons_are_by_flops_and_by_speed():
  side = lambda flops: rounds.Side(None, None, 0.1, 0.0, 0, flops)  # pyright: ignore[reportArgumentType]
  sides = {'own': side(25.0), 'other': side(100.0)}
  timings = {
    'own': rounds.Timing([9.0, 2.0], [], [], 10),
    'other': rounds.Timing([9.0, 4.0], [], [], 10),
  }
  found = workloads._compare_flops(sides, timings)
  assert found['flop_ideal_s'] == 1.0
  assert found['seconds_of_flop_ideal'] == 2.0
  assert workloads._compare_speed(sides, timings)['speed_of_padded'] == 2.0


# -- the report


def _line(speed, losses, **more):
  line = {'client_steps_per_s': speed, 'losses': losses, 'peak_rss_mib': 700.4}
  return line | more


_RUNS = {
  peer_report.OURS: [
    _line(6.0, [2.3532, 2.2725], jax='0.10.2'),
    _line(8.0, [2.3532, 2.2725]),
  ],
  'agrees': [
    _line(3.0, [2.3533, 2.2724], versions={'torch': '2.13.0'}),
    _line(4.0, [2.3533, 2.2724]),
  ],
  'differs': [_line(9.0, [2.3532, 2.2745])] * 2,
  'once': [_line(9.0, [2.3532, 2.2725]), _line(9.0, [2.3532, 2.4])],
  'diverges': [_line(9.0, [2.3532, float('nan')])],
  'short': [_line(9.0, [2.3532])],
  'breaks': [{'error': 'No module'}, _line(9.0, [2.3532, 2.2725])],
}


def test_a_speed_counts_only_if_its_losses_agree():
  text = peer_report.markdown({'A': _RUNS}, 2, 3)
  assert 'launch.bench --peers --workload=A --repeats=2 --rounds=3`' in text
  lines = [line for line in text.splitlines() if line.startswith('|')]
  rows = {
    cells[1]: cells[2:-1]
    for line in lines
    if (cells := [cell.strip() for cell in line.split('|')])
  }
  losses = '2.3532, 2.2725'
  assert rows[peer_report.OURS] == ['7', '6 to 8', '1.00', '700', losses]
  assert rows['agrees'][:3] == ['3.5', '3 to 4', '0.50']
  assert rows['differs'][0] == 'refused: losses differ by 0.0020'
  assert rows['once'][0] == 'refused: losses differ by 0.1275'
  assert rows['diverges'][0] == 'refused: losses differ by nan'
  assert rows['short'][0] == 'refused: 1 losses, not 2'
  assert rows['breaks'][0] == 'failed: No module'
  for name in ('differs', 'once', 'diverges', 'short', 'breaks'):
    assert rows[name][1:3] == ['', '']
  assert 'jax 0.10.2, torch 2.13.0' in text
  assert '## Workload A' in text


def test_a_failure_of_this_engine_ends_the_report():
  runs = {**_RUNS, peer_report.OURS: [{'error': 'broken'}]}
  with pytest.raises(RuntimeError, match='this engine failed: broken'):
    peer_report.markdown({'A': runs}, 1)


def test_programs_run_in_turn_and_those_that_lack_a_package_do_not(
  monkeypatch, capsys
):
  from launch import start

  ran = []

  def run(program, given):
    ran.append((program.name, given[0]))
    return _line(1.0, [2.0])

  programs = (
    peer_runs.PROGRAMS[0],
    peer_runs.Program('there', 'x', ('numpy',)),
    peer_runs.Program('away', 'y', ('no_such_package',)),
  )
  monkeypatch.setattr(peer_runs, 'PROGRAMS', programs)
  monkeypatch.setattr(peer_runs, '_run', run)
  text = peer_runs.run(['tiny'], 2, 0, start.console())
  turn = [(peer_report.OURS, '--workload=tiny'), ('there', '--workload=tiny')]
  assert ran == turn * 2
  out = capsys.readouterr().out
  assert 'away is left out: no package no_such_package' in out
  assert '| there ' in text


def test_children_are_on_one_core():
  if not hasattr(os, 'sched_getaffinity'):
    pytest.skip('this platform pins nothing')
  before = os.sched_getaffinity(0)
  ask = [sys.executable, '-c', 'import os; print(os.sched_getaffinity(0))']
  with peer_runs._pinned():
    told = subprocess.run(ask, capture_output=True, text=True, check=True)
  assert told.stdout.strip() == str({min(before)})
  assert os.sched_getaffinity(0) == before


@pytest.mark.slow
def test_a_peer_is_a_program(init, ours, tmp_path):
  path = tmp_path / 'init.npz'
  np.savez(path, allow_pickle=False, **init)
  given = ['--workload=tiny', f'--init={path}', '--rounds=2']
  torch_peer = next(p for p in peer_runs.PROGRAMS if 'torch' in p.name)
  line = peer_runs._run(torch_peer, given)
  assert not peer_report.disagreement(line['losses'], ours['losses'])
  # Its own, and not what this process holds besides.
  own = harness.peak_mib()
  assert 100 < line['peak_rss_mib'] < own
  wrong = peer_runs._run(torch_peer, ['--workload=none'])
  assert 'error' in wrong['error']

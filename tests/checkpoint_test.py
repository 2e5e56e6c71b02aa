"""Checkpoints come back bit for bit, and survive a killed process."""

import pathlib
import signal
import subprocess
import sys
import threading
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from fedjax_tune.training import checkpoint


class _State(NamedTuple):
  theta: dict[str, Any]
  opt: optax.OptState
  spent: np.int64


def _state(seed: int) -> dict[str, Any]:
  rng = np.random.default_rng(seed)
  theta = {
    'attn.proj/a': jnp.asarray(rng.normal(size=(2, 3)), jnp.bfloat16),
    'nested': {'b': jnp.asarray(rng.normal(size=4), jnp.float32), 'none': None},
    'empty': jnp.zeros((0, 3)),
  }
  ema = np.float32(rng.normal())
  return {
    'state': _State(theta, optax.adam(1e-3).init(theta), np.int64(seed)),
    'host': [rng.normal(size=3), np.array(ema), ema, np.bool_(seed % 2)],
    'plain': (seed, rng.normal(), bool(seed % 2)),
    'edge': np.array([np.nan, -0.0, np.inf], ml_dtypes.bfloat16),
  }


def _assert_same_bits(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert type(x) is type(y)
    assert np.asarray(x).dtype == np.asarray(y).dtype
    assert np.shape(x) == np.shape(y)
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


_RUN = {'experiment': {'seed': 3}}


def _open(workdir, every=1):
  return checkpoint.Checkpoints(workdir, every, _RUN)


def _saved(workdir, rounds):
  with _open(workdir) as saved:
    for rnd in rounds:
      saved.save(rnd, _state(rnd), 'a row\n' * rnd)


def _restore(workdir, template):
  kept = checkpoint.find(workdir).newest
  assert kept
  return checkpoint.fit(kept, template)


def test_roundtrip_is_bit_exact(tmp_path):
  _saved(tmp_path, [7])
  kept, damaged = checkpoint.find(tmp_path)
  assert kept
  assert (kept.rounds, kept.rows, kept.run) == (7, 'a row\n' * 7, _RUN)
  assert not damaged
  _assert_same_bits(checkpoint.fit(kept, _state(1)), _state(7))


def test_placement_follows_the_template(tmp_path):
  device = jax.devices()[1]
  template = {'x': jax.device_put(jnp.zeros(3), device)}
  with _open(tmp_path) as saved:
    saved.save(1, {'x': jnp.arange(3.0)})
  assert _restore(tmp_path, template)['x'].devices() == {device}


def test_arrays_in_any_order(tmp_path):
  rows = np.arange(6).reshape(2, 3)
  with _open(tmp_path) as saved:
    saved.save(1, {'a': np.asfortranarray(rows), 'b': rows[:, ::-1]})
  found = _restore(tmp_path, {'a': rows, 'b': rows})
  np.testing.assert_array_equal(found['a'], rows)
  np.testing.assert_array_equal(found['b'], rows[:, ::-1])


def test_state_may_change_right_after_save(tmp_path):
  grow = jax.jit(lambda x: x + 1, donate_argnums=0)
  on_host, on_device = np.zeros(1000), jnp.zeros(1000)
  with _open(tmp_path) as saved:
    saved.save(1, (on_host, on_device))
    on_host += 1
    on_device = grow(on_device)
  host, device = _restore(tmp_path, (on_host, on_device))
  assert not host.any()
  assert not device.any()


def test_every_kth_round_and_the_newest_two_are_kept(tmp_path):
  with _open(tmp_path, 2) as saved:
    for rnd in range(1, 8):
      saved.save(rnd, {'x': np.full(2, rnd)}, force=rnd == 7)
  names = {path.name for path in (tmp_path / 'checkpoints').iterdir()}
  assert names == {'6', '7'}


def test_saving_a_round_again_is_no_error(tmp_path):
  with _open(tmp_path) as saved:
    saved.save(1, {'x': np.zeros(2)})
    saved.save(1, {'x': np.zeros(2)}, force=True)
  found = [path.name for path in (tmp_path / 'checkpoints').iterdir()]
  assert found == ['1']


def test_others_folders_stay(tmp_path):
  _saved(tmp_path, [1, 2])
  folder = tmp_path / 'checkpoints'
  own = ['best', '.writing-mine', '1.kept', '03', '0']
  for name in own:
    (folder / name).mkdir()
    (folder / name / 'note').write_text('keep')
  (folder / 'notes.txt').write_text('keep')
  _saved(tmp_path, [3, 4, 5])
  assert all((folder / name / 'note').exists() for name in own)
  found = {path.name for path in folder.iterdir()}
  assert found == {*own, 'notes.txt', '4', '5'}


def test_what_a_killed_process_had_begun_goes(tmp_path):
  _saved(tmp_path, [1, 2])
  folder = tmp_path / 'checkpoints'
  (folder / '.writing-3').mkdir()
  (folder / '.old-1').mkdir()
  assert checkpoint.find(tmp_path).newest
  # Readers take nothing away.
  assert (folder / '.writing-3').exists()
  _saved(tmp_path, [])
  assert {path.name for path in folder.iterdir()} == {'1', '2'}


def test_a_reader_beside_a_writer(tmp_path):
  """Old checkpoints vanish under the reader, who then takes newer ones."""
  done = threading.Event()
  seen = []

  def read():
    while not done.is_set():
      kept, damaged = checkpoint.find(tmp_path)
      seen.append((kept.rounds if kept else 0, damaged))

  thread = threading.Thread(target=read)
  thread.start()
  _saved(tmp_path, range(1, 20))
  done.set()
  thread.join()
  rounds = [rounds for rounds, _ in seen]
  assert not any(damaged for _, damaged in seen)
  assert rounds == sorted(rounds)
  assert len(set(rounds)) > 2


_SAVE_FOREVER = """
import itertools, sys
import numpy as np
from fedjax_tune.training import checkpoint
with checkpoint.Checkpoints(sys.argv[1], 1, {}) as saved:
  for rnd in itertools.count(1):
    saved.save(rnd, [np.full(100_000, rnd) for _ in range(8)])
    print(rnd, flush=True)
"""


def test_killed_process_costs_nothing(tmp_path):
  with subprocess.Popen(
    [sys.executable, '-c', _SAVE_FOREVER, str(tmp_path)],
    stdout=subprocess.PIPE,
    text=True,
    cwd=pathlib.Path(__file__).parents[1],
  ) as process:
    assert process.stdout
    started = next(int(line) for line in process.stdout if int(line) == 4)
    process.send_signal(signal.SIGKILL)
    process.wait()
  kept, damaged = checkpoint.find(tmp_path)
  # Save n begins after save n-1 has finished.
  assert kept
  assert kept.rounds >= started - 1
  assert not damaged
  for leaf in checkpoint.fit(kept, [np.zeros(100_000, int) for _ in range(8)]):
    np.testing.assert_array_equal(leaf, kept.rounds)


def test_nothing_to_restore(tmp_path):
  assert checkpoint.find(tmp_path) == (None, {})


@pytest.mark.parametrize(
  'template',
  [
    {'x': np.zeros(3)},
    {'x': np.zeros(2, np.float32)},
    {'y': np.zeros(2)},
    {'x': np.zeros(2), 'y': 1},
    {},
  ],
)
def test_template_must_fit(tmp_path, template):
  with _open(tmp_path) as saved:
    saved.save(1, {'x': np.zeros(2)})
  with pytest.raises(ValueError, match=r'Checkpoint 1 .* which must be'):
    _restore(tmp_path, template)


def test_every_is_checked(tmp_path):
  with pytest.raises(ValueError, match='checkpoint_every=0 must be at least 1'):
    _open(tmp_path, 0)

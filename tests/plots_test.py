from hypothesis import given, settings, strategies
from matplotlib import axes as mpl_axes
from matplotlib import image
import numpy as np
import pytest

from fedjax_tune.report import figure, frontier, plots, writer


def write_run(workdir, rounds, eval_every=1):
  with writer.MetricsWriter(workdir) as made:
    for rnd in range(rounds):
      row = {'train/loss': 1 / (rnd + 1), 'coverage/layers': [2, 1, rnd % 2]}
      if (rnd + 1) % eval_every == 0:
        accuracy = 0.1 * rnd
        row |= {'eval/accuracy': accuracy, 'eval/accuracy/noto': accuracy}
        row |= {'eval/accuracy/twemoji': accuracy, 'eval/last/accuracy': 0.05}
      made.write(rnd, row)


def inked(path):
  """Whether the picture is more than paper."""
  return image.imread(path)[..., :3].std() > 0.01


@pytest.mark.parametrize(('rounds', 'eval_every'), [(1, 1), (4, 9), (30, 5)])
def test_run_has_two_pictures(tmp_path, rounds, eval_every):
  write_run(tmp_path, rounds, eval_every)
  paths = plots.plot_run(tmp_path, ['noto', 'twemoji'])
  assert [path.name for path in paths] == ['accuracy.png', 'coverage.png']
  assert all(map(inked, paths))


def test_run_that_diverged_is_drawn(tmp_path):
  with writer.MetricsWriter(tmp_path) as made:
    for rnd in range(3):
      row = {'train/loss': float('nan'), 'eval/accuracy': float('nan')}
      made.write(rnd, row | {'coverage/layers': [0, 0]})
  assert all(map(inked, plots.plot_run(tmp_path, [])))


def test_run_without_rounds(tmp_path):
  write_run(tmp_path, 0)
  with pytest.raises(ValueError, match='no finished round'):
    plots.plot_run(tmp_path, [])


def test_comparison(tmp_path):
  path = tmp_path / 'comparison.png'
  # The second seed of `a` stopped early; `b` has one seed.
  a = [([5, 10, 15], [0.1, 0.2, 0.3]), ([5, 10], [0.2, 0.3])]
  plots.plot_comparison({'a': a, 'b': [([5], [float('nan')])]}, path)
  assert inked(path)


@settings(max_examples=50, deadline=None)
@given(
  strategies.lists(
    strategies.floats(0, 100, allow_subnormal=False), min_size=1, max_size=9
  )
)
def test_labels_keep_order_distance_and_bounds(wanted):
  places = figure.spread_labels(wanted, 10.0, 0.0, 100.0)
  order = np.argsort(wanted, kind='stable')
  assert np.all(np.diff(places[order]) >= 10.0 - 1e-6)
  assert places.min() >= -1e-6
  assert places.max() <= 100.0 + 1e-6


def test_labels_with_room_stay():
  np.testing.assert_allclose(
    figure.spread_labels([50.0, 10.0], 10.0, 0.0, 100.0), [50.0, 10.0]
  )


def test_labels_share_a_shift():
  np.testing.assert_allclose(
    figure.spread_labels([50.0, 50.0], 10.0, 0.0, 100.0), [45.0, 55.0]
  )


def _spent(rounds, timed=True):
  return [
    {
      'round': rnd,
      'eval/accuracy': 0.1 * rnd if rnd % 2 else None,
      'time/simulated_s': 30.0 * rnd * timed,
      'cost/uplink_bytes': 10**9 * rnd,
      'cost/downlink_bytes': 10**9 * rnd,
      'cost/train_flops': 10**9 * rnd,
    }
    for rnd in range(rounds)
  ]


@pytest.mark.parametrize('timed', [True, False])
def test_frontier(tmp_path, timed, monkeypatch):
  drawn = []
  monkeypatch.setattr(
    mpl_axes.Axes, 'plot', lambda _, x, y, **__: drawn.append((x, y))
  )
  runs = {'fedra': [_spent(6, timed), _spent(4, timed)]}
  path = tmp_path / 'frontier.png'
  frontier.plot_frontier(runs, path)
  assert path.stat().st_size > 0
  # Of the rounds that both seeds have evaluated, 1 and 3.
  *minutes, (gb, accuracy) = drawn
  np.testing.assert_allclose(gb, [2, 6])
  np.testing.assert_allclose(accuracy, [10, 30])
  assert len(minutes) == timed
  if timed:
    np.testing.assert_allclose(minutes[0][0], [0.5, 1.5])

from hypothesis import given, settings, strategies
from matplotlib import axes as mpl_axes
from matplotlib import image
import numpy as np
import pytest

from fedjax_tune.report import figure, frontier, plots, styles, writer


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


def _drawn(monkeypatch, name):
  """Notes what is drawn by a method of axes."""
  drawn, draw = [], getattr(mpl_axes.Axes, name)

  def note(self, *args, **options):
    drawn.append((args, options))
    return draw(self, *args, **options)

  monkeypatch.setattr(mpl_axes.Axes, name, note)
  return drawn


def test_one_evaluation_makes_bars(tmp_path, monkeypatch):
  bars, lines = (_drawn(monkeypatch, name) for name in ('barh', 'plot'))
  one = {'fedra': [([5], [0.2]), ([5], [0.4])], 'raffm': [([5], [0.5])]}
  plots.plot_comparison(one, tmp_path / 'comparison.png')
  assert [args[1] for args, _ in bars] == pytest.approx([30, 50])
  assert [options['color'] for _, options in bars] == [
    styles.METHODS[name].color for name in one
  ]
  assert not lines
  plots.plot_comparison(
    {'fedra': [([5, 10], [0.2, 0.4])]}, tmp_path / 'two.png'
  )
  assert len(bars) == 2
  assert lines


def test_each_label_leads_to_the_end_of_its_own_line(tmp_path, monkeypatch):
  told = _drawn(monkeypatch, 'annotate')
  curves = {
    'fedra': [([5, 10, 20], [0.1, 0.2, 0.3])],
    'raffm': [([5, 10], [0.2, 0.3])],
  }
  plots.plot_comparison(curves, tmp_path / 'comparison.png')
  ends = {args[0].split()[0]: args[1] for args, _ in told}
  assert ends == {'fedra': (20, 30), 'raffm': (10, 30)}
  places = {args[0].split()[0]: args[2] for args, _ in told}
  assert {x for x, _ in places.values()} == {20}
  assert abs(places['fedra'][1] - places['raffm'][1]) > 0.3
  arrows = {args[0].split()[0]: o['arrowprops'] for args, o in told}
  assert arrows['raffm']


@pytest.mark.parametrize('rounds', [[5], [5, 10]])
def test_pictures_name_what_was_measured(tmp_path, monkeypatch, rounds):
  told = _drawn(monkeypatch, 'set')
  curves = {'fedra': [(rounds, [0.2] * len(rounds))]}
  plots.plot_comparison(curves, tmp_path / 'a.png', metric='f1')
  words = ' '.join(str(value) for _, o in told for value in o.values())
  assert 'F1' in words
  assert 'f1 (%)' in words
  assert 'ccuracy' not in words


def test_chance_is_a_line_or_a_word(tmp_path, monkeypatch):
  lines, told = (_drawn(monkeypatch, name) for name in ('axhline', 'annotate'))
  chance = {'1 of 5 classes': 0.2, 'largest class': 0.3}
  low = {'fedra': [([5, 10], [0.2, 0.4])]}
  plots.plot_comparison(low, tmp_path / 'low.png', None, chance)
  assert [args[0] for args, _ in lines] == pytest.approx([20, 30])
  high = {'fedra': [([5, 10], [0.93, 0.95])]}
  plots.plot_comparison(high, tmp_path / 'high.png', None, chance)
  assert len(lines) == 2
  texts = [args[0] for args, _ in told]
  assert {'chance 20.0', 'largest class 30.0'} < set(texts)
  assert 'far below: chance 20.0, largest class 30.0' in texts
  # Their labels stand beside the axes, where no curve is.
  beside = {args[0]: args[2][0] for args, _ in told if 'far' not in args[0]}
  assert set(beside.values()) == {10}
  told.clear()
  near = {'1 of 5 classes': 0.2, 'largest class': 0.2004}
  plots.plot_comparison(low, tmp_path / 'near.png', None, near)
  assert len(lines) == 3
  assert [args[0] for args, _ in told][1:] == ['chance 20.0']


def test_a_run_of_one_domain_names_what_was_measured(tmp_path, monkeypatch):
  write_run(tmp_path, 4)
  told = _drawn(monkeypatch, 'annotate')
  for domains, name in ((['noto'], 'f1'), (['noto', 'twemoji'], 'mean')):
    told.clear()
    plots.plot_run(tmp_path, domains, metric='f1')
    assert f'{name}  30.0' in [args[0] for args, _ in told]


def test_curves_are_not_cut_by_the_axis(tmp_path, monkeypatch):
  write_run(tmp_path, 30)
  lines = _drawn(monkeypatch, 'plot')
  plots.plot_run(tmp_path, ['noto', 'twemoji'])
  assert not any(options.get('clip_on', True) for _, options in lines)


def test_pictures_begin_before_the_first_round(tmp_path, monkeypatch):
  write_run(tmp_path, 4)
  writer.write_json(tmp_path / 'start.json', {'eval/accuracy': 0.125})
  lines = _drawn(monkeypatch, 'plot')
  plots.plot_run(tmp_path, ['noto'])
  mean = [args for args, options in lines if options.get('lw') == 2.6]
  ((rounds, values),) = mean
  assert list(rounds) == [0, 1, 2, 3, 4]
  assert values[0] == 12.5


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


def test_the_frontier_has_units_of_its_size_and_shows_what_moves_nothing(
  tmp_path, monkeypatch
):
  lines, units, limits = (
    _drawn(monkeypatch, name) for name in ('plot', 'set_xlabel', 'set_xlim')
  )
  small = [
    row | {'cost/uplink_bytes': 10**6 * row['round'], 'cost/downlink_bytes': 0}
    for row in _spent(4, timed=False)
  ]
  alone = [row | {'cost/uplink_bytes': 0} for row in small]
  runs = {'fedra': [small], 'local_only': [alone]}
  frontier.plot_frontier(runs, tmp_path / 'f.png')
  np.testing.assert_allclose([args[0] for args, _ in lines], [[1, 3], [0, 0]])
  assert units[0][0][0].startswith('MB moved')
  assert limits[0][1]['left'] < 0


@pytest.mark.parametrize('count', [8, 60])
def test_a_legend_below_leaves_the_axes_their_room(count):
  fig = figure.new_figure(4.2)
  ax = fig.subplots()
  for i in range(count):
    ax.plot([0, 1], label=f'fedra_with_a_long_a_{i}')
  figure.legend_below(fig, ax)
  fig.draw_without_rendering()
  (legend,) = fig.legends
  box = legend.get_window_extent()
  assert (fig.bbox.x0, fig.bbox.y0) <= (box.x0, box.y0)
  assert box.x1 <= fig.bbox.x1
  assert ax.get_window_extent().height > 2 * fig.dpi

"""The plot of who holds what, of few clients and of many."""

import dataclasses

from matplotlib import axes as mpl_axes
from matplotlib import text as mpl_text
import numpy as np
from PIL import Image
import pytest

from fedjax_tune.report import partition_plot


def _clients(count, domains=3, budgets=(12, 6, 3), seed=0):
  rng = np.random.default_rng(seed)
  return partition_plot.Clients(
    rng.integers(1, 50, count),
    np.resize(budgets, count),
    np.arange(count) * domains // count if domains else np.full(count, -1),
    ['sketch', 'real', 'clipart'][:domains] or ['all'],
  )


def _draw(clients, classes, path, monkeypatch):
  """Draws clients of random classes, and returns the texts."""
  drawn, draw = [], mpl_text.Text.draw
  monkeypatch.setattr(
    mpl_text.Text,
    'draw',
    lambda self, *args: drawn.append(self.get_text()) or draw(self, *args),
  )
  rng = np.random.default_rng(1)
  counts = rng.integers(0, 9, (len(clients.shown), classes))
  names = [f'class {k}' for k in range(classes)]
  partition_plot.plot_partition(counts, clients, names, path)
  with Image.open(path) as picture:
    assert np.asarray(picture).std() > 5
  return drawn


@pytest.mark.parametrize('classes', [3, 12, 40])
def test_each_of_a_few_clients_has_a_bar(tmp_path, monkeypatch, classes):
  drawn = _draw(_clients(6), classes, tmp_path / 'p.png', monkeypatch)
  assert '0 · sketch · 12 blocks' in drawn
  assert '5 · clipart · 3 blocks' in drawn
  plain = _clients(3, domains=0, budgets=(4,))
  drawn = _draw(plain, classes, tmp_path / 'p.png', monkeypatch)
  assert {'0', '1', '2'} <= set(drawn)
  assert not any('·' in text for text in drawn)


def test_natural_clients_have_their_names(tmp_path, monkeypatch):
  named = dataclasses.replace(_clients(2), names=('ada', 'b' * 50))
  drawn = _draw(named, 3, tmp_path / 'p.png', monkeypatch)
  assert '0 · ada · sketch · 12 blocks' in drawn
  assert not any('b' * 30 in text for text in drawn)


def test_long_names_leave_room_for_the_bars(tmp_path, monkeypatch):
  long = 'of a class or domain that is called at length'
  clients = dataclasses.replace(
    _clients(2, domains=2), domain_names=[f'{long} {i}' for i in range(2)]
  )
  axes, draw = [], mpl_axes.Axes.draw
  monkeypatch.setattr(
    mpl_axes.Axes, 'draw', lambda ax, *args: axes.append(ax) or draw(ax, *args)
  )
  names = [f'{long} {k}' for k in range(16)]
  # Matplotlib warns where nothing is left, and a warning is an error here.
  partition_plot.plot_partition(
    np.ones((2, 16)), clients, names, tmp_path / 'p.png'
  )
  ax = axes[-1]
  (legend,) = ax.figure.legends
  box, inside = legend.get_window_extent(), ax.figure.bbox
  assert inside.y0 <= box.y0
  assert box.y1 <= inside.y1
  assert ax.get_window_extent().x1 <= box.x0


@pytest.mark.parametrize('count', [41, 100_000])
def test_many_clients_are_one_picture(tmp_path, monkeypatch, count):
  drawn = _draw(_clients(count), 10, tmp_path / 'p.png', monkeypatch)
  assert {'domain', 'blocks', 'sketch', 'real', 'clipart', '12', '6'} <= set(
    drawn
  )
  assert f'{count:,} clients by domain, budget and size' in drawn
  # However many clients, a figure of one size.
  pieces = []
  add = mpl_axes.Axes.add_artist
  monkeypatch.setattr(
    mpl_axes.Axes, 'add_artist', lambda *a: pieces.append(a) or add(*a)
  )
  drawn = _draw(
    _clients(count, domains=0, budgets=(4,)),
    90,
    tmp_path / 'p.png',
    monkeypatch,
  )
  assert not {'domain', 'blocks'} & set(drawn)
  assert len(pieces) < 100


def test_of_many_clients_every_so_many_are_shown():
  clients = _clients(1000)
  keys = list(
    zip(clients.domains, -clients.budgets, -clients.sizes, strict=True)
  )
  assert [keys[k] for k in clients.order] == sorted(keys)
  place = np.argsort(clients.order)[clients.shown]
  assert len(place) == 300
  assert set(np.diff(place)) == {3, 4}
  assert _clients(40).shown == list(range(40))


def test_a_histogram_of_another_shape(tmp_path):
  with pytest.raises(ValueError, match=r'shape \(2, 3\); must be \(2, 2\)'):
    partition_plot.plot_partition(
      np.ones((2, 3)), _clients(2), ['x', 'y'], tmp_path / 'a.png'
    )

"""The most that a device can train, and what runs make of it."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import tiny

from fedjax_tune import config
from fedjax_tune.costs import fit, hardware
from fedjax_tune.costs.cost import Cost
from fedjax_tune.costs.hardware import Device
from fedjax_tune.data import arrays
from fedjax_tune.methods import menus
from fedjax_tune.models import backbone, pretrained
from fedjax_tune.models.sizes import axis_sizes
from fedjax_tune.training import build, loop
from launch import overview

_DEPTH = fit.Menu(
  'depth', tuple(fit.Choice(n, n / 4, {'layer': n}) for n in (4, 3, 2, 1))
)
_WIDTH = fit.Menu(
  'width',
  tuple(fit.Choice(r, r, {'ffn': int(8 * r)}) for r in (1.0, 0.5, 0.25)),
)
_RANK = fit.Menu(
  'rank', tuple(fit.Choice(n, n / 8, {'rank': n}) for n in (8, 4, 2))
)


def _measure(held):
  """Work grows with depth and width; a rank costs next to nothing."""
  size = held.get('layer', 4) * held.get('ffn', 8)
  ranks = held.get('rank', 8)
  return Cost(size, 4 * size, ranks, 4 * ranks, 100 * size + ranks, 10 * size)


def _device(flops=1e9, memory=1e9):
  return Device('box', flops, memory, 1e9, 1e9)


def _largest(device, menus_, limits, steps=1):
  return fit.largest(device, steps, menus_, _measure, limits)


_TIME, _MEMORY = fit.Limits(1.0, memory=False), fit.Limits(None, memory=True)


def test_a_strong_device_holds_the_whole_model():
  found = _largest(_device(), [_DEPTH, _WIDTH, _RANK], fit.Limits(1.0, True))
  assert found.values == {'depth': 4, 'width': 1.0, 'rank': 8}


@pytest.mark.parametrize('blocks', [1, 2, 3, 4])
def test_one_menu_gives_the_largest_that_fits(blocks):
  enough = _measure({'layer': blocks})
  found = _largest(_device(memory=enough.memory), [_DEPTH], _MEMORY)
  assert found.values == {'depth': blocks}
  # The time counts what is sent, too.
  sent = 2 * enough.theta_bytes / 1e9
  speed = 7 * enough.flops / (1.0 - sent)
  found = _largest(_device(flops=speed * 1.0001), [_DEPTH], _TIME, steps=7)
  assert found.values == {'depth': blocks}
  assert found.seconds == pytest.approx(1.0, rel=1e-3)
  if blocks > 1:
    found = _largest(_device(flops=speed * 0.999), [_DEPTH], _TIME, steps=7)
    assert found.values == {'depth': blocks - 1}


def test_what_is_cut_evenly_and_what_first():
  half = _device(memory=_measure({'layer': 2, 'ffn': 4}).memory)
  menus_ = [_WIDTH, _DEPTH, _RANK]
  even = _largest(half, menus_, _MEMORY)
  # A rank hardly costs anything, so that all of it is given back.
  assert even.values == {'width': 0.5, 'depth': 2, 'rank': 8}
  first = lambda name: dataclasses.replace(_MEMORY, first=name)
  quarter = {'width': 0.25, 'depth': 4, 'rank': 8}
  assert _largest(half, menus_, first('width')).values == quarter
  quarter = {'width': 1.0, 'depth': 1, 'rank': 8}
  assert _largest(half, menus_, first('depth')).values == quarter


@pytest.mark.parametrize('first', ['', 'depth', 'width', 'rank'])
@pytest.mark.parametrize('memory', [10, 45, 80, 111, 160, 321])
def test_nothing_more_would_fit(first, memory):
  """Whatever is found fits, and no single menu could give more."""
  menus_ = [_WIDTH, _DEPTH, _RANK]
  limits = fit.Limits(None, memory=True, first=first)
  device = _device(memory=memory)
  least = _measure({'layer': 1, 'ffn': 2}).memory
  if memory < least:
    with pytest.raises(ValueError, match="device 'box' must be able to train"):
      _largest(device, menus_, limits)
    return
  found = _largest(device, menus_, limits)
  assert found.cost.memory <= memory
  held = dict(found.held)
  for menu, axis in zip(menus_, ('ffn', 'layer', 'rank'), strict=True):
    larger = [c.held for c in menu.choices if c.held[axis] > held[axis]]
    for choice in larger:
      assert _measure({**held, **choice}).memory > memory


def test_the_least_that_is_needed_is_told():
  message = (
    r"device 'box' .* \(depth 1; rank 2\): it takes 0\.8\d* s a round, of"
    r' clients\.deadline_s=0\.5, and 80 B of memory, of its 60 B\.'
  )
  with pytest.raises(ValueError, match=message.replace(', and', ' and')):
    _largest(
      _device(flops=1e3, memory=60), [_DEPTH, _RANK], fit.Limits(0.5, True)
    )


def test_costs_are_traced_once():
  seen = []

  def measure(held):
    seen.append(dict(held))
    return _measure(held)

  known = fit.measured(measure)
  for memory in (40, 80, 160, 320):
    fit.largest(_device(memory=memory), 1, [_DEPTH, _WIDTH], known, _MEMORY)
  assert len(seen) == len({tuple(h.items()) for h in seen})


# -- menus


@pytest.mark.parametrize('weights', ['random:text_test', 'random:llama_test'])
def test_subnetworks_are_ranked_by_their_weights(weights):
  shape = pretrained.read_sizes(weights)
  kernels = {
    path: variable.shape
    for path, variable in backbone.variables(shape).items()
    if path[0] == 'blocks' and path[-1] == 'kernel'
  }
  want = sum(map(math.prod, kernels.values()))
  assert menus._block_weights(axis_sizes(shape)) == want


def test_menus_list_what_options_list():
  e = tiny.experiment('fedra')
  e.clients.budgets = (2, 3)
  sizes = {'layer': 4, 'embed': 8, 'heads': 2, 'qk_dim': 4, 'v_dim': 4}
  sizes |= {'ffn': 16}
  (depth,) = menus.depth(e, sizes)
  assert [c.value for c in depth.choices] == [4, 3, 2]
  e.clients.budgets = ()
  (depth,) = menus.depth(e, sizes)
  assert [c.value for c in depth.choices] == [4, 3, 2, 1]
  e.width.rates, e.width.axes = (0.5, 0.25), ('ffn', 'embed')
  (width,) = menus.width(e, sizes)
  assert [c.held for c in width.choices] == [
    {'ffn': 16, 'embed': 8}, {'ffn': 8, 'embed': 4}, {'ffn': 4, 'embed': 2}
  ]  # fmt: skip
  e.lora.rank, e.rank.ranks = 8, (2, 4)
  (rank,) = menus.rank(e, sizes)
  assert [c.value for c in rank.choices] == [8, 4, 2]
  e.raffm = config.Raffm(space='custom', ffn=(1.0, 0.5), heads=(0.5,))
  (space,) = menus.space(e, sizes)
  shares = [c.share for c in space.choices]
  assert shares[0] == 1.0
  assert all(a >= b for a, b in itertools.pairwise(shares))
  assert space.choices[-1].held == {'heads': 1, 'ffn': 8}


def test_a_composed_client_has_the_menu_of_each_axis():
  e = tiny.experiment('composed')
  e.composed.depth, e.composed.width, e.composed.rank = (
    'fedra',
    'raffm',
    'fedit',
  )
  sizes = {'layer': 4, 'embed': 8, 'heads': 2, 'qk_dim': 4, 'v_dim': 4}
  found = menus.composed(e, sizes | {'ffn': 48})
  assert [menu.name for menu in found] == ['depth', 'width', 'rank']
  # No two cut the same axis.
  cut = [axis for menu in found for axis in menu.choices[-1].held]
  assert len(cut) == len(set(cut))


# -- whole runs

_WHOLE = 161156  # Bytes that the tiny ViT takes.


def _devices(path, memory):
  """Two devices: one in three clients has the strong one."""
  tables = [
    f'[{name}]\nflops = 1e12\nmemory = {size}\nuplink = 1e6\n'
    f'downlink = 1e6\nshare = {share}\n'
    for name, size, share in (('strong', 1e9, 0.34), ('weak', memory, 0.66))
  ]
  path.write_text('\n'.join(tables))
  return str(path)


def _data():
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (48, 16, 16, 3)).astype(np.uint8)
  labels = np.arange(48) % 3
  return arrays.from_arrays(images, labels, images, labels)


def _experiment(method, path, memory=0.75 * _WHOLE):
  e = config.Experiment(method=method, rounds=2, eval_every=1)
  e.model.weights, e.data.image_size = 'random:vit_test', 16
  e.clients.partition, e.clients.count = 'iid', 3
  e.clients.cohort, e.clients.cohort_size = 'uniform', 2
  e.clients.budgets, e.clients.min_examples = (), 1
  e.lora.rank, e.local.batch_size, e.local.steps = 2, 4, 2
  e.raffm = config.Raffm(space='custom', ffn=(1.0, 0.5), embed=(1.0, 0.5))
  e.raffm.sampling = 'resource'
  e.composed.depth, e.composed.width = 'fedra', 'raffm'
  e.clients.devices = _devices(path / 'own.toml', memory)
  e.clients.fit, e.engine.compilation_cache = 'memory', False
  return e


@pytest.mark.parametrize(
  ('method', 'held'),
  [
    ('fedra', {'depth': [4, 2, 2]}),
    pytest.param('all_small', {'depth': [4, 2, 2]}, marks=pytest.mark.slow),
    pytest.param('inclusivefl', {'depth': [4, 2, 2]}, marks=pytest.mark.slow),
    pytest.param('depthfl', {'depth': [4, 2, 2]}, marks=pytest.mark.slow),
    pytest.param(
      'heterofl', {'width': [1.0, 0.5, 0.5]}, marks=pytest.mark.slow
    ),
    ('raffm', {'width': [(1.0,) * 5, (1.0, 1.0, 1.0, 0.5, 1.0)]}),
    ('composed', {'depth': [4, 3, 3], 'width': [(1.0,) * 5]}),
  ],
)
def test_each_client_holds_what_fits_its_device(tmp_path, method, held):
  setup = build.build(_experiment(method, tmp_path), data=_data())
  for name, values in held.items():
    found = [f.values[name] for f in setup.fits]
    assert found[: len(values)] == values
  for device, found in zip(setup.devices, setup.fits, strict=True):
    assert found.cost.memory <= device.memory
  # What is drawn for the weak clients is what was found for them.
  if method != 'all_small':
    for drawn in setup.algorithm.rule.draw(0, [1, 2]):
      amounts = drawn.amounts
      assert {a: amounts.get(a) for a in setup.fits[1].held} == dict(
        setup.fits[1].held
      )


def test_what_nobody_can_train_is_refused_before_the_run(tmp_path):
  e = _experiment('fedra', tmp_path, memory=1000)
  with pytest.raises(ValueError, match=r"device 'weak' .*of its 1000 B"):
    build.build(e, data=_data())


def test_inspect_tells_what_amounts_of_memory_allow(tmp_path):
  e = _experiment('fedra', tmp_path)
  e.clients.fit = e.clients.devices = ''
  setup = build.build(e, data=_data())
  table = overview.fitted(setup, ['1GiB', '125000B'])
  found = [dict(zip(table.header, cells, strict=True)) for cells in table.cells]
  assert [row['trains'] for row in found] == ['all', '2 layers']
  # There is no time in which nothing is known but the memory.
  assert {row['s/round'] for row in found} == {'-'}
  table = overview.fitted(setup, ['9B', '1GiB', '8B'])
  assert [cells[0] for cells in table.cells] == ['9B', '1GiB', '8B']
  small, whole, _ = table.cells
  assert small[2] == 'nothing fits'
  needed = hardware.parse_bytes(small[5].removeprefix('needs '), 'needs')
  assert 1000 < needed < 125000
  assert whole[2] == 'all'
  with pytest.raises(ValueError, match="device '9B' must be able to train"):
    overview.fitted(setup, ['9B'])
  with pytest.raises(ValueError, match=r"--budgets='x' must be a number with"):
    overview.fitted(setup, ['x'])
  whole = build.build(_experiment('all_large', tmp_path), data=_data())
  with pytest.raises(ValueError, match="method='all_large' must be one that"):
    overview.fitted(whole, ['1GiB'])


def test_fitting_needs_devices_and_raffm_its_sampling(tmp_path):
  e = _experiment('raffm', tmp_path)
  e.raffm.sampling = 'sandwich'
  with pytest.raises(ValueError, match=r"raffm\.sampling='sandwich' must be"):
    build.build(e, data=_data())
  e.raffm = config.Raffm(mode='mask', space='paper_vit')
  e.model.tune = 'full'
  with pytest.raises(
    ValueError, match=r"clients\.fit='memory' must be '' where"
  ):
    build.build(e, data=_data())
  e = _experiment('fedra', tmp_path)
  e.clients.devices = ''
  with pytest.raises(ValueError, match=r"clients\.fit='memory' must be ''"):
    build.build(e, data=_data())


def test_a_run_ends_and_knows_its_devices_again(tmp_path):
  e = _experiment('composed', tmp_path)
  summary = loop.train(e, str(tmp_path / 'run'), data=_data())
  assert summary['rounds'] == 2
  e.rounds = 3
  _devices(tmp_path / 'own.toml', 0.7 * _WHOLE)
  with pytest.raises(ValueError, match='devices: '):
    loop.train(e, str(tmp_path / 'run'), resume=True, data=_data())
  _devices(tmp_path / 'own.toml', 0.75 * _WHOLE)
  summary = loop.train(e, str(tmp_path / 'run'), resume=True, data=_data())
  assert summary['rounds'] == 3

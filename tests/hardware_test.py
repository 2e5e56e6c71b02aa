"""Simulated devices, and the largest subnetwork that each can train."""

import collections

import pytest
import tiny

from fedjax_tune.costs import estimate, hardware
from fedjax_tune.methods.raffm import resources, spaces

_SIZES = {
  'layer': 12,
  'embed': 768,
  'heads': 12,
  'qk_dim': 64,
  'v_dim': 64,
  'ffn': 3072,
  'token': 197,
  'key': 197,
  'patch': 768,
}
_SPACE = spaces.Space(
  head_dim=(1.0, 0.5), ffn=(1.0, 0.5, 0.25), layers=(1.0, 0.5, 0.25)
)


@pytest.mark.parametrize(
  ('setting', 'counts'),
  [
    ('xsmall', {'rpi4': 80, 'rpi5': 20}),
    ('small', {'rpi4': 40, 'rpi5': 40, 'xps15': 20}),
    ('medium', {'rpi5': 30, 'xps15': 40, 'orin': 30}),
    ('large', {'xps15': 20, 'orin': 40, 'v100': 40}),
    ('xlarge', {'orin': 10, 'v100': 90}),
  ],
)
def test_the_papers_shares_of_100_clients(setting, counts):
  found = hardware.assign(setting, 100)
  assert collections.Counter(d.name for d in found) == counts
  # Whatever the number, each has one, and no share is off by more than one.
  for num in (1, 3, 7, 33):
    found = collections.Counter(d.name for d in hardware.assign(setting, num))
    assert sum(found.values()) == num
    assert all(abs(found[n] - c * num / 100) <= 1 for n, c in counts.items())


def test_an_unknown_setting():
  with pytest.raises(ValueError, match=r"clients\.devices='huge' must be one"):
    hardware.assign('huge', 4)


def _experiment(**options):
  changes = {
    'clients': {'devices': 'small'},
    'local': {'steps': 10, 'batch_size': 16},
    'model': {'tune': 'full'},
  }
  for section, fields in options.items():
    changes[section] = changes.get(section, {}) | fields
  e = tiny.experiment('raffm', **changes)
  e.raffm.sampling = 'resource'
  return e


def _fits(device, shares, deadline_s, *, full=True):
  row = spaces.row_of(shares, _SIZES)
  cost = estimate.client({**_SIZES, **row}, batch_size=16, full=full)
  seconds = 10 * cost.flops / device.flops
  return seconds <= deadline_s and cost.memory <= device.memory


@pytest.mark.parametrize(
  ('setting', 'deadline_s', 'tune'),
  [('small', 300.0, 'full'), ('small', 120.0, 'lora'), ('large', 1e6, 'full')],
)
def test_each_has_the_largest_that_fits(setting, deadline_s, tune):
  e = _experiment(
    clients={'devices': setting},
    raffm={'deadline_s': deadline_s},
    model={'tune': tune},
  )
  found = resources.fit(e, _SPACE, _SIZES, 20)
  params = {}
  for shares in _SPACE.choices():
    held = {**_SIZES, **spaces.row_of(shares, _SIZES)}
    params[shares] = estimate.client(
      held, batch_size=16, full=tune == 'full'
    ).params
  for device, shares in zip(hardware.assign(setting, 20), found, strict=True):
    fitting = [
      s
      for s in _SPACE.choices()
      if _fits(device, s, deadline_s, full=tune == 'full')
    ]
    assert shares in fitting
    assert params[shares] == max(params[s] for s in fitting)
  # In the first two time decides, in the last one memory.
  assert len(set(found)) > 1


def test_memory_limits_too(monkeypatch):
  least = estimate.client(
    {**_SIZES, 'layer': 3, 'ffn': 768, 'qk_dim': 32, 'v_dim': 32},
    batch_size=16,
    full=True,
  )
  tight = hardware.Device('tight', 1e15, least.memory, 1.0, 1.0)
  monkeypatch.setitem(hardware.DEVICES, 'tight', tight)
  monkeypatch.setitem(hardware.SETTINGS, 'one', {'tight': 1.0})
  e = _experiment(clients={'devices': 'one'})
  assert set(resources.fit(e, _SPACE, _SIZES, 2)) == {_SPACE.smallest()}


def test_raffm_holds_what_fits_in_every_round():
  e = _experiment(raffm={'space': 'custom', 'deadline_s': 120.0})
  e.raffm.ffn, e.raffm.embed, e.raffm.layers = (1.0, 0.25), (1.0,), (1.0, 0.25)
  rule = tiny.build(e, tiny.stack(), (12,) * 20, widths=_SIZES).rule
  shares = resources.fit(e, spaces.make_space(e.raffm), _SIZES, 20)
  want = [spaces.row_of(shares[k], _SIZES) for k in (1, 10, 19)]
  assert want[0] != want[2]
  assert rule.draw(0, [1, 10, 19]) == want
  assert rule.draw(5, [1, 10, 19]) == want


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'clients': {'devices': ''}}, r"clients\.devices='' must name a setting"),
    ({'local': {'steps': 0}}, r'local\.steps=0 must be at least 1'),
    (
      {'raffm': {'deadline_s': 0.5}},
      r'raffm\.deadline_s=0\.5: rpi4 fits no .* [\d.]+ s and \d+ MiB of its \d',
    ),
  ],
)
def test_what_cannot_be_is_refused(options, message):
  with pytest.raises(ValueError, match=message):
    resources.fit(_experiment(**options), _SPACE, _SIZES, 20)

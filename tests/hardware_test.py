"""Simulated devices: RaFFM's settings, and a user's own."""

import collections

import pytest

from fedjax_tune.costs import hardware


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


_PHONE = {
  'flops': '1e11', 'memory': "'2GiB'", 'uplink': '1e6', 'downlink': '2e6',
  'share': '1',
}  # fmt: skip


def _write(path, **changes):
  fields = {k: v for k, v in {**_PHONE, **changes}.items() if v is not None}
  lines = [f'{name} = {value}' for name, value in fields.items()]
  path.write_text('\n'.join(['[phone]', *lines, '']))
  return str(path)


def test_own_devices(tmp_path):
  path = tmp_path / 'own.toml'
  _write(path, share='0.75')
  path.write_text(
    path.read_text()
    + '[desk]\nflops = 1e12\nmemory = 8e9\nuplink = 1\ndownlink = 1\n'
    + 'share = 0.25\n'
  )
  found = hardware.assign(str(path), 8)
  assert [d.name for d in found] == ['phone'] * 6 + ['desk'] * 2
  assert found[0] == hardware.Device('phone', 1e11, 2 * 2**30, 1e6, 2e6)
  assert found[-1].memory == 8e9


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'share': '0.5'}, 'shares must add up to 1; they add up to 0.5'),
    ({'flops': None}, 'phone must have the field flops'),
    ({'flops': '0'}, r'phone\.flops=0 must be a number above 0'),
    ({'flops': 'true'}, r'phone\.flops=True must be a number above 0'),
    ({'uplink': "'fast'"}, r"phone\.uplink='fast' must be a number above 0"),
    ({'memory': "'2 sacks'"}, r"phone\.memory='2 sacks' must be a number with"),
    ({'flops': '1' + 400 * '0'}, r'phone\.flops=10+ must be a number above 0'),
    ({'memory': "'1e999GiB'"}, r"memory='1e999GiB' must be a number with"),
    ({'downlink': 'inf'}, r'phone\.downlink=inf must be a number above 0'),
    ({'colour': '3'}, r'phone\.colour must be one of flops, memory'),
    ({'flops': '= 3'}, 'must be a TOML file'),
  ],
)
def test_a_wrong_file_is_refused_by_field(tmp_path, changes, message):
  path = _write(tmp_path / 'own.toml', **changes)
  with pytest.raises(ValueError, match=message):
    hardware.assign(path, 4)


def test_files_without_devices(tmp_path):
  path = tmp_path / 'own.toml'
  with pytest.raises(FileNotFoundError, match='there is no such file'):
    hardware.assign(str(path), 4)
  path.write_text('')
  with pytest.raises(ValueError, match='shares must add up to 1'):
    hardware.assign(str(path), 4)
  path.write_text('phone = 3')
  with pytest.raises(ValueError, match=r'phone=3 must be a table, \[phone\]'):
    hardware.assign(str(path), 4)


@pytest.mark.parametrize(
  ('text', 'amount'),
  [('2GiB', 2**31), ('512 MiB', 2**29), ('3e9', 3e9), ('1.5kB', 1500.0)],
)
def test_amounts_of_memory(text, amount):
  assert hardware.parse_bytes(text, 'memory') == amount


@pytest.mark.parametrize('text', ['', '-1', 'GiB', '1.2.3', '2 gib', 'nan'])
def test_no_amount_of_memory(text):
  with pytest.raises(ValueError, match='must be a number with a unit'):
    hardware.parse_bytes(text, 'memory')

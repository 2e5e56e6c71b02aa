"""Simulated hardware: what clients compute with, and how fast.

RaFFM's paper names five settings by the shares of five devices
(experiments/system_heterogeneous of its code). The speeds that its authors
assumed are not published. Those here are ours, from the makers' data sheets,
and assume that training reaches a third of the peak. A TOML file names your own
devices, a table for each:

  [phone]
  flops = 1e11       # Floating-point operations per second that training reaches.
  memory = '2GiB'    # Or a number of bytes.
  uplink = 2.5e6     # Bytes per second.
  downlink = 12.5e6
  share = 0.8        # Of the clients.
"""

from collections.abc import Mapping
import dataclasses
import math
import pathlib
import re
import sys
import tomllib

import numpy as np

from fedjax_tune.files import paths


@dataclasses.dataclass(frozen=True)
class Device:
  """One kind of hardware.

  Attributes:
    name: What it is called.
    flops: Floating-point operations per second that training reaches.
    memory: Bytes that training may use.
    uplink: Bytes per second to the server.
    downlink: Bytes per second from the server.
  """

  name: str
  flops: float
  memory: float
  uplink: float
  downlink: float


_HOME = {'uplink': 2.5e6, 'downlink': 12.5e6}  # 20 and 100 Mbit/s.
_SITE = {'uplink': 125e6, 'downlink': 125e6}  # 1 Gbit/s.

DEVICES = {
  # Four Cortex-A72 at 1.5 GHz, 8 float32 operations a cycle; 4 GB.
  'rpi4': Device('rpi4', 48e9 / 3, 3e9, **_HOME),
  # Four Cortex-A76 at 2.4 GHz, 16 operations a cycle; 8 GB.
  'rpi5': Device('rpi5', 154e9 / 3, 6e9, **_HOME),
  # A laptop's RTX 3050 Ti, 5.3 TFLOP/s; 4 GB.
  'xps15': Device('xps15', 5.3e12 / 3, 3.5e9, **_HOME),
  # Jetson AGX Orin, 5.3 TFLOP/s; 32 GB shared.
  'orin': Device('orin', 5.3e12 / 3, 24e9, **_HOME),
  # V100, 15.7 TFLOP/s; 16 GB.
  'v100': Device('v100', 15.7e12 / 3, 15e9, **_SITE),
}

# Setting -> device -> share of the clients.
SETTINGS: dict[str, dict[str, float]] = {
  'xsmall': {'rpi4': 0.8, 'rpi5': 0.2},
  'small': {'rpi4': 0.4, 'rpi5': 0.4, 'xps15': 0.2},
  'medium': {'rpi5': 0.3, 'xps15': 0.4, 'orin': 0.3},
  'large': {'xps15': 0.2, 'orin': 0.4, 'v100': 0.4},
  'xlarge': {'orin': 0.1, 'v100': 0.9},
}

_UNITS = {'': 1, 'B': 1} | {
  name: base**power
  for base, names in ((1000, 'kB MB GB TB'), (1024, 'KiB MiB GiB TiB'))
  for power, name in enumerate(names.split(), 1)
}


def assign(named: str, num_clients: int) -> tuple[Device, ...]:
  """Gives each client a device, in the setting's shares.

  The order of clients has no meaning, so the first clients get the first
  device; clients left over by rounding get the last one.

  Args:
    named: A key of `SETTINGS`, or a TOML file; '' leaves the hardware open.
    num_clients: Number of clients.

  Raises:
    ValueError: There is no such setting, or something is wrong in the file.
    FileNotFoundError: There is no such file.
  """
  if not named:
    return ()
  if named.endswith('.toml'):
    shares = read(paths.here('clients.devices', named))
  elif named in SETTINGS:
    shares = {DEVICES[name]: n for name, n in SETTINGS[named].items()}
  else:
    raise ValueError(
      f'clients.devices={named!r} must be one of {", ".join(SETTINGS)}, or a'
      ' file that ends in .toml.'
    )
  found = tuple(shares)
  ends = np.round(np.cumsum(list(shares.values())) * num_clients)
  which = np.searchsorted(ends, np.arange(num_clients), side='right')
  return tuple(found[min(i, len(found) - 1)] for i in which)


def read(path: pathlib.Path) -> dict[Device, float]:
  """Reads the user's own devices, with the share of clients that has each.

  Raises:
    ValueError: The file is no TOML, has no device, or a field of one is
      missing, unknown or out of range; names the file, device and field.
    FileNotFoundError: There is no such file.
  """
  where = f'clients.devices={str(path)!r}'
  if not path.is_file():
    raise FileNotFoundError(f'{where}: there is no such file.')
  try:
    tables = tomllib.loads(path.read_text(encoding='utf-8'))
  except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
    raise ValueError(f'{where} must be a TOML file: {error}.') from error
  devices = dict(_device(where, name, own) for name, own in tables.items())
  total = sum(devices.values())
  if not math.isclose(total, 1, abs_tol=1e-6):
    raise ValueError(
      f'{where}: the shares must add up to 1; they add up to {total:g}.'
    )
  return devices


_FIELDS = ('flops', 'memory', 'uplink', 'downlink', 'share')


def _device(where: str, name: str, own: object) -> tuple[Device, float]:
  """Reads one table of a file."""
  if not isinstance(own, Mapping):
    raise ValueError(f'{where}: {name}={own!r} must be a table, [{name}].')
  for field in own:
    if field not in _FIELDS:
      raise ValueError(
        f'{where}: {name}.{field} must be one of {", ".join(_FIELDS)}.'
      )
  values = {}
  for field in _FIELDS:
    if field not in own:
      raise ValueError(f'{where}: {name} must have the field {field}.')
    place, value = f'{where}: {name}.{field}', own[field]
    if field == 'memory' and isinstance(value, str):
      value = parse_bytes(value, place)
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    # An int may be too large for a float, and is compared as what it is.
    if not plain or not 0 < value <= sys.float_info.max:
      raise ValueError(f'{place}={value!r} must be a number above 0.')
    values[field] = float(value)
  share = values.pop('share')
  return Device(name, **values), share


def parse_bytes(text: str, place: str) -> float:
  """Reads an amount of memory: '2GiB', '512 MiB', '3e9'.

  Args:
    text: The amount.
    place: Where the text is, for messages.

  Raises:
    ValueError: The text is no amount of memory.

  >>> parse_bytes('1.5 KiB', 'memory')
  1536.0
  """
  number = re.fullmatch(r'\s*([\d.]+(?:[eE]\+?\d+)?)\s*([A-Za-z]*)\s*', text)
  try:
    if number and number[2] in _UNITS:
      found = float(number[1]) * _UNITS[number[2]]
      if math.isfinite(found):
        return found
  except ValueError:
    pass
  raise ValueError(
    f'{place}={text!r} must be a number with a unit: '
    f'{", ".join(list(_UNITS)[1:])}.'
  )

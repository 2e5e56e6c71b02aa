"""Simulated hardware: what clients compute with, and how fast.

RaFFM's paper names five settings by the shares of five devices
(experiments/system_heterogeneous of its code). The speeds that its authors
assumed are not published: those here are this package's, from the makers' data
sheets, with a third of the peak as what training reaches.
"""

import dataclasses

import numpy as np


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


def assign(setting: str, num_clients: int) -> tuple[Device, ...]:
  """Gives each client a device, in the setting's shares.

  Clients' numbers mean nothing, so the first clients may have the first device;
  those left over by rounding get the last one.

  Args:
    setting: A key of `SETTINGS`; '' leaves the hardware open.
    num_clients: How many.

  Raises:
    ValueError: There is no such setting.
  """
  if not setting:
    return ()
  if setting not in SETTINGS:
    raise ValueError(
      f'clients.devices={setting!r} must be one of {", ".join(SETTINGS)}.'
    )
  names, shares = zip(*SETTINGS[setting].items(), strict=True)
  ends = np.round(np.cumsum(shares) * num_clients)
  which = np.searchsorted(ends, np.arange(num_clients), side='right')
  return tuple(DEVICES[names[min(i, len(names) - 1)]] for i in which)

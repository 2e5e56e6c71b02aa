"""What a benchmark ran on."""

import pathlib
import platform

import jax


def cpu() -> str:
  """Returns the model name of the processor, or what the platform calls it."""
  info = pathlib.Path('/proc/cpuinfo')
  if info.exists():
    for line in info.read_text().splitlines():
      if line.startswith('model name'):
        return line.partition(':')[2].strip()
  return platform.processor() or platform.machine()


def describe() -> dict[str, str]:
  """Returns processor, device and version of JAX."""
  return {
    'cpu': cpu(),
    'device': jax.devices()[0].device_kind,
    'jax': jax.__version__,
  }

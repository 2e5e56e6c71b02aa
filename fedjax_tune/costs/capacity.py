"""Checks whether an experiment can fit this machine's memory at all.

The checks use lower bounds: a run that they refuse cannot fit. `launch.inspect`
says what a run really takes, which is more.
"""

from collections.abc import Mapping
import os
import pathlib
import resource
import sys

import jax

from fedjax_tune import config
from fedjax_tune.report import tables

_FLOAT, _INT, _INDEX = 4, 4, 8


def machine_memory() -> int:
  """Returns the bytes of this machine's memory."""
  return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')


def process_memory() -> tuple[int, int]:
  """Returns the bytes that this process holds, and the most it has held."""
  unit = 1 if sys.platform == 'darwin' else 1024
  most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
  pages = pathlib.Path('/proc/self/statm')
  if not pages.exists():
    return most, most
  now = int(pages.read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')
  return now, max(now, most)


def check_model(
  experiment: config.Experiment, sizes: Mapping[str, int]
) -> None:
  """Checks the memory of a model and of what trains in it.

  Args:
    experiment: The configuration.
    sizes: Size of each axis, of an example too; see `adapted.axis_sizes`.

  Raises:
    ValueError: The model cannot fit; the message names the fields that make it
      so large.
  """
  tune, batch = experiment.model.tune, experiment.local.batch_size
  lora, cfg = experiment.lora, experiment.fedadapter
  embed, depth = sizes['embed'], sizes['layer']
  # Whichever of A and B is at least as wide as the model, and its delta.
  if tune == 'lora' and lora.targets:
    needed = 2 * lora.rank * embed * depth * len(lora.targets) * _FLOAT
    check(f'lora.rank={lora.rank}', 'the adapters', needed)
  if tune == 'adapter':
    each = 2 * embed * cfg.rank + cfg.branches * cfg.rank**2
    needed = 2 * each * depth * _FLOAT
    fields = f'fedadapter.rank={cfg.rank} and branches={cfg.branches}'
    check(fields, 'the adapters', needed)
  # The scores of one block are held for the backward pass.
  needed = batch * sizes['heads'] * sizes['token'] * sizes['key'] * _FLOAT
  fields = f'local.batch_size={batch} with {sizes["key"]} tokens of an example'
  check(fields, 'attention', needed)


def check_round(
  experiment: config.Experiment,
  clients: int,
  steps: int,
  sizes: Mapping[str, int],
) -> None:
  """Checks the memory of the examples of two rounds, this one and the next.

  Args:
    experiment: The configuration.
    clients: Clients of a round.
    steps: Local steps of the client that takes the most.
    sizes: As for `check_model`; a 'patch' of 0 is a text.

  Raises:
    ValueError: The examples cannot fit.
  """
  cfg = experiment.local
  example = experiment.data.image_size**2 * 3
  if not sizes['patch']:
    example = 2 * min(experiment.data.lengths) * _INT
  needed = 2 * clients * steps * cfg.batch_size * example
  check(
    f'local.batch_size={cfg.batch_size}, {steps} local steps and {clients}'
    ' clients',
    'the examples of two rounds',
    needed,
  )


def check_shots(cfg: config.Clients) -> None:
  """Checks how many examples are dealt out, if that has no other bound.

  Raises:
    ValueError: The indices of the examples alone cannot fit.
  """
  if cfg.partition == 'k_shot':
    fields = f'clients.shots={cfg.shots} and clients.count={cfg.count}'
    check(fields, 'the examples dealt out', cfg.shots * cfg.count * _INDEX)
  if cfg.replace and cfg.sizes:
    fields = f'clients.sizes={cfg.sizes} and clients.count={cfg.count}'
    each = sum(cfg.sizes) / len(cfg.sizes)
    needed = int(each * cfg.count) * _INDEX
    check(fields, 'the examples dealt out', needed)


def check_program(name: str, temporary: int, memory: int | None = None) -> None:
  """Checks the memory of a compiled program.

  Args:
    name: Whose program it is.
    temporary: Bytes that it takes while it runs, from the compiler.
    memory: Bytes available; None asks the device.

  Raises:
    ValueError: It does not fit into memory.
  """
  if temporary > (memory := memory or _device_memory()):
    raise ValueError(
      f'a local step of clients with {name} does not fit: it takes'
      f' {tables.human_bytes(temporary)} of memory, and the device has'
      f' {tables.human_bytes(memory)}. A smaller local.batch_size, engine.slab'
      ' or data.image_size takes less, and so does model.remat=True.'
    )


def _device_memory() -> int:
  """Returns a device's memory in bytes; a CPU has the machine's."""
  stats = jax.local_devices()[0].memory_stats() or {}
  return stats.get('bytes_limit') or machine_memory()


def check(fields: str, what: str, needed: int) -> None:
  """Refuses what takes more memory than the machine has.

  Args:
    fields: The fields of the configuration that make it so large.
    what: What takes the memory.
    needed: The least number of bytes.

  Raises:
    ValueError: It cannot fit.
  """
  if needed > (there := machine_memory()):
    raise ValueError(
      f'{fields}: {what} would take at least {tables.human_bytes(needed)}; this'
      f' machine has {tables.human_bytes(there)}.'
    )

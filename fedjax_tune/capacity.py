"""Whether what an experiment asks for fits the machine, before it is made."""

import os

import jax
import numpy as np

from fedjax_tune.engine.plan import Planner

# A round is trained while the next one is read.
_ROUNDS_IN_MEMORY = 2


def check_rounds(planner: Planner, memory: int | None = None) -> None:
  """Checks what the batches of rounds take.

  Args:
    planner: Of the run.
    memory: Bytes that there are; None asks the machine.

  Raises:
    ValueError: The batches of a round do not fit into memory.
  """
  e, cfg = planner.experiment, planner.experiment.clients
  uniform = cfg.cohort == 'uniform'
  clients = cfg.cohort_size if uniform else len(np.unique(planner.domains))
  steps, batch = int(planner.steps.max()), e.local.batch_size
  one = planner.examples.read(np.zeros(1, int), 0)
  example = sum(leaf.nbytes for leaf in jax.tree.leaves(one))
  needed = _ROUNDS_IN_MEMORY * clients * steps * batch * example
  if needed > (memory := memory or _memory()):
    raise ValueError(
      f'local.batch_size={batch} does not fit: {clients} clients of {steps}'
      f' steps of {batch} examples of {example:,} bytes, for two rounds, take'
      f' {_gib(needed)}, and the machine has {_gib(memory)}.'
    )


def check_program(name: str, temporary: int, memory: int | None = None) -> None:
  """Checks what a compiled program takes.

  Args:
    name: Whose program it is.
    temporary: Bytes that it takes while it runs, from the compiler.
    memory: Bytes that there are; None asks the device.

  Raises:
    ValueError: It does not fit into memory.
  """
  if temporary > (memory := memory or _device_memory()):
    raise ValueError(
      f'a local step of clients with {name} does not fit: it takes'
      f' {_gib(temporary)} of memory, and the device has {_gib(memory)}. Less'
      ' take a smaller local.batch_size, engine.slab or data.image_size, and'
      ' model.remat=True.'
    )


def _memory() -> int:
  """Returns the machine's memory in bytes."""
  return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')


def _device_memory() -> int:
  """Returns a device's memory in bytes; a CPU has the machine's."""
  stats = jax.local_devices()[0].memory_stats() or {}
  return stats.get('bytes_limit') or _memory()


def _gib(count: int) -> str:
  return f'{count / 2**30:,.1f} GiB'

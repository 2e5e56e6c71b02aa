"""The programs of slabs, compiled ahead of time, one for each signature."""

from collections.abc import Callable, Mapping
import concurrent.futures
import ctypes
import os

import jax

from fedjax_tune.engine.schedule import Schedule
from fedjax_tune.engine.slabs import Signature
from fedjax_tune.engine.step import Own, Result, Shared, SlabStep


def _trim() -> None:
  """Returns freed memory to the system, if the C library can.

  Otherwise glibc keeps the memory that a compiler freed: 260 MB after six
  programs.
  """
  trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)
  if trim is not None:
    trim(0)


class Programs:
  """The compiled slab programs of a run, one per signature.

  Attributes:
    compiled: The programs by signature; its length is the compile count.
    results: The shapes of each program's results.
  """

  def __init__(self, step: SlabStep) -> None:
    self._jitted = jax.jit(step, static_argnums=(0, 1))
    self.compiled: dict[Signature, jax.stages.Compiled] = {}
    self.results: dict[Signature, Result] = {}
    self._scratch: dict[Signature, int] = {}

  def compile(
    self,
    schedules: Mapping[Signature, Schedule],
    arguments: Callable[[Signature], tuple[Shared, Own]],
  ) -> None:
    """Compiles every signature, a few at a time.

    Args:
      schedules: How each signature's slabs share the devices.
      arguments: Gives a signature's arguments (arrays or ShapeDtypeStructs)
        after the static ones.
    """

    def build(item):
      sig, schedule = item
      lowered = self._jitted.lower(sig, schedule, *arguments(sig))
      compiled = lowered.compile()
      _trim()
      return sig, compiled, lowered.out_info

    # XLA's CPU compiler takes half a gigabyte for a program, and has threads of
    # its own: on two cores, six programs side by side took 4.1 GB and 65
    # seconds of CPU time, one after another 1.1 GB and 42.
    pool = concurrent.futures.ThreadPoolExecutor(
      (os.cpu_count() or 2) // 2 or 1
    )
    try:
      for sig, compiled, result in pool.map(build, schedules.items()):
        self.compiled[sig], self.results[sig] = compiled, result
    finally:
      # Whoever interrupts does not wait for programs that nobody needs.
      pool.shutdown(wait=False, cancel_futures=True)

  def temp_bytes(self) -> dict[Signature, int]:
    """Returns the scratch memory of each program, by the compiler's figure."""
    for sig in self.compiled.keys() - self._scratch.keys():
      # Takes 40 ms of a program, and every class of clients asks for it.
      memory = self.compiled[sig].memory_analysis()
      assert memory is not None, 'no backend that JAX comes with leaves it out'
      self._scratch[sig] = memory.temp_size_in_bytes
    return dict(self._scratch)

  def __call__(self, sig: Signature, shared: Shared, own: Own) -> Result:
    """Runs the program of a signature."""
    return self.compiled[sig](shared, own)

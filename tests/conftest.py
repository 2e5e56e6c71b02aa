"""Every test runs on two CPU devices."""

import os

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

from absl import flags
import chex
import jax
import pytest

jax.config.update('jax_num_cpu_devices', 2)
flags.FLAGS.mark_as_parsed()


@pytest.fixture(autouse=True)
def _fresh_trace_counter():
  # chex counts traces for the whole process.
  chex.clear_trace_counter()

"""Every test runs on two CPU devices."""

import os

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# The tests compile much and compute little: plain code is there sooner. With
# XLA_FLAGS set, to nothing for instance, they run what users run.
if os.environ['JAX_PLATFORMS'] == 'cpu':
  os.environ.setdefault(
    'XLA_FLAGS',
    '--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false',
  )

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

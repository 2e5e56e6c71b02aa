"""Every test runs on two CPU devices."""

import os

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# The tests compile much and compute little: plain code is there sooner. With
# XLA_FLAGS set, to nothing for instance, they run what users run.
if os.environ['JAX_PLATFORMS'] == 'cpu':
  os.environ.setdefault(
    'XLA_FLAGS',
    '--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false'
    # Two workers compile at once already.
    ' --xla_cpu_parallel_codegen_split_count=1',
  )

import gc
import itertools
import pathlib
import socket
import sys

from absl import flags
import chex
import jax
import pytest

jax.config.update('jax_num_cpu_devices', 2)
# Traced programs are many small objects that stay; looking through them for
# garbage every 700 took a twentieth of the time.
gc.set_threshold(50_000, 20, 20)
flags.FLAGS.mark_as_parsed()


@pytest.fixture(autouse=True)
def _fresh_trace_counter():
  # chex counts traces for the whole process.
  chex.clear_trace_counter()


# Each compiled program takes some mappings of the process, of which Linux has
# 65,530 for it; then XLA aborts.
_MAPPINGS = pathlib.Path('/proc/self/maps')
_MANY = 30_000
_TESTS = itertools.count()


@pytest.fixture(autouse=True)
def _few_programs():
  yield
  # Counting takes long where there are many.
  if next(_TESTS) % 16 == 0 and _MAPPINGS.exists():
    with _MAPPINGS.open('rb') as lines:
      mappings = sum(1 for _ in lines)
    if mappings > _MANY:
      jax.clear_caches()
      gc.collect()


@pytest.fixture(autouse=True)
def _same_path():
  """Experiment files find their neighbours from then on; tests must not."""
  before = list(sys.path)
  yield
  sys.path[:] = before


def _refuse(*args, **_kwargs):
  raise AssertionError(f'the network was used: {args}')


@pytest.fixture(autouse=True)
def _no_network(request, monkeypatch):
  """Whatever needs a network is marked slow."""
  if not request.node.get_closest_marker('slow'):
    for name in ('connect', 'connect_ex'):
      monkeypatch.setattr(socket.socket, name, _refuse)
    for name in ('getaddrinfo', 'create_connection', 'gethostbyname'):
      monkeypatch.setattr(socket, name, _refuse)

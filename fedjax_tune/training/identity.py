"""What identifies a run: its experiment, data, weights and machine.

Each checkpoint stores this identity. A run that continued with anything else
would end with numbers that no single run produces.
"""

from collections.abc import Sequence
import dataclasses
import functools
import importlib.metadata
import itertools
import json
import os
import pathlib
import platform
import sys
from typing import Any

import jax
import numpy as np

import fedjax_tune
from fedjax_tune.data import digest
from fedjax_tune.data.corpus import Corpus
from fedjax_tune.engine import hosts
from fedjax_tune.training import aligned, build, workdir
from fedjax_tune.typing import Json, Record

# The settings of jax.config that change draws or numbers.
_SETTINGS = (
  'jax_enable_x64',
  'jax_default_prng_impl',
  'jax_threefry_partitionable',
  'jax_random_seed_offset',
  'jax_default_matmul_precision',
  'jax_numpy_dtype_promotion',
  'jax_softmax_custom_jvp',
  'jax_disable_jit',
)
_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'numpy', 'pillow')

Identity = Record

# How many clients `partition.json` lists.
_LISTED = 10_000


def of(setup: build.Setup) -> Identity:
  """Returns the identity of a setup in this process, as JSON data.

  Returns:
    `experiment`, the fields; `content`, hashes of data, weights and partition;
    `settings` of JAX; `machine`: packages, code (the user's too) and devices;
    and `earlier` machines, which `follow` adds.
  """
  own = {
    'experiment': dataclasses.asdict(setup.experiment),
    'content': {
      'training data': _described(setup.train),
      'test data': _described(setup.test),
      'weights': setup.weights,
      'partition': digest.of(partition(setup))[:16],
      **_hardware(setup),
      **aligned.identify(aligned.of(setup.algorithm)),
    },
    'settings': settings(),
    'machine': {
      **machine(setup.experiment.engine.devices),
      **imported(setup.experiment.imports),
    },
    'earlier': [],
  }
  return json.loads(json.dumps(own))


def check(
  there: Identity, here: Identity, where: str, *, inexact: bool = False
) -> None:
  """Checks that a run may go on from a checkpoint.

  Args:
    there: The identity in the checkpoint.
    here: That of this process.
    where: Names the checkpoint.
    inexact: Allow another machine: other packages, code or devices.

  Raises:
    ValueError: They differ; with a line for each difference.
  """
  workdir.check_same(there['experiment'], here['experiment'], True, where)
  check_content(there, here, where)
  if lines := workdir.differences(there['settings'], here['settings']):
    raise ValueError(
      f'{where} was written with other settings of JAX, which change what is '
      'drawn or computed; set them as they were:\n' + '\n'.join(lines)
    )
  lines = workdir.differences(there['machine'], here['machine'])
  if lines and not inexact:
    raise ValueError(
      f'{where} was written with other packages or on another machine; the run '
      'would not end with the numbers of an uninterrupted one. --inexact goes '
      'on all the same:\n' + '\n'.join(lines)
    )


def check_content(there: Identity, here: Identity, where: str) -> None:
  """Checks that data, weights and partition are those of a checkpoint.

  Raises:
    ValueError: They are not; with a line for each difference.
  """
  if lines := workdir.differences(there['content'], here['content']):
    raise ValueError(
      f'{where} was trained on other data or weights; bring back what has '
      'changed, or start a new run in another workdir:\n' + '\n'.join(lines)
    )


def check_hosts(own: Identity) -> None:
  """Checks that all hosts of a run have the same data and are of one kind.

  Raises:
    ValueError: They differ; with a line for each difference.
  """
  first, *others = hosts.exchange(own)
  for host, other in enumerate(others, 1):
    lines = [
      line
      for part in ('experiment', 'content', 'settings', 'machine')
      for line in workdir.differences(first[part], other[part])
    ]
    if lines:
      raise ValueError(
        f'host {host} (here) must be like host 0 (there), and differs:\n'
        + '\n'.join(lines)
      )


def follow(there: Identity, here: Identity, rounds: int) -> Identity:
  """Returns an identity that remembers earlier machines.

  Args:
    there: The identity in the checkpoint from which a run continues.
    here: That of this process.
    rounds: Rounds of the checkpoint.
  """
  earlier = list(there['earlier'])
  if there['machine'] != here['machine']:
    earlier.append({'rounds': rounds, 'machine': there['machine']})
  return {**here, 'earlier': earlier}


def partition(setup: build.Setup) -> Json:
  """Returns who holds what: the content of `partition.json`.

  If there are too many clients to read, it is their number and a hash.
  """
  owned, budgets = setup.partition.indices, list(setup.budgets)
  if len(owned) > _LISTED:
    found = digest.of(owned.positions, owned.offsets, np.array(budgets))
    return {'clients': len(owned), 'sha256': found}
  return {'indices': [held.tolist() for held in owned], 'budgets': budgets}


def _hardware(setup: build.Setup) -> dict[str, str]:
  """Returns a hash of the clients' devices, if any, to notice changes."""
  fields = {device: dataclasses.asdict(device) for device in set(setup.devices)}
  devices: list[Any] = [fields[device] for device in setup.devices]
  if len(devices) > _LISTED:
    # Neighbours have the same one, so that this is short.
    runs = itertools.groupby(setup.devices)
    devices = [[fields[device], len(list(run))] for device, run in runs]
  return {'devices': digest.of(devices)[:16]} if devices else {}


def settings() -> Json:
  """Returns the settings of JAX that change draws or numbers."""
  return {name: getattr(jax.config, name, None) for name in _SETTINGS}


def machine(devices: int = 0) -> Json:
  """Returns what a run's last bits may depend on besides its settings.

  Args:
    devices: `engine.devices`.
  """
  first = jax.local_devices()[0]
  kind = f'{first.platform} {first.device_kind} {first.client.platform_version}'
  own: Json = {'device': kind}
  if first.platform == 'cpu':
    # LAPACK's results depend on the number of threads.
    own = {'device': f'cpu {_processor()}', 'cores': _cores()}
  own['devices'] = devices or jax.local_device_count()
  own['hosts'] = hosts.count()
  own['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '')
  own |= {name: importlib.metadata.version(name) for name in _PACKAGES}
  return own | {'fedjax_tune': f'{fedjax_tune.__version__}, code {_code()}'}


def imported(names: Sequence[str]) -> Json:
  """Returns a hash of each of the user's own modules, which may train.

  Args:
    names: An experiment's `imports`; this imports them.
  """
  files = {n: getattr(sys.modules.get(n), '__file__', None) for n in names}
  return {
    f'module {name}': digest.of(pathlib.Path(file).read_bytes())[:16]
    for name, file in files.items()
    if file
  }


def _described(data: Corpus) -> str:
  return f'{len(data)} examples, {data.fingerprint()[:16]}'


def _processor() -> str:
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    lines = []
  models = [x.partition(':')[2].strip() for x in lines if 'model name' in x]
  return f'{platform.machine()} {(models or [platform.processor()])[0]}'


def _cores() -> int:
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


@functools.cache
def _code() -> str:
  """Hashes the package's source files."""
  folder = pathlib.Path(fedjax_tune.__file__).parent
  files = sorted(folder.rglob('*.py'))
  return digest.of(
    {str(path.relative_to(folder)): path.read_bytes() for path in files}
  )[:16]

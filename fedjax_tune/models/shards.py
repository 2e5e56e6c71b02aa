"""Reads the safetensors files of a folder, chosen as in transformers."""

from collections.abc import Sequence
import pathlib
import re

import numpy as np
import safetensors

from fedjax_tune.files import pointers
from fedjax_tune.models import hub_fields

_FILE = 'model.safetensors'
_INDEX = 'model.safetensors.index.json'
_ADAPTERS = (
  'adapter_config.json',
  'adapter_model.safetensors',
  'adapter_model.bin',
)
# Weights in formats that are not read; those of torch can run code.
_OTHERS = (
  'pytorch_model.bin',
  'pytorch_model.bin.index.json',
  'tf_model.h5',
  'flax_model.msgpack',
)
# Types of safetensors that NumPy can hold.
_TYPES = re.compile('BOOL|[UI](8|16|32|64)|B?F16|F32|F64')


def read(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads the tensors of a folder, by name.

  `model.safetensors` wins over an index, which may be an older model's.

  Raises:
    FileNotFoundError: The file, the index's shards, or both are missing.
    ValueError: A file is corrupt, is outside of the folder, or lacks tensors
      that the index promises; a tensor is in two shards, or has a type of
      quantised weights; or an adapter is beside the model.
  """
  for name in _ADAPTERS:
    if (folder / name).exists():
      raise ValueError(
        f'{folder / name} is an adapter of peft, which is not applied to the '
        'model beside it: merge it (merge_and_unload, then save_pretrained), or '
        'move it away.'
      )
  promised = {}
  if (folder / _FILE).is_file():
    paths = [folder / _FILE]
  elif (folder / _INDEX).is_file():
    promised = _read_index(folder)
    paths = [folder / shard for shard in sorted(set(promised.values()))]
  else:
    raise FileNotFoundError(_explain_missing(folder))
  tensors: dict[str, np.ndarray] = {}
  for path in paths:
    found = _read_file(path)
    if twice := sorted(found.keys() & tensors.keys()):
      raise ValueError(f'{path}: tensor {twice[0]!r} is in another shard, too.')
    for name in found if promised else ():
      if promised.get(name, path.name) != path.name:
        raise ValueError(
          f'{path}: tensor {name!r} is here; the index says {promised[name]!r}.'
        )
    tensors |= found
  if missing := sorted(promised.keys() - tensors.keys()):
    raise ValueError(
      f'{folder / promised[missing[0]]}: tensor {missing[0]!r} is missing, which '
      'the index says is here.'
    )
  return tensors


def _explain_missing(folder: pathlib.Path) -> str:
  message = f'{folder / _FILE} is missing.'
  others = [name for name in _OTHERS if (folder / name).exists()]
  if others:
    message += (
      f' There is {others[0]}, which is not read; save the model as safetensors '
      '(save_pretrained of transformers does).'
    )
  elif found := sorted(path.name for path in folder.glob('*.safetensors')):
    message += (
      f' There is {found[0]}; the weights must be called {_FILE}, or {_INDEX} must '
      'list their files.'
    )
  return message


def _read_index(folder: pathlib.Path) -> dict[str, str]:
  """Returns the shard of each tensor."""
  path = folder / _INDEX
  shards = hub_fields.read_json(path).get('weight_map')
  if not isinstance(shards, dict) or not shards:
    raise ValueError(f'{path} has no weight_map.')
  for name, shard in shards.items():
    if not isinstance(shard, str):
      raise ValueError(
        f'{path}: weight_map: {name!r} must name a file, not {shard!r}.'
      )
  _check_shards(folder, sorted(set(shards.values())))
  return shards


def _check_shards(folder: pathlib.Path, shards: Sequence[str]) -> None:
  """Checks that shards are files of the folder, each under one name."""
  path, seen = folder / _INDEX, {}
  homes = [folder.resolve()]
  # The hub's cache keeps files beside its snapshots, and links to them.
  if folder.resolve().parent.name == 'snapshots':
    homes.append(folder.resolve().parent.parent / 'blobs')
  for shard in shards:
    plain = not set(shard) & set('/\\\0') and shard.endswith('.safetensors')
    if not plain or (folder / shard).resolve().parent not in homes:
      raise ValueError(
        f'{path}: weight_map: {shard!r} must be a .safetensors file in the same '
        'folder.'
      )
    other = seen.setdefault(shard.lower(), shard)
    if other != shard:
      raise ValueError(
        f'{path}: weight_map: {other!r} and {shard!r} differ in case alone.'
      )


def _read_file(path: pathlib.Path) -> dict[str, np.ndarray]:
  if not path.is_file():
    raise FileNotFoundError(f'{path} is missing.')
  pointers.check(path)
  try:
    with safetensors.safe_open(path, framework='np') as file:
      names = list(file.keys())
      for name in names:
        kind = file.get_slice(name).get_dtype()
        if not _TYPES.fullmatch(kind):
          raise ValueError(
            f'{path}: tensor {name!r} is of type {kind}; weights must be of F16, '
            'BF16, F32 or F64: others must be dequantised first.'
          )
      return {name: file.get_tensor(name) for name in names}
  except safetensors.SafetensorError as error:
    raise ValueError(
      f'{path} is not a safetensors file, or is cut short: {error}'
    ) from error

"""The adapter of Hugging Face's peft from which a run starts: `lora.init`."""

from collections.abc import Mapping, Sequence
import dataclasses
import math
import pathlib
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from fedjax_tune import config
from fedjax_tune.data import json_files
from fedjax_tune.files import paths
from fedjax_tune.models import (
  adapter_files,
  backbone,
  families,
  foundation,
  heads,
  layouts,
)
from fedjax_tune.models import tensors as checking
from fedjax_tune.models.backbone import Pretrained
from fedjax_tune.typing import Json, Path

_PREFIX = 'base_model.model.'
# Fields of adapter_config.json that would make another adapter, unless they say
# one of these.
_NEUTRAL: Mapping[str, tuple[object, ...]] = {
  'alora_invocation_tokens': (None,),
  'alpha_pattern': (None, {}),
  'arrow_config': (None,),
  'bias': (None, 'none'),
  'corda_config': (None,),
  'eva_config': (None,),
  'fan_in_fan_out': (None, False),
  'layer_replication': (None,),
  'lora_bias': (None, False),
  'rank_pattern': (None, {}),
  'target_parameters': (None, []),
  'trainable_token_indices': (None,),
  'use_dora': (None, False),
  'use_qalora': (None, False),
}


def load(cfg: config.Lora, weights: Pretrained) -> Pretrained:
  """Returns a pretrained model with the adapter that `lora.init` names.

  A head of the adapter is kept apart; `heads.put` adds it to the model.

  Raises:
    FileNotFoundError: A file is missing.
    ValueError: It is no LoRA, belongs to another model, or differs from section
      `lora`.
  """
  given = cfg.init
  folder = paths.here('lora.init', given)
  if not folder.exists():
    raise FileNotFoundError(f'lora.init={given!r}: {folder} does not exist.')
  if not (folder / adapter_files.CONFIG).is_file():
    raise FileNotFoundError(
      f'lora.init={given!r} must be a folder of peft: it has no'
      f' {adapter_files.CONFIG}.'
    )
  said = json_files.read_object(folder / adapter_files.CONFIG)
  try:
    found = safetensors.numpy.load_file(folder / adapter_files.TENSORS)
  except safetensors.SafetensorError as error:
    raise ValueError(f'{folder / adapter_files.TENSORS}: {error}.') from error
  found = {name.removeprefix(_PREFIX): x for name, x in found.items()}
  _check_kind(given, said, weights, found)
  _check(cfg, said, folder)
  flat = foundation.flat(weights.params)
  flat |= _read_lora(cfg, weights, found, folder)
  head = heads.read(weights.config, found, str(folder))
  if found:
    raise ValueError(
      f'lora.init={given!r}: tensor {min(found)!r} is no LoRA of the model'
      f' {weights.source!r}, and no head of it.'
    )
  labels = None
  if (record := folder / heads.EXPORTED).is_file():
    labels = tuple(json_files.read_object(record).get('labels', ()))
  return dataclasses.replace(
    weights,
    params=foundation.nest(flat),
    head=head,
    labels=labels,
    head_source=str(folder),
  )


def _check_kind(
  given: str, said: Json, weights: Pretrained, found: Mapping[str, np.ndarray]
) -> None:
  """Refuses an adapter none of whose tensors belongs to the model's maps."""
  names = [name for name in found if name.endswith('.lora_A.weight')]
  paths = backbone.variables(weights.config)
  if not names or any(
    _is_adapted(weights.config, path[:-1], found)
    for path in paths
    if path[-1] == 'kernel'
  ):
    return
  kind = 'another model'
  for family, one in families.FAMILIES.items():
    if all(name.startswith(one.prefix) for name in names):
      kind = f'a {family}'
  base = said.get('base_model_name_or_path')
  raise ValueError(
    f'lora.init={given!r} is an adapter of {kind}{f" ({base})" if base else ""},'
    f' but the model is a {weights.config.family} ({weights.source}): both must'
    ' be of one kind.'
  )


def _check(cfg: config.Lora, said: Json, folder: pathlib.Path) -> None:
  """Refuses settings that the package lacks or that differ from the run's."""
  path = folder / adapter_files.CONFIG
  if said.get('peft_type') != 'LORA':
    raise ValueError(
      f'{path}: peft_type={said.get("peft_type")!r} must be LORA for lora.init.'
    )
  for name, values in _NEUTRAL.items():
    if said.get(name) not in values:
      raise ValueError(f'{path}: {name}={said[name]!r} is not supported.')
  if (rank := said.get('r')) != cfg.rank:
    raise ValueError(f'lora.rank={cfg.rank} must be {rank}, as {path} has it.')
  rank, alpha = cfg.rank, said.get('lora_alpha')
  if not isinstance(alpha, int | float) or alpha <= 0:
    raise ValueError(f'{path}: lora_alpha={alpha!r} must be a number above 0.')
  # Stabilised LoRA divides by the root.
  scale = alpha / (math.sqrt(rank) if said.get('use_rslora') else rank)
  if not math.isclose(scale, cfg.alpha / cfg.rank, rel_tol=1e-6):
    raise ValueError(
      f'lora.alpha={cfg.alpha:g} must be {scale * rank:g}, as {path} has it.'
    )


def _read_lora(
  cfg: config.Lora,
  weights: Pretrained,
  found: dict[str, np.ndarray],
  folder: pathlib.Path,
) -> dict[Path, np.ndarray]:
  """Takes A and B of each adapted map from the tensors found."""
  read: dict[Path, np.ndarray] = {}
  given = str(folder)
  shapes = backbone.variables(weights.config)
  kernels = {path[:-1]: v for path, v in shapes.items() if path[-1] == 'kernel'}
  there = {p for p in kernels if _is_adapted(weights.config, p, found)}
  _check_targets(cfg, there, kernels, folder)
  for path in there:
    stack, kernel = int(path[0] == 'blocks'), kernels[path].shape
    num_ins = len(kernel) - 1 - stack if path[-1] == 'proj' else 1
    ins, outs = kernel[stack : stack + num_ins], kernel[stack + num_ins :]
    shape_a = (*kernel[:stack], *ins, cfg.rank)
    shape_b = (*kernel[:stack], cfg.rank, *outs)
    places = layouts.place_lora(weights.config, path, shape_a, shape_b)
    for leaf, place, shape in zip(
      ('lora_a', 'lora_b'), places, (shape_a, shape_b), strict=True
    ):
      rows = [
        checking.check(*_take(found, names, place.shape, folder), leaf, given)
        for names in place.rows
      ]
      read[*path, leaf] = place.unpack(rows, shape)
  return read


def _is_adapted(
  sizes: Any, path: Path, found: Mapping[str, np.ndarray]
) -> bool:
  if path[0] not in ('blocks', 'embed'):
    return False
  rows = layouts.find_modules(sizes, path)
  return any(f'{name}.lora_A.weight' in found for row in rows for name in row)


def _check_targets(
  cfg: config.Lora,
  there: set[Path],
  kernels: Mapping[Path, Any],
  folder: pathlib.Path,
) -> None:
  targets = {'.'.join(path[1:]) for path in there if path[0] == 'blocks'}
  if targets != set(cfg.targets):
    listed = tuple(sorted(targets))
    raise ValueError(
      f'lora.targets={cfg.targets} must be {listed}, the maps that {folder} has.'
    )
  patch = ('embed', 'patch')
  if patch in kernels and (patch in there) != cfg.patch_embed:
    raise ValueError(
      f'lora.patch_embed={cfg.patch_embed} must be {patch in there}, as'
      f' {folder} has it.'
    )


def _take(
  found: dict[str, np.ndarray],
  names: Sequence[str],
  shape: tuple[int, ...],
  folder: pathlib.Path,
) -> tuple[str, np.ndarray]:
  name = next((name for name in names if name in found), None)
  if name is None:
    raise ValueError(f'{folder}: there is no tensor {names[0]!r}.')
  value = found.pop(name)
  if value.shape != shape:
    raise ValueError(
      f'{folder}: tensor {name!r} has shape {value.shape}; lora.rank and the'
      f' model ask for {shape}.'
    )
  return name, value

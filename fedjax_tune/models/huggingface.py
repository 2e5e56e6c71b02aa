"""Models from a local Hugging Face folder."""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from fedjax_tune.models import backbone, hub_config, layouts, preprocessor
from fedjax_tune.models.sizes import Config, ViTConfig


def load_huggingface(folder: str | pathlib.Path) -> backbone.Pretrained:
  """Loads a model of one of `layouts.FAMILIES` as `save_pretrained` wrote it.

  Tensors may carry the names of transformers 4 or 5, with or without the
  prefix that a model with a head puts before them, in one file or in shards.
  DeiT's model has a distillation token beside the class token. The head is
  left, and with it the dense map before RoBERTa's and DistilBERT's classifier;
  but the one that predicts Llama's next token is kept, where it is there.

  Args:
    folder: Holds `config.json` and `model.safetensors`, or
      `model.safetensors.index.json` with its shards; and, if it is there,
      `preprocessor_config.json`, see `preprocessor`.

  Raises:
    FileNotFoundError: If the folder or one of its files is missing.
    ValueError: If a file is corrupt, the architecture is not supported, or a
      tensor is missing or misshaped.
  """
  folder = pathlib.Path(folder).expanduser()
  if not folder.is_dir():
    raise FileNotFoundError(f'weights={str(folder)!r} is not a folder.')
  raw = _read_json(folder / 'config.json')
  config = hub_config.parse(raw, folder / 'config.json')
  if isinstance(config, ViTConfig):
    config = _with_preprocessor(config, folder)
  tensors = _normalise(_read_tensors(folder))
  if not raw.get('qkv_bias', True):
    _add_biases(tensors, config)
  loaded = backbone.assemble(tensors, config, str(folder))
  if isinstance(config, ViTConfig):
    return loaded
  return dataclasses.replace(loaded, tokenizer=str(folder))


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  if not path.is_file():
    raise FileNotFoundError(f'{path} is missing.')
  try:
    value = json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(f'{path} is not valid JSON: {error}') from error
  if not isinstance(value, dict):
    raise ValueError(f'{path} must hold a JSON object.')
  return value


def _with_preprocessor(config: ViTConfig, folder: pathlib.Path) -> ViTConfig:
  """Puts in what a preprocessor does to pixels, if there is one."""
  path = folder / 'processor_config.json'
  if path.is_file():
    nested = _read_json(path).get('image_processor')
    if isinstance(nested, dict):  # It comes first in `transformers`, too.
      return preprocessor.parse(nested, config, path)
  path = folder / 'preprocessor_config.json'
  if not path.is_file():
    return config
  return preprocessor.parse(_read_json(path), config, path)


def _read_tensors(folder: pathlib.Path) -> dict[str, np.ndarray]:
  index = folder / 'model.safetensors.index.json'
  names = ['model.safetensors']
  if index.is_file():
    weight_map = _read_json(index).get('weight_map')
    if not isinstance(weight_map, dict):
      raise ValueError(f'{index} has no weight_map.')
    names = sorted(set(weight_map.values()))
  tensors = {}
  for path in (folder / name for name in names):
    if not path.is_file():
      raise FileNotFoundError(f'{path} is missing.')
    try:
      tensors |= safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
      raise ValueError(
        f'{path} is not a safetensors file, or is cut short: {error}'
      ) from error
  return tensors


def _normalise(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Removes a head's prefix, and what TensorFlow called a LayerNorm's parts."""

  def rename(name: str) -> str:
    first, dot, rest = name.partition('.')
    name = rest if first + dot in layouts.PREFIXES.values() else name
    name = name.replace('LayerNorm.gamma', 'LayerNorm.weight')
    return name.replace('LayerNorm.beta', 'LayerNorm.bias')

  return {rename(name): value for name, value in tensors.items()}


def _add_biases(tensors: dict[str, np.ndarray], config: Config) -> None:
  """Adds the biases of an attention without any, as zeros."""
  for path, variable in backbone.pretrained_variables(config).items():
    if path[-2:] in (('q', 'bias'), ('k', 'bias'), ('v', 'bias')):
      place = layouts.place(config, path, variable)
      for names in place.rows:
        tensors[names[0]] = np.zeros(place.shape, np.float32)

"""Models from a local Hugging Face folder."""

import dataclasses
import pathlib

from fedjax_tune.files import paths
from fedjax_tune.models import (
  backbone,
  heads,
  hub_config,
  hub_fields,
  hub_switches,
  leftovers,
  preprocessor,
  shards,
)
from fedjax_tune.models.sizes import Config, ViTConfig
from fedjax_tune.typing import Json


def load_huggingface(folder: str | pathlib.Path) -> backbone.Pretrained:
  """Loads a model of one of `families.FAMILIES` as `save_pretrained` wrote it.

  Tensors may have the names of transformers 4 or 5, with or without the prefix
  that a model with a head puts before them, in one file or in shards. DeiT's
  model has a distillation token in addition to the class token. The head is
  left out, and with it the dense map before RoBERTa's and DistilBERT's
  classifier, unless this package wrote the folder (`heads`). The head that
  predicts Llama's next token is kept if it is there.

  Args:
    folder: Holds `config.json` and `model.safetensors`, or else
      `model.safetensors.index.json` with its shards; and, if it is there,
      `preprocessor_config.json`, see `preprocessor`.

  Raises:
    FileNotFoundError: If the folder or one of its files is missing.
    ValueError: If a file is corrupt (`shards.read`), the architecture or a
      switch of it is not supported (`hub_config`, `hub_switches`), or tensors
      are not what the configuration describes (`backbone.assemble`).
  """
  folder = paths.here('weights', folder)
  if not folder.is_dir():
    raise FileNotFoundError(f'weights={str(folder)!r} is not a folder.')
  path = folder / 'config.json'
  raw, config = _read_config(path)
  notes = hub_switches.check(raw, path)
  if isinstance(config, ViTConfig):
    config, said = _with_preprocessor(config, folder)
    notes += said
  stored = shards.read(folder)
  head, labels = {}, None
  if heads.is_ours(folder):
    head = heads.read(config, stored, str(folder))
    labels = tuple(dict(raw.get('id2label') or {}).values())
  names, outside = leftovers.rename(stored, config.family, str(folder))
  loaded = backbone.assemble(
    {name: stored[old] for name, old in names.items()},
    config,
    str(folder),
    biased=hub_fields.boolean(raw, 'qkv_bias', path, True),
    outside=outside,
  )
  loaded = dataclasses.replace(
    loaded, notes=notes + loaded.notes, head=head, labels=labels
  )
  if isinstance(config, ViTConfig):
    return loaded
  return dataclasses.replace(loaded, tokenizer=str(folder))


def read_sizes(folder: str | pathlib.Path) -> Config:
  """Reads the sizes of a folder's model, and none of its weights.

  Raises:
    FileNotFoundError, ValueError: See `load_huggingface`.
  """
  return _read_config(paths.here('weights', folder) / 'config.json')[1]


def _read_config(path: pathlib.Path) -> tuple[Json, Config]:
  raw = hub_fields.read_json(path)
  return raw, hub_config.parse(raw, path)


def _with_preprocessor(
  config: ViTConfig, folder: pathlib.Path
) -> tuple[ViTConfig, tuple[str, ...]]:
  """Adds what the preprocessor does to pixels, or a note if there is none."""
  path = folder / 'processor_config.json'
  if path.is_file():
    nested = preprocessor.find_nested(hub_fields.read_json(path), path)
    if nested is not None:  # It comes first in `transformers`, too.
      return preprocessor.parse(nested, config, path), ()
  path = folder / 'preprocessor_config.json'
  if not path.is_file():
    note = (
      f'{path} is missing: mean={config.mean} and std={config.std} are taken.'
    )
    return config, (note,)
  return preprocessor.parse(hub_fields.read_json(path), config, path), ()

"""The formats in which a run's models are exported, and what each can hold."""

from collections.abc import Callable
import dataclasses
import pathlib
from typing import NamedTuple

import jax
import numpy as np

from fedjax_tune.data.tasks import Task
from fedjax_tune.deploy import added, folded, models
from fedjax_tune.models import (
  adapter_files,
  backbone,
  bottleneck,
  export,
  flax_folder,
  foundation,
  pretrained,
  sizes,
)
from fedjax_tune.training.learned import Learned
from fedjax_tune.typing import Path, Tree

# What `transformers` calls them.
_PROBLEMS = {
  'classification': 'single_label_classification',
  'regression': 'regression',
}
BASE = 'base'
# Of a decoder that classifies.
_UNPADDED = (
  'Give peft texts one by one: with prompts transformers looks for the last word at'
  ' the end of what it gets, padding or not.'
)
# Files of whole models.
TENSORS = {'hf': 'model.safetensors', 'flax': flax_folder.PARAMS}


class Context(NamedTuple):
  """What a folder contains in addition to the model.

  Attributes:
    learned: What the run has learned.
    tokenizer: Folder of a text model's tokenizer, else None.
    max_length: Tokens to which texts are cut.
    source: The pretrained model, where an adapter is written.
    place: Where the folder will finally be; None if it is written there.
  """

  learned: Learned
  tokenizer: str | None
  max_length: int
  source: pretrained.Pretrained | None = None
  place: pathlib.Path | None = None


class Format(NamedTuple):
  """A format for a model.

  Attributes:
    why_not: Says why a model cannot be written in it; '' if it can.
    write: Writes a model's folder; returns what a user should know about it.
  """

  why_not: Callable[[models.Model, Task], str]
  write: Callable[[models.Model, Context, pathlib.Path], list[str]]


def _has_bottleneck(model: models.Model) -> bool:
  kinds = model.adapters.values()
  return any(isinstance(found, bottleneck.Bottleneck) for found in kinds)


# -- Hugging Face's folders of whole models


def _why_no_folder(model: models.Model, task: Task) -> str:
  del task
  config, place = model.config, 'no model of transformers has'
  if _has_bottleneck(model):
    return f'{place} bottlenecks behind its sublayers'
  if config.prompts or config.prefixes:
    decodes = isinstance(config, sizes.DecoderConfig)
    where = 'before the words' if decodes else 'behind the class token'
    return f'{place} trained {f"tokens {where}" if config.prompts else "keys"}'
  return folded.why_not(config)


def _write_folder(
  model: models.Model, context: Context, folder: pathlib.Path
) -> list[str]:
  plain = folded.fold(model)
  save_folder(folder, plain.config, plain.params, context)
  return _notes(model)


def _notes(model: models.Model) -> list[str]:
  if not model.config.code:
    return []
  return [
    'Its head, which all tiers have in common, is here as one of its own.'
  ]


def save_folder(
  folder: pathlib.Path, config: sizes.Config, params: Tree, context: Context
) -> None:
  """Writes a whole model, or a part of one, as Hugging Face's folder."""
  export.save_huggingface(
    folder,
    config,
    params,
    context.learned.labels,
    context.tokenizer,
    max_length=context.max_length,
    problem=_PROBLEMS.get(context.learned.task.kind, ''),
  )


# -- peft's folders


def _why_no_adapter(model: models.Model, task: Task) -> str:
  return adapter_files.why_not(
    model.config,
    task.kind,
    full=model.config.full,
    bottleneck=_has_bottleneck(model),
  ) or folded.why_not(model.config)


def _write_adapter(
  model: models.Model, context: Context, folder: pathlib.Path
) -> list[str]:
  """Writes an adapter, and its base model unless that is a folder already."""
  notes, model = _notes(model), folded.fold(model)
  config = model.config
  trained = foundation.flat(model.theta)
  trained = {path: np.asarray(leaf) for path, leaf in trained.items()}
  # A may be frozen.
  known = foundation.flat(model.base) | trained
  find = lambda path, name: np.asarray(known[*path, name])
  pairs: adapter_files.Pairs = {
    path: (find(path, 'lora_a'), find(path, 'lora_b')) for path in model.lora
  }
  trained = {p: x for p, x in trained.items() if p[:-1] not in pairs}
  scale = model.scale
  if jax.tree.leaves(model.added):
    pairs, scale = added.as_lora(model, pairs), 1.0
    rank = next(iter(pairs.values()))[0].shape[-1]
    notes.append(
      f'The server added to frozen kernels; with that the adapter has rank {rank}.'
    )
  assert context.source is not None
  base = _original(model, context.source)
  params = _untrained(model, context.source)
  plain = dataclasses.replace(config, prompts=0, prefixes=0)
  num = config.prompts or config.prefixes
  decodes = isinstance(config, sizes.DecoderConfig)
  if decodes and config.prompts and config.num_classes:
    notes.append(_UNPADDED)
  if num and isinstance(plain, sizes.TextConfig):
    plain, params, trained = adapter_files.shift(plain, params, trained, num)
    base = ''
  if not base:
    save_folder(folder / BASE, plain, params, context)
    base = str(((context.place or folder) / BASE).resolve())
    notes.append(f'{BASE}/ is the model on which the adapter is put.')
  adapter_files.save(
    folder, config, base, context.learned.task.kind, pairs, scale, trained
  )
  export.save_processing(folder, plain, context.tokenizer, context.max_length)
  return notes


def _original(model: models.Model, source: pretrained.Pretrained) -> str:
  """Returns the folder that holds a model's frozen part unchanged, or ''."""
  folder = pathlib.Path(source.source)
  if source.drawn or not (folder / 'config.json').is_file():
    return ''
  there = foundation.flat(source.params)
  here = foundation.flat(model.base)
  for path, leaf in here.items():
    if path[-1] == 'lora_a':
      continue
    if not np.array_equal(np.asarray(leaf, np.float32), there.get(path, ())):
      return ''
  # Biases that trained have no place where the folder has none.
  trained = foundation.flat(model.theta)
  if any(p[-1] == 'bias' and not np.any(there.get(p, 1)) for p in trained):
    return ''
  return str(folder.resolve())


def _untrained(model: models.Model, source: pretrained.Pretrained) -> Tree:
  """Returns all parameters of the model on which an adapter is put.

  Parameters that trained, and are in the adapter, have their pretrained values
  here; a head is zeros.
  """
  config = dataclasses.replace(model.config, prompts=0, prefixes=0)
  base = foundation.flat(model.base)
  before = foundation.flat(source.params)
  theta = foundation.flat(model.theta)

  def find(path: Path) -> np.ndarray:
    if path in base:
      return np.asarray(base[path], np.float32)
    shape = theta[path].shape
    if path in before:
      return np.asarray(before[path])[tuple(map(slice, shape))]
    return np.zeros(shape, np.float32)

  names = backbone.variables(config)
  return foundation.nest({path: find(path) for path in names})


# -- folders of this package


def _write_flax(
  model: models.Model, context: Context, folder: pathlib.Path
) -> list[str]:
  flat = foundation.flat(model.frozen)
  flat |= foundation.flat(model.theta)
  params = foundation.nest(flat)
  labels = tuple(context.learned.labels)
  flax_folder.save(folder, model.config, model.adapters, params, labels)
  export.save_processing(
    folder, model.config, context.tokenizer, context.max_length
  )
  return []


FORMATS = {
  'hf': Format(_why_no_folder, _write_folder),
  'peft': Format(_why_no_adapter, _write_adapter),
  'flax': Format(lambda *_: '', _write_flax),
}

"""Writes folders of Hugging Face's peft, which hold only what trained.

peft supports LoRA, with biases and modules that trained along with it, and
trained keys, or tokens in front of a text. Its folder names the base model, and
the modules by their names in `transformers` 5.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib

import numpy as np

from fedjax_tune.models import backbone, export, layouts
from fedjax_tune.models.sizes import (
  Config,
  DecoderConfig,
  TextConfig,
  ViTConfig,
)
from fedjax_tune.typing import Json, Path, Tree

CONFIG, TENSORS = 'adapter_config.json', 'adapter_model.safetensors'
# Before the names of modules; prompts and prefixes have a model not wrapped.
_WRAPPED, _BARE = 'base_model.model.', 'base_model.'

Flat = Mapping[Path, np.ndarray]
# By the path of an adapted map its A and its B.
Pairs = Mapping[Path, tuple[np.ndarray, np.ndarray]]


def why_not(config: Config, task: str, *, full: bool, bottleneck: bool) -> str:
  """Says why peft has no format for what trained; '' if it has one.

  Args:
    config: The model's sizes, trained tokens too.
    task: Its kind, as `tasks.Task` has it.
    full: Whether all parameters trained.
    bottleneck: Whether it has FedAdapters.
  """
  if bottleneck:
    return 'peft has no bottlenecks behind sublayers'
  if full:
    return 'all parameters trained, so there is no adapter'
  if config.prefixes and config.family not in ('bert', 'roberta', 'llama'):
    return f'peft gives keys to no model of family {config.family!r}'
  if config.prompts and isinstance(config, ViTConfig):
    return 'peft puts prompts before words, and a picture has none'
  decodes = isinstance(config, DecoderConfig)
  if config.prompts and task != 'span' and not decodes:
    return (
      'peft puts prompts in front, where its classifier would read the first'
      ' of them instead of the class token'
    )
  tokens = config.prompts or config.prefixes
  if tokens and task == 'span' and getattr(config, 'types', 0) > 1:
    return 'peft drops the types of tokens where it looks for spans'
  return ''


def save(
  folder: pathlib.Path,
  config: Config,
  base: str,
  task: str,
  pairs: Pairs,
  scale: float,
  trained: Flat,
) -> None:
  """Writes the folder of an adapter.

  Args:
    folder: Made if missing.
    config: The model's sizes.
    base: The folder, or name, of the model on which it is put.
    task: Its kind, as `tasks.Task` has it.
    pairs: The LoRA of each map, all of one rank. If there is none, and no
      tokens either, a LoRA is written that adds nothing, as peft accepts no
      adapter without a map.
    scale: alpha / rank of the LoRA.
    trained: What else trained: head, biases, and trained tokens.
  """
  folder.mkdir(parents=True, exist_ok=True)
  flat = dict(trained)
  said: Json = {
    'base_model_name_or_path': base,
    'task_type': _task_type(config, task),
    'inference_mode': True,
    'modules_to_save': _heads(config, flat),
  }
  if config.prefixes or config.prompts:
    tensors = {'prompt_embeddings': _tokens(config, flat)}
    tensors |= _beside(config, flat, _BARE, ())
    said |= _describe_tokens(config)
  else:
    pairs = pairs or _nothing(config)
    tensors = _lora(config, pairs)
    tensors |= _beside(config, flat, _WRAPPED, pairs)
    biased = any(_is_bias(config, path) for path in flat)
    said |= _describe_lora(config, pairs, scale, biased=biased)
  export.write_tensors(folder / TENSORS, tensors)
  export.write_json(folder / CONFIG, said)


def _task_type(config: Config, task: str) -> str | None:
  """Returns what peft calls a task, or None: then it knows none.

  peft's class for spans drops the token types, so it is named only if tokens
  are trained, which need the class.
  """
  if isinstance(config, ViTConfig):
    return None
  if task == 'span':
    return 'QUESTION_ANS' if config.prompts or config.prefixes else None
  return 'CAUSAL_LM' if task == 'next_token' else 'SEQ_CLS'


def _is_bias(config: Config, path: Path) -> bool:
  return path[-1] == 'bias' and not layouts.is_head(config, path)


def _heads(config: Config, flat: Flat) -> list[str] | None:
  """Names the modules that trained whole, each at its top."""
  found = {
    name.partition('.')[0]: None
    for path in sorted(flat)
    if layouts.is_head(config, path)
    for (name, *_) in layouts.find_modules(config, path)
  }
  return list(found) or None


def _beside(
  config: Config, flat: Flat, prefix: str, adapted: Sequence[Path] | Pairs
) -> dict[str, np.ndarray]:
  """Returns the tensors of heads and biases."""
  variables, tensors = backbone.variables(_plain(config)), {}
  for path, value in flat.items():
    if path not in variables:
      continue  # Trained tokens.
    rows = export.pack(config, path, variables[path], value)
    for (name, *_), row in zip(
      layouts.find_modules(config, path), rows, strict=True
    ):
      if path[:-1] in adapted:
        name = name.removesuffix('bias') + 'base_layer.bias'
      tensors[prefix + name] = row
  return tensors


def _plain(config: Config) -> Config:
  return dataclasses.replace(config, prompts=0, prefixes=0)


# -- LoRA


def _nothing(config: Config) -> Pairs:
  """Returns a LoRA of rank 1 on the values of all blocks, which adds nothing."""
  path = ('blocks', 'attn', 'v')
  stack, ins, *outs = backbone.variables(config)[*path, 'kernel'].shape
  return {path: (np.zeros((stack, ins, 1)), np.zeros((stack, 1, *outs)))}


def _lora(config: Config, pairs: Pairs) -> dict[str, np.ndarray]:
  tensors = {}
  for path, (a, b) in pairs.items():
    places = layouts.place_lora(config, path, a.shape, b.shape)
    for place, value in zip(places, (a, b), strict=True):
      rows = place.pack(np.asarray(value, np.float32))
      for (name, *_), row in zip(place.rows, rows, strict=True):
        tensors[_WRAPPED + name] = row
  return tensors


def _describe_lora(
  config: Config, pairs: Pairs, scale: float, *, biased: bool
) -> Json:
  (rank,) = {a.shape[-1] for a, _ in pairs.values()}
  modules = [
    name for path in pairs for name, *_ in layouts.find_modules(config, path)
  ]
  return {
    'peft_type': 'LORA',
    'r': rank,
    'lora_alpha': scale * rank,
    'lora_dropout': 0.0,
    'target_modules': modules,
    'bias': 'all' if biased else 'none',
    'fan_in_fan_out': False,
    'use_rslora': False,
    'use_dora': False,
  }


# -- trained tokens


def _tokens(config: Config, flat: Flat) -> np.ndarray:
  """Returns the table of trained tokens, one per row."""
  if config.prompts:
    return np.asarray(flat['embed', 'prompt'], np.float32)
  where = ('blocks', 'attn', 'prefix')
  both = [np.asarray(flat[*where, name]) for name in ('key', 'value')]
  # [layer, prompt, heads, width] twice to [prompt, layer, both, ...].
  table = np.stack(both, axis=1).transpose(2, 0, 1, 3, 4)
  return table.reshape(config.prefixes, -1).astype(np.float32)


def _describe_tokens(config: Config) -> Json:
  # Keys of all heads together, of which decoders have fewer than of queries.
  width = config.heads * config.head_dim if config.prefixes else config.embed
  said: Json = {
    'peft_type': 'PREFIX_TUNING' if config.prefixes else 'PROMPT_TUNING',
    'num_virtual_tokens': config.prefixes or config.prompts,
    'token_dim': width,
    'num_layers': config.depth,
    'num_attention_heads': config.heads,
    'num_transformer_submodules': 1,
  }
  if config.prefixes:
    said |= {'encoder_hidden_size': width, 'prefix_projection': False}
  return said


def shift(
  config: TextConfig, params: Tree, trained: Flat, num: int
) -> tuple[TextConfig, Tree, dict[Path, np.ndarray]]:
  """Returns a model and its prompts for peft, which shifts positions.

  Here trained tokens have no position and no type. peft gives them the first
  positions, and prompts the first type, so the model gets rows of zeros there
  and prompts lose the type.

  Args:
    config: The model's sizes.
    params: All of the model's own parameters.
    trained: What trained.
    num: Number of trained tokens.
  """
  embed, at = dict(params['embed']), config.position_offset
  table = np.asarray(embed['position'])
  zeros = np.zeros((num, table.shape[1]), table.dtype)
  embed['position'] = np.concatenate([table[:at], zeros, table[at:]])
  flat = dict(trained)
  if ('embed', 'prompt') in flat and config.types:
    flat['embed', 'prompt'] = flat['embed', 'prompt'] - embed['type'][0]
  config = dataclasses.replace(config, positions=config.positions + num)
  return config, {**params, 'embed': embed}, flat

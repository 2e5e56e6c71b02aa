"""Writes parameters, even of a subnetwork, as a Hugging Face folder."""

from collections.abc import Mapping, Sequence
import dataclasses
import itertools
import json
import math
import pathlib

from flax import nnx, traverse_util
import numpy as np
import safetensors.numpy

from fedjax_tune.data import tokenizer_export
from fedjax_tune.models import backbone, hub_config, layouts, preprocessor
from fedjax_tune.models.families import FAMILIES
from fedjax_tune.models.sizes import Config, DecoderConfig, ViTConfig
from fedjax_tune.typing import Json, Tree

# Axes that no client selects.
_FIXED = frozenset({'vocab', 'token', 'type', 'patch', 'prefix'})

_Flat = dict[layouts.Path, np.ndarray]
_AxisNames = dict[layouts.Path, tuple[str, ...]]


def fuse(base: Tree, theta: Tree, scale: float) -> Tree:
  """Joins a model's two trees, with adapters folded into the kernels.

  Args:
    base: Frozen parameters.
    theta: Trained parameters.
    scale: alpha / rank of the adapters.

  Returns:
    Float32 parameters without `lora_a` and `lora_b`: kernels are W + scale A B.
  """
  flat = traverse_util.flatten_dict(base) | traverse_util.flatten_dict(theta)
  flat = {path: np.asarray(leaf, np.float32) for path, leaf in flat.items()}
  for path in [path for path in flat if path[-1] == 'lora_a']:
    a, b = flat.pop(path), flat.pop((*path[:-1], 'lora_b'))
    kernel = flat[*path[:-1], 'kernel']
    stack = kernel.shape[: a.ndim + b.ndim - 2 - kernel.ndim]
    rank = a.shape[-1]
    step = a.reshape(*stack, -1, rank) @ b.reshape(*stack, rank, -1)
    flat[*path[:-1], 'kernel'] = kernel + np.float32(scale) * step.reshape(
      kernel.shape
    )
  return traverse_util.unflatten_dict(flat)


def save_huggingface(
  folder: str | pathlib.Path,
  config: Config,
  params: Tree,
  label_names: Sequence[str],
  tokenizer: str | pathlib.Path | None = None,
  *,
  max_length: int = 0,
  problem: str = '',
) -> Config:
  """Writes a folder that `transformers` loads, with its head.

  The parameters may be narrower than `config` says, along 'layer', 'embed',
  'heads', 'qk_dim', 'v_dim' and 'ffn'. Hugging Face's classes have one width of
  a head, hidden_size // num_attention_heads. So sizes that they can't express
  are padded, without changing what the model computes:

  - heads are padded with zeros up to that width, and heads of zeros are added;
    queries are multiplied by the root of the widths' ratio, as scores are
    divided by it;
  - if all heads together are wider than the model, the model is widened by
    copies of each of its channels, and maps that read them take the mean; this
    does not change LayerNorm's mean and variance;
  - heads of zeros are added to Llama's keys and values, each with its group of
    queries, until their number divides the model's width; the width of a head
    is free;
  - DINOv2's MLP is padded with zeros up to a multiple of the model's width, and
    its head gets zeros for the mean of the patches, which Hugging Face's head
    also reads.

  Args:
    folder: Made if missing.
    config: The model from which the parameters were taken.
    params: All parameters, adapters folded in (`fuse`).
    label_names: One for each output of the head; none if it predicts tokens.
    tokenizer: A folder whose tokenizer is written too, as one file that gives
      the same tokens.
    max_length: Tokens to which `transformers` cuts texts when it is asked to;
      0 takes as many as the model has positions.
    problem: The name of the head's task in `transformers`, 'regression' or
      'single_label_classification'; '' leaves it open.

  Returns:
    The sizes that were written.

  Raises:
    ValueError: Parameters are missing, too many, or don't fit together, or
      there is not one label for each output.
  """
  flat, axes, sizes = _check(config, params)
  classes = sizes.get('class', 0)
  if len(label_names) != classes:
    raise ValueError(
      f'label_names={list(label_names)} must have one name for each of the '
      f'{classes} outputs of the head.'
    )
  flat, config = _fill(flat, axes, sizes, config)
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  write_tensors(folder / 'model.safetensors', _tensors(flat, config))
  raw = hub_config.render(config, label_names)
  if problem:
    raw['problem_type'] = problem
  ids = save_processing(folder, config, tokenizer, max_length)
  if tokenizer and isinstance(config, DecoderConfig):
    ends = ('bos_token', 'eos_token')  # Where to begin and end a text.
    raw |= {f'{name}_id': ids.get(name) for name in ends}
  write_json(folder / 'config.json', raw)
  return config


def save_processing(
  folder: pathlib.Path,
  config: Config,
  tokenizer: str | pathlib.Path | None,
  max_length: int = 0,
) -> dict[str, int]:
  """Writes tokenizer or preprocessor; arguments as for `save_huggingface`.

  Returns:
    The numbers of a tokenizer's named tokens.
  """
  if isinstance(config, ViTConfig):
    said = preprocessor.render(config)
    write_json(folder / 'preprocessor_config.json', said)
    return {}
  if not tokenizer:
    return {}
  return tokenizer_export.write(
    tokenizer,
    folder,
    pad=config.pad,
    max_length=max_length or config.max_tokens,
    has_types=getattr(config, 'types', 0) > 1,
  )


def write_tensors(
  path: pathlib.Path, tensors: Mapping[str, np.ndarray]
) -> None:
  """Writes a file of safetensors."""
  # Not save_file, whose files only their owner may read.
  whole = {name: np.ascontiguousarray(x) for name, x in tensors.items()}
  path.write_bytes(safetensors.numpy.save(whole, {'format': 'pt'}))


def _check(
  config: Config, params: Tree
) -> tuple[_Flat, _AxisNames, dict[str, int]]:
  """Returns the parameters by path, their axes, and the sizes of these."""
  flat = traverse_util.flatten_dict(params)
  flat = {path: np.asarray(leaf, np.float32) for path, leaf in flat.items()}
  variables = backbone.variables(config)
  if odd := sorted(flat.keys() ^ variables.keys()):
    has = 'must have' if odd[0] in variables else 'must not have'
    raise ValueError(
      f'params {has} {"/".join(odd[0])}, for a model of family {config.family}.'
    )
  axes = {p: tuple(v.get_metadata('axes')) for p, v in variables.items()}
  sizes: dict[str, int] = {}
  for path, names in axes.items():
    shape, own = flat[path].shape, variables[path].shape
    for dim, name in enumerate(names[: len(shape)]):
      sizes.setdefault(name, own[dim] if name in _FIXED else shape[dim])
    want = tuple(sizes.get(name, own[i]) for i, name in enumerate(names))
    if shape != want:
      raise ValueError(
        f'params: {"/".join(path)} has shape {shape}; its axes '
        f'{", ".join(names)} must have sizes {want}.'
      )
  return flat, axes, sizes


def _fill(
  flat: _Flat, axes: _AxisNames, sizes: dict[str, int], config: Config
) -> tuple[_Flat, Config]:
  """Pads sizes that Hugging Face can't express; see `save_huggingface`."""
  if isinstance(config, DecoderConfig):
    return _fill_decoder(flat, axes, sizes, config)
  width = max(sizes['qk_dim'], sizes['v_dim'])
  copies, heads = _find_heads(sizes['embed'], sizes['heads'], width)
  embed = copies * sizes['embed']
  wide = embed // heads
  ffn = sizes['ffn']
  if config.family == 'dinov2':
    ffn = math.ceil(ffn / embed) * embed
  targets = {'heads': heads, 'qk_dim': wide, 'v_dim': wide, 'ffn': ffn}
  ratio = math.sqrt(wide / sizes['qk_dim'])
  for path in (('blocks', 'attn', 'q', leaf) for leaf in ('kernel', 'bias')):
    flat[path] = flat[path] * np.float32(ratio)
  filled = _pad(flat, axes, targets, copies)
  config = dataclasses.replace(
    config,
    depth=sizes['layer'],
    embed=embed,
    heads=heads,
    ffn=ffn,
    num_classes=sizes['class'],
  )
  return filled, config


def _fill_decoder(
  flat: _Flat, axes: _AxisNames, sizes: dict[str, int], config: DecoderConfig
) -> tuple[_Flat, Config]:
  """Pads a decoder; Hugging Face can express far more of its sizes."""
  group = sizes['group']
  copies, heads = _find_heads(sizes['embed'], sizes['heads'], group, group)
  if copies > 1 and config.tied and not config.num_classes:
    # One table writes channels and reads them; these are two tables now.
    config = dataclasses.replace(config, tied=False)
    flat = flat | {('lm_head', 'kernel'): flat['embed', 'word'].T}
    axes = axes | {('lm_head', 'kernel'): ('embed', 'vocab')}
  targets = {'heads': heads, 'v_dim': config.head_dim}
  return _pad(flat, axes, targets, copies), dataclasses.replace(
    config,
    depth=sizes['layer'],
    embed=copies * sizes['embed'],
    heads=heads,
    group=group,
    ffn=sizes['ffn'],
  )


def _pad(
  flat: _Flat, axes: _AxisNames, targets: dict[str, int], copies: int
) -> _Flat:
  """Pads axes with zeros, and copies channels."""
  filled = {}
  for path, leaf in flat.items():
    pads = [
      (0, targets.get(name, size) - size)
      for name, size in zip(axes[path], leaf.shape, strict=True)
    ]
    filled[path] = _copy_channels(np.pad(leaf, pads), axes[path], copies)
  return filled


def _find_heads(
  embed: int, heads: int, width: int, group: int = 1
) -> tuple[int, int]:
  """Returns the least copies of channels, and then heads, that fit.

  >>> _find_heads(384, 12, 24)  # Heads of width 32.
  (1, 12)
  >>> _find_heads(192, 12, 32)  # As wide together as two copies.
  (2, 12)
  """
  for copies in itertools.count(1):
    for number in range(heads, copies * embed // width + 1):
      if copies * embed % (number * group) == 0:
        return copies, number
  raise AssertionError('unreachable')


def _copy_channels(
  leaf: np.ndarray, names: tuple[str, ...], copies: int
) -> np.ndarray:
  """Repeats the model's channels; a kernel that reads them takes the mean."""
  for dim, name in enumerate(names):
    if name == 'embed' and copies > 1:
      leaf = np.concatenate([leaf] * copies, axis=dim)
      # Every parameter that writes channels has them last.
      leaf = leaf if dim == len(names) - 1 else leaf / np.float32(copies)
  return leaf


def _tensors(flat: _Flat, config: Config) -> dict[str, np.ndarray]:
  tensors = {}
  for path, variable in backbone.variables(config).items():
    place = layouts.place(config, path, variable)
    is_head = layouts.is_head(config, path)
    prefix = '' if is_head else FAMILIES[config.family].prefix
    values = pack(config, path, variable, flat[path])
    for names, value in zip(place.rows, values, strict=True):
      tensors[prefix + names[0]] = value
  return tensors


def pack(
  config: Config, path: layouts.Path, variable: nnx.Variable, value: np.ndarray
) -> list[np.ndarray]:
  """Returns the tensors of a parameter, one per row, as in `transformers`."""
  values = layouts.place(config, path, variable).pack(value)
  if config.family == 'dinov2' and path == ('head', 'kernel'):
    # Its head reads the mean of the patches, too.
    return [np.concatenate([v, np.zeros_like(v)], axis=1) for v in values]
  return values


def write_json(path: pathlib.Path, value: Json) -> None:
  """Writes a JSON file for people and programs."""
  path.write_text(json.dumps(value, indent=2) + '\n')

"""Builds a model: pretrained weights with what a configuration trains."""

from collections.abc import Callable
import dataclasses
from typing import Any

from flax import nnx
import jax
import numpy as np

from fedjax_tune import config
from fedjax_tune.data import corpus, tasks
from fedjax_tune.models import (
  backbone,
  block,
  bottleneck,
  foundation,
  linear,
  pretrained,
  sizes,
  vit,
)
from fedjax_tune.models.lora import Lora
from fedjax_tune.typing import Tokens, Tree

# Channel means and standard deviations, in [0, 1].
NORMALIZATIONS = {
  'imagenet': (vit.IMAGENET_MEAN, vit.IMAGENET_STD),
  'clip': ((0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)),
  'half': ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


def check(
  experiment: config.Experiment, weights: pretrained.Pretrained
) -> None:
  """Raises a ValueError if the model lacks something that is asked for."""
  known = backbone.linear_maps(weights.config)
  lora = experiment.model.tune == 'lora'
  for i, target in enumerate(experiment.lora.targets if lora else ()):
    if target not in known:
      raise ValueError(
        f'lora.targets[{i}]={target!r} must be one of {", ".join(known)}, the '
        f'linear maps of the model {weights.source!r}.'
      )
  cfg = with_trained(weights.config, experiment.model)
  if not isinstance(cfg, sizes.ViTConfig):
    _check_lengths(experiment.data.lengths, cfg, weights.source)
  if experiment.data.task != 'next_token':
    return
  has_head = isinstance(cfg, sizes.DecoderConfig) and (
    cfg.tied or 'lm_head' in weights.params
  )
  if not has_head:
    raise ValueError(
      "data.task='next_token' needs a decoder with its pretrained head; the "
      f'model {weights.source!r} has none.'
    )


def _check_lengths(
  lengths: tuple[int, ...],
  cfg: sizes.TextConfig | sizes.DecoderConfig,
  source: str,
) -> None:
  """Refuses texts that may be longer than the positions, in either split.

  Trained tokens (`model.tune` 'prompt' or 'prefix') take positions only in
  decoders.
  """
  if max(lengths) > cfg.max_tokens:
    beside = ''
    if isinstance(cfg, sizes.DecoderConfig) and (cfg.prompts or cfg.prefixes):
      beside = ' behind its trained tokens (model.prompt_tokens)'
    raise ValueError(
      f'data.lengths={lengths} must be at most {cfg.max_tokens}: the model '
      f'{source!r} has no positions for longer texts{beside}.'
    )


def check_tokens(split: corpus.Corpus, weights: pretrained.Pretrained) -> None:
  """Raises a ValueError if a text has a token or type unknown to the model."""
  cfg, inputs = weights.config, split.inputs
  if not isinstance(inputs, Tokens) or isinstance(cfg, sizes.ViTConfig):
    return
  if (largest := int(inputs.ids.max(initial=0))) >= cfg.vocab:
    raise ValueError(
      f'a text has token {largest}, but the model {weights.source!r} has '
      f'vectors for {cfg.vocab} tokens: its vocabulary lacks a special token '
      'that the text spells.'
    )
  types = getattr(cfg, 'types', 0)
  if types and (largest := int(inputs.types.max(initial=0))) >= types:
    raise ValueError(
      f'the tokenizer gives tokens type {largest}, but the model '
      f'{weights.source!r} knows {types} types (type_vocab_size).'
    )


def _set_task(cfg: sizes.Config, task: tasks.Task) -> sizes.Config:
  """Gives a model the head of a task."""
  if task.kind == 'next_token':
    return dataclasses.replace(cfg, num_classes=0)
  cfg = dataclasses.replace(cfg, num_classes=task.num_outputs)
  if isinstance(cfg, sizes.TextConfig):
    return dataclasses.replace(cfg, span=task.kind == 'span')
  if task.kind == 'span':
    raise ValueError(
      f'model.weights: a model of family {cfg.family!r} has no head for spans, '
      'which the data set asks for; it must be a text encoder.'
    )
  return cfg


def build(
  experiment: config.Experiment,
  weights: pretrained.Pretrained,
  task: tasks.Task,
  projections: str = 'free',
  code: int = 0,
) -> foundation.Foundation:
  """Builds the model, with its adapters, around pretrained weights.

  Args:
    experiment: The configuration.
    weights: The pretrained part.
    task: What is learned.
    projections: Projections of bottleneck adapters; all but 'free' must be set
      afterwards.
    code: Width of the code that the head reads, whose map must be set
      afterwards; 0 means no code.
  """
  cfg = _set_task(with_trained(weights.config, experiment.model), task)
  cfg = dataclasses.replace(cfg, code=code)
  model = _make(experiment, cfg, projections)
  split = foundation.split(model, cfg.depth)
  base = _overlay(split.base, weights.params, np.asarray)
  return dataclasses.replace(
    split,
    theta=_overlay(split.theta, weights.params, jax.device_put),
    base=jax.device_put(foundation.store(base, experiment.model.dtype)),
  )


def shapes(
  experiment: config.Experiment, cfg: sizes.Config, task: tasks.Task
) -> foundation.Foundation:
  """Returns what `build` would, with shapes instead of arrays.

  Args:
    experiment: The configuration.
    cfg: Sizes of the pretrained model.
    task: What is learned.
  """
  cfg = _set_task(with_trained(cfg, experiment.model), task)
  model = nnx.eval_shape(lambda: _make(experiment, cfg))
  split = foundation.split(model, cfg.depth)
  store = lambda base: foundation.store(base, experiment.model.dtype)
  return dataclasses.replace(split, base=jax.eval_shape(store, split.base))


def _make(
  experiment: config.Experiment, cfg: sizes.Config, projections: str = 'free'
) -> nnx.Module:
  """Builds the modules, with random weights."""
  if isinstance(cfg, sizes.ViTConfig) and experiment.data.normalization:
    mean, std = NORMALIZATIONS[experiment.data.normalization]
    cfg = dataclasses.replace(cfg, mean=mean, std=std)
  model = backbone.build_model(
    cfg,
    adapters(experiment, projections),
    remat=experiment.model.remat,
    unroll=experiment.engine.unroll,
    rngs=nnx.Rngs(experiment.seed),
  )
  if experiment.model.tune == 'bitfit':
    foundation.release(model, lambda name: name == 'bias')
  if experiment.model.dtype == 'bfloat16':
    foundation.mix(model)
  return model


def with_trained(cfg: sizes.Config, model: config.Model) -> sizes.Config:
  """Returns the sizes of a model with what trains in it, and how."""
  num = model.prompt_tokens
  if isinstance(cfg, sizes.DecoderConfig):
    if model.tune == 'bitfit':
      raise ValueError(
        "model.tune='bitfit' must be another for a decoder: it has no biases."
      )
    if model.dropout:
      raise ValueError(
        f'model.dropout={model.dropout} must be 0 for a decoder: Llama has none.'
      )
  return dataclasses.replace(
    cfg,
    full=model.tune == 'full',
    prompts=num if model.tune == 'prompt' else 0,
    prefixes=num if model.tune == 'prefix' else 0,
    dropout=model.dropout,
  )


def axis_sizes(cfg: sizes.Config, data: config.Data) -> dict[str, int]:
  """Returns the size of each axis, an example's too ('token', 'patch')."""
  tokens, patch = max(data.lengths), 0
  if isinstance(cfg, sizes.ViTConfig):
    tokens, patch = cfg.num_tokens, cfg.patch**2 * 3
  tokens += cfg.prompts
  seen = {'token': tokens, 'key': tokens + cfg.prefixes, 'patch': patch}
  return sizes.axis_sizes(cfg) | seen


def adapters(
  experiment: config.Experiment, projections: str = 'free'
) -> block.Adapters:
  """Returns the adapter of each adapted linear map or sublayer.

  Args:
    experiment: The configuration.
    projections: Projections of bottlenecks. They are not taken from
      `fedadapter`, since only a method with several models reads that field.
  """
  tune, lora = experiment.model.tune, experiment.lora
  if tune == 'lora':
    targets = [*lora.targets, *(['embed.patch'] if lora.patch_embed else [])]
    own = experiment.rank.scaling == 'client'
    scale = lora.alpha / lora.rank
    added = Lora(lora.rank, scale, lora.dropout, own)
    return dict.fromkeys(targets, added)
  if tune == 'adapter':
    cfg = dataclasses.asdict(experiment.fedadapter)
    cfg['projections'] = projections
    cfg['private'] = cfg['private'] and projections != 'free'
    return dict.fromkeys(cfg.pop('after'), bottleneck.Bottleneck(**cfg))
  return {}


def find_adapters(model: Any) -> block.Adapters:
  """Returns the adapters of a built model, by linear map or sublayer."""
  found: dict[str, Lora | bottleneck.Bottleneck] = {}
  for path, module in nnx.iter_modules(model):
    if bottleneck.PRIVATE in path:
      continue  # A part of another.
    name = '.'.join(map(str, path)).removeprefix('blocks.')
    if isinstance(module, linear.Linear) and module.adapter:
      found[name] = module.adapter
    elif isinstance(module, bottleneck.FedAdapter):
      found[name.removesuffix('_adapter')] = module.sizes
  return found


def _overlay(
  tree: Tree, params: Tree, place: Callable[[np.ndarray], Tree]
) -> Tree:
  """Replaces the leaves of a model's tree that were loaded."""
  if not isinstance(tree, dict):
    return place(params)
  return {
    name: _overlay(part, params[name], place) if name in params else part
    for name, part in tree.items()
  }

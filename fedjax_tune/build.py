"""From an experiment's names to objects; the one place where that happens."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

from flax import nnx
import jax
import numpy as np
import optax

from fedjax_tune import (
  config,
  devices,
  federation,
  foundation,
  tasks,
  tiers,
  validate,
)
from fedjax_tune.data import corpus, fetch, partition
from fedjax_tune.engine.plan import Planner
from fedjax_tune.methods import BUILDERS, heterotune
from fedjax_tune.models import (
  adapter,
  backbone,
  block,
  linear,
  pretrained,
  sizes,
)
from fedjax_tune.typing import Axes, Tree

# Channel means and standard deviations, in [0, 1].
NORMALIZATIONS = {
  'imagenet': (backbone.IMAGENET_MEAN, backbone.IMAGENET_STD),
  'clip': ((0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)),
  'half': ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


@dataclasses.dataclass(frozen=True)
class Setup:
  """All that a run is made of.

  Attributes:
    experiment: Its configuration.
    foundation: The model, split; or the models of a federation.
    method: The method.
    theta: What the method trains, at the start.
    axes: Axes of `theta`.
    train: Training data.
    test: Test data.
    partition: Whose examples are whose.
    budgets: Blocks that each client can hold.
    sizes: Size of each axis along which clients may differ.
    devices: What each client computes with; () leaves it open.
    planner: Plans the rounds.
    tokenizer: Folder of a text model's tokenizer, else None.
    readers: The tokenizer of each tier: which view of the data it reads.
  """

  experiment: config.Experiment
  foundation: foundation.Models
  method: Any
  theta: Tree
  axes: Axes
  train: corpus.Corpus
  test: corpus.Corpus
  partition: partition.Partition
  budgets: tuple[int, ...]
  sizes: dict[str, int]
  devices: tuple[devices.Device, ...]
  planner: Planner
  tokenizer: str | None
  readers: dict[str, int]


def build(experiment: config.Experiment) -> Setup:
  """Checks an experiment and builds everything that it names.

  Raises:
    ValueError: Something in the experiment is wrong; the message names the
      field, its value and the rule.
    FileNotFoundError: Data or weights are not where they should be.
  """
  # What is cheap to check comes first, what takes long last.
  validate.validate(experiment, BUILDERS)
  clients = experiment.clients
  domains = partition.client_domains(
    clients, len(corpus.domain_names(experiment.data))
  )
  _check_cohort(clients, len(domains))
  several = experiment.method == 'heterotune'
  load = tiers.load if several else tiers.load_one
  found = load(experiment, data_dir(experiment.data))
  for tier in found:
    _check_model(experiment, tier.weights)
  weights = found[0].weights
  widths = axis_sizes(
    with_trained(weights.config, experiment.model), experiment.data
  )
  depths = {federation.tier_axis(t.name): t.kept['layer'] for t in found}
  budgets = partition.expand_budgets(clients.budgets, domains, widths['layer'])
  budgets = tuple(int(b) for b in budgets)
  hardware = devices.assign(clients.devices, len(domains))
  method = BUILDERS[experiment.method](experiment, widths | depths, budgets)
  readers = tiers.readers(found)
  train, test = _load_data(experiment.data, found, readers)
  parts = partition.partition(clients, train)
  method = method.meet(train.task, parts.present(train))
  if isinstance(method, heterotune.Heterotune):
    model = _build_federation(experiment, found, method, train.task)
  else:
    model = build_foundation(experiment, weights, train.task)
    model = method.prepare(model)
    method = method.study(model)
  theta, axes = method.init(model.theta, model.axes)
  planner = Planner(
    experiment, method, train, parts.indices, parts.domains, readers
  )
  return Setup(
    experiment,
    model,
    method,
    theta,
    axes,
    train,
    test,
    parts,
    budgets,
    widths | {'rank': experiment.lora.rank},
    hardware,
    planner,
    weights.tokenizer,
    readers,
  )


def _check_cohort(cfg: config.Clients, num_clients: int) -> None:
  if cfg.cohort == 'uniform' and cfg.cohort_size > num_clients:
    raise ValueError(
      f'clients.cohort_size={cfg.cohort_size} must be at most {num_clients}, '
      'the number of clients.'
    )


def _check_model(
  experiment: config.Experiment, weights: pretrained.Pretrained
) -> None:
  """Raises a ValueError where the model lacks what is asked of it."""
  known = backbone.linear_maps(weights.config)
  lora = experiment.model.tune == 'lora'
  for i, target in enumerate(experiment.lora.targets if lora else ()):
    if target not in known:
      raise ValueError(
        f'lora.targets[{i}]={target!r} must be one of {", ".join(known)}, the '
        f'linear maps of the model {weights.source!r}.'
      )
  if experiment.data.task != 'next_token':
    return
  cfg = weights.config
  has_head = isinstance(cfg, sizes.DecoderConfig) and (
    cfg.tied or 'lm_head' in weights.params
  )
  if not has_head:
    raise ValueError(
      "data.task='next_token' needs a decoder with its pretrained head; the "
      f'model {weights.source!r} has none.'
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


def data_dir(cfg: config.Data) -> str:
  """Returns where data and weights lie."""
  return cfg.data_dir or str(fetch.default_data_dir())


def _load_data(
  cfg: config.Data, found: tuple[tiers.Tier, ...], readers: Mapping[str, int]
) -> tuple[corpus.Corpus, corpus.Corpus]:
  """Loads a set, as each tokenizer of the tiers reads it."""
  first: dict[int, pretrained.Pretrained] = {}
  for tier in found:
    first.setdefault(readers[tier.name], tier.weights)
  views = [
    corpus.load(
      cfg,
      weights.tokenizer,
      0 if isinstance(weights.config, sizes.ViTConfig) else weights.config.pad,
    )
    for weights in first.values()
  ]
  (train, *trains), (test, *tests) = zip(*views, strict=True)
  return train.seen_as(trains), test.seen_as(tests)


def _build_federation(
  experiment: config.Experiment,
  found: tuple[tiers.Tier, ...],
  method: heterotune.Heterotune,
  task: tasks.Task,
) -> federation.Federation:
  """Builds the models of all tiers, and joins them."""
  models = {}
  for tier in found:
    cfg = method.adapters[tier.name]
    own = dataclasses.replace(experiment, fedadapter=cfg)
    whole = build_foundation(own, tier.weights, task)
    models[tier.name] = foundation.cut(whole, tier.kept)
  options = experiment.heterotune
  return federation.federate(
    models,
    adapter.CORES if options.share else (),
    options.sites,
    every_block=options.every_block,
  )


def build_foundation(
  experiment: config.Experiment,
  weights: pretrained.Pretrained,
  task: tasks.Task,
) -> foundation.Foundation:
  """Builds the model, with its adapters, around pretrained weights."""
  tune = experiment.model.tune
  cfg = _set_task(with_trained(weights.config, experiment.model), task)
  if isinstance(cfg, sizes.ViTConfig) and experiment.data.normalization:
    mean, std = NORMALIZATIONS[experiment.data.normalization]
    cfg = dataclasses.replace(cfg, mean=mean, std=std)
  model = backbone.build_model(
    cfg,
    adapters(experiment),
    remat=experiment.model.remat,
    rngs=nnx.Rngs(experiment.seed),
  )
  if tune == 'bitfit':
    foundation.release(model, lambda name: name == 'bias')
  split = foundation.split(model, cfg.depth)
  dtype = experiment.model.dtype
  place = lambda x, dtype: jax.device_put(np.asarray(x, dtype))
  return dataclasses.replace(
    split,
    theta=_overlay(split.theta, weights.params, lambda x: place(x, 'float32')),
    base=_overlay(split.base, weights.params, lambda x: place(x, dtype)),
  )


def with_trained(cfg: sizes.Config, model: config.Model) -> sizes.Config:
  """Returns the sizes of a model with what `model.tune` trains."""
  num = model.prompt_tokens
  if isinstance(cfg, sizes.DecoderConfig):
    if model.tune in ('bitfit', 'prompt', 'prefix'):
      raise ValueError(
        f"model.tune={model.tune!r} must be 'lora', 'adapter' or 'full' for a"
        ' decoder: it has no biases, and takes no trained tokens here.'
      )
    return dataclasses.replace(cfg, full=model.tune == 'full')
  return dataclasses.replace(
    cfg,
    full=model.tune == 'full',
    prompts=num if model.tune == 'prompt' else 0,
    prefixes=num if model.tune == 'prefix' else 0,
  )


def axis_sizes(cfg: sizes.Config, data: config.Data) -> dict[str, int]:
  """Returns the size of each axis, of an example too ('token', 'patch')."""
  tokens, patch = max(data.lengths), 0
  if isinstance(cfg, sizes.ViTConfig):
    tokens, patch = cfg.num_tokens, cfg.patch**2 * 3
  tokens += cfg.prompts
  seen = {'token': tokens, 'key': tokens + cfg.prefixes, 'patch': patch}
  return sizes.axis_sizes(cfg) | seen


def adapters(experiment: config.Experiment) -> block.Adapters:
  """Returns what is added to each adapted linear map or sublayer."""
  tune, lora = experiment.model.tune, experiment.lora
  if tune == 'lora':
    targets = [*lora.targets, *(['embed.patch'] if lora.patch_embed else [])]
    own = experiment.rank.scaling == 'client'
    scale = lora.alpha / lora.rank
    added = linear.Adapter(lora.rank, scale, lora.dropout, own)
    return dict.fromkeys(targets, added)
  if tune == 'adapter':
    cfg = dataclasses.asdict(experiment.fedadapter)
    return dict.fromkeys(cfg.pop('after'), adapter.Bottleneck(**cfg))
  return {}


def local_optimizer(cfg: config.Local) -> optax.GradientTransformation:
  """Builds the clients' optimizer for learning rate 1.

  Clipping comes first and weight decay enters the gradient of SGD, as in
  torch; adamw decouples it.
  """
  clip = optax.clip_by_global_norm(cfg.clip_norm)
  parts = [clip] if cfg.clip_norm else []
  if cfg.optimizer == 'adamw':
    parts.append(optax.adamw(1.0, weight_decay=cfg.weight_decay))
  else:
    decay = optax.add_decayed_weights(cfg.weight_decay)
    parts += [decay] if cfg.weight_decay else []
    sgd = optax.sgd(1.0, momentum=cfg.momentum or None)
    parts.append(optax.adam(1.0) if cfg.optimizer == 'adam' else sgd)
  return optax.chain(*parts)


def learning_rate(cfg: config.Local, rnd: int) -> float:
  """Returns the clients' learning rate in a round."""
  return cfg.lr * cfg.decay ** (rnd // cfg.decay_every)


def _overlay(tree: Tree, params: Tree, place: Callable[[Any], Any]) -> Tree:
  """Replaces the leaves of a model's tree by those loaded, where there are."""
  if not isinstance(tree, dict):
    return place(params)
  return {
    name: _overlay(part, params[name], place) if name in params else part
    for name, part in tree.items()
  }

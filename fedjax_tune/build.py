"""From an experiment's names to objects; the one place where that happens."""

from collections.abc import Callable
import dataclasses
from typing import Any

from flax import nnx
import jax
import numpy as np
import optax

from fedjax_tune import config, devices, foundation, tasks, validate
from fedjax_tune.data import corpus, fetch, partition
from fedjax_tune.engine.plan import Planner
from fedjax_tune.methods import BUILDERS
from fedjax_tune.models import backbone, linear, pretrained, sizes
from fedjax_tune.typing import Axes, Tree

# Channel means and standard deviations, in [0, 1].
NORMALIZATIONS = {
  'imagenet': ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
  'clip': ((0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)),
  'half': ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


@dataclasses.dataclass(frozen=True)
class Setup:
  """All that a run is made of.

  Attributes:
    experiment: Its configuration.
    foundation: The model, split.
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
  """

  experiment: config.Experiment
  foundation: foundation.Foundation
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
  weights = pretrained.load_pretrained(
    experiment.model.weights,
    data_dir(experiment.data),
    experiment.data.image_size,
  )
  widths = axis_sizes(weights.config, experiment.data)
  budgets = partition.expand_budgets(clients.budgets, domains, widths['layer'])
  budgets = tuple(int(b) for b in budgets)
  hardware = ()
  if clients.devices:
    hardware = devices.assign(clients.devices, len(domains))
  method = BUILDERS[experiment.method](experiment, widths, budgets)
  train, test = corpus.load(
    experiment.data,
    weights.tokenizer,
    weights.config.pad if isinstance(weights.config, sizes.TextConfig) else 0,
  )
  parts = partition.partition(clients, train)
  method = method.meet(train.task, parts.present(train))
  model = build_foundation(experiment, weights, train.task)
  model = method.prepare(model)
  theta, axes = method.init(model.theta, model.axes)
  planner = Planner(experiment, method, train, parts.indices, parts.domains)
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
  )


def _check_cohort(cfg: config.Clients, num_clients: int) -> None:
  if cfg.cohort == 'uniform' and cfg.cohort_size > num_clients:
    raise ValueError(
      f'clients.cohort_size={cfg.cohort_size} must be at most {num_clients}, '
      'the number of clients.'
    )


def data_dir(cfg: config.Data) -> str:
  """Returns where data and weights lie."""
  return cfg.data_dir or str(fetch.default_data_dir())


def build_foundation(
  experiment: config.Experiment,
  weights: pretrained.Pretrained,
  task: tasks.Task,
) -> foundation.Foundation:
  """Builds the model, with its adapters, around pretrained weights."""
  full = experiment.model.tune == 'full'
  cfg = dataclasses.replace(
    weights.config, num_classes=task.num_outputs, full=full
  )
  if isinstance(cfg, sizes.TextConfig):
    cfg = dataclasses.replace(cfg, span=task.kind == 'span')
  if isinstance(cfg, sizes.ViTConfig) and experiment.data.normalization:
    mean, std = NORMALIZATIONS[experiment.data.normalization]
    cfg = dataclasses.replace(cfg, mean=mean, std=std)
  model = backbone.build_model(
    cfg,
    {} if full else adapters(experiment.lora, experiment.rank.scaling),
    remat=experiment.model.remat,
    rngs=nnx.Rngs(experiment.seed),
  )
  split = foundation.split(model, cfg.depth)
  dtype = experiment.model.dtype
  place = lambda x, dtype: jax.device_put(np.asarray(x, dtype))
  return dataclasses.replace(
    split,
    theta=_overlay(split.theta, weights.params, lambda x: place(x, 'float32')),
    base=_overlay(split.base, weights.params, lambda x: place(x, dtype)),
  )


def axis_sizes(cfg: sizes.Config, data: config.Data) -> dict[str, int]:
  """Returns the size of each axis, of an example too ('token', 'patch')."""
  axes = dict(sizes.Axes.of(cfg))
  if isinstance(cfg, sizes.ViTConfig):
    return {**axes, 'token': cfg.num_tokens, 'patch': cfg.patch**2 * 3}
  return {**axes, 'token': max(data.lengths), 'patch': 0}


def adapters(cfg: config.Lora, scaling: str) -> dict[str, linear.Adapter]:
  """Returns the LoRA of each adapted linear map; see `config.Rank`."""
  targets = [*cfg.targets, *(['embed.patch'] if cfg.patch_embed else [])]
  scale, own = cfg.alpha / cfg.rank, scaling == 'client'
  lora = linear.Adapter(cfg.rank, scale, cfg.dropout, own)
  return dict.fromkeys(targets, lora)


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

"""A method around its pretrained models, without data."""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from fedjax_tune import config
from fedjax_tune.data import digest, fetch, tasks
from fedjax_tune.data.public import Shown
from fedjax_tune.engine import divided, schedule
from fedjax_tune.engine.algorithm import Algorithm
from fedjax_tune.methods import METHODS, proximal
from fedjax_tune.methods.facts import Facts, nothing_public
from fedjax_tune.models import foundation, heads, peft, probe, tiers


def load_tiers(experiment: config.Experiment) -> tuple[tiers.Tier, ...]:
  """Loads the pretrained models; raises the errors of `build.build`."""
  several = METHODS[experiment.method].several_models
  load = tiers.load if several else tiers.load_one
  return load(experiment, str(fetch.data_dir(experiment.data.data_dir)))


def with_heads(
  found: Sequence[tiers.Tier], task: tasks.Task, class_names: Sequence[str]
) -> tuple[tiers.Tier, ...]:
  """Adds heads that came with the models, if they have these classes."""
  put = lambda t: heads.put(t.weights, task, class_names)
  return tuple(dataclasses.replace(t, weights=put(t)) for t in found)


def hash_weights(found: Sequence[tiers.Tier]) -> str:
  """Hashes pretrained models and their sizes."""
  return digest.of([[t.weights.config, t.weights.params] for t in found])[:16]


def build(
  experiment: config.Experiment,
  found: Sequence[tiers.Tier],
  task: tasks.Task,
  sizes: Mapping[str, int],
  budgets: tuple[int, ...],
  present: Callable[[int], np.ndarray] | None = None,
  fitted: Mapping[str, tuple[Any, ...]] | None = None,
  public: Callable[[str], Shown] = nothing_public,
  aligned: Mapping[str, Mapping[str, np.ndarray]] | None = None,
) -> Algorithm:
  """Builds a method around pretrained models; arguments are those of `Facts`."""
  build_of = lambda t: functools.partial(_build_tier, experiment, t, task)
  facts = Facts(
    experiment,
    sizes,
    budgets,
    task,
    present,
    {tier.name: build_of(tier) for tier in found},
    fitted or {},
    public,
    aligned or {},
  )
  mesh = schedule.clients_mesh(fsdp_devices(experiment.engine))
  # A model that one accelerator can't hold must not begin there.
  with _host_memory() if mesh.size > 1 else contextlib.nullcontext():
    algorithm = METHODS[experiment.method].build(facts)
  if mesh.size > 1:
    model = divided.divide(algorithm.model, mesh)
    algorithm = dataclasses.replace(algorithm, model=model)
  if experiment.local.prox:
    algorithm = proximal.add(algorithm, experiment.local.prox)
  return algorithm


def _build_tier(
  experiment: config.Experiment,
  tier: tiers.Tier,
  task: tasks.Task,
  adapter: config.Fedadapter | None,
) -> foundation.Foundation:
  """Builds a tier's model, around other bottleneck adapters if given."""
  if adapter is None:
    built = peft.build(experiment, tier.weights, task)
    return probe.probe(built) if experiment.engine.cache_frozen else built
  own = dataclasses.replace(experiment, fedadapter=adapter)
  code = 0 if own.tiers.head == 'own' else own.tiers.head_rank
  if code and task.kind not in ('classification', 'regression'):
    raise ValueError(
      f"tiers.head={own.tiers.head!r} must be 'own' for a task of kind"
      f' {task.kind!r}: a common head reads one code an example.'
    )
  made = peft.build(own, tier.weights, task, adapter.projections, code)
  return foundation.cut(made, tier.kept)


def fsdp_devices(cfg: config.Engine) -> int:
  """Returns the number of devices that share the frozen parameters."""
  return (cfg.devices or jax.local_device_count()) if cfg.fsdp else 1


def _host_memory() -> contextlib.AbstractContextManager[None]:
  """Makes arrays that are created inside stay in the host's memory."""
  try:
    return jax.default_device(jax.local_devices(backend='cpu')[0])
  except RuntimeError:  # JAX_PLATFORMS leaves it out.
    return contextlib.nullcontext()

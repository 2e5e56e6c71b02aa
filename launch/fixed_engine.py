"""Workloads A and B on this engine, built by hand around given weights."""

import dataclasses
import time
from typing import Any
import zipfile

from flax import nnx
import jax
import numpy as np
import optax

from fedjax_tune.costs import cost
from fedjax_tune.data.tasks import Task
from fedjax_tune.engine import plan, slabs
from fedjax_tune.engine.client import Batch
from fedjax_tune.engine.round import Engine
from fedjax_tune.engine.step import Own
from fedjax_tune.methods.depth import uniform
from fedjax_tune.models import backbone, foundation, vit
from fedjax_tune.models.lora import Lora
from fedjax_tune.selection import Selection

from . import fixed_workload as fixed
from .fixed_workload import Workload
from .rounds import Side

Tensors = dict[str, np.ndarray]


def initial_weights(work: Workload, init: str) -> tuple[Tensors | None, str]:
  """Returns tensors under peft's names, and where they come from.

  Args:
    work: The workload.
    init: An .npz file of tensors; '' draws them as transformers and peft do, or
      returns None if those are not installed.
  """
  if init:
    return _read(init), init
  try:
    from .peers import torch_model
  except ImportError:
    return None, 'random'
  return torch_model.tensors(torch_model.build(work)), 'transformers+peft'


def _read(path: str) -> Tensors:
  try:
    return dict(np.load(path))
  except (ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
    raise ValueError(f'--init={path} must be an .npz file: {error}') from error


def prepare(
  work: Workload,
  tensors: Tensors | None,
  *,
  mode: str = 'auto',
  chunk: int = 2,
  dtype: str = 'float32',
  unroll: bool = False,
) -> Side:
  """Builds and compiles a workload; the arguments are the command's flags."""
  begin = time.perf_counter()
  algorithm = uniform.fedavg(
    build_foundation(work, tensors, dtype, unroll),
    Task('classification', fixed.CLASSES),
    (work.depth,) * work.population,
    work.depth,
  )
  optimizer = optax.sgd(1.0, momentum=fixed.MOMENTUM)
  engine = Engine(algorithm, optimizer, optax.sgd(1.0))
  sig = slabs.Signature.of(algorithm.rule.draw(0, [0])[0])
  shapes = jax.eval_shape(
    lambda b: jax.tree.map(lambda x: x[0], b), _batches(work, 0)
  )
  engine.compile({sig: work.cohort}, lambda _: shapes, {}, mode, chunk)
  model = algorithm.model
  held = cost.held_shapes(model.theta, model.axes, sig)
  moved = algorithm.traffic(sig, [sig] * work.cohort, lambda _: held)
  return Side(
    engine,
    lambda rnd: _plan(work, sig, rnd),
    fixed.LR,
    time.perf_counter() - begin,
    moved.uplink,
  )


def _plan(work: Workload, sig: slabs.Signature, rnd: int) -> plan.RoundPlan:
  slab = slab_of(work, sig, rnd)
  own = Own(
    slab.held, slab.info, (), slab.weight, slab.ids, _batches(work, rnd)
  )
  steps = work.cohort * fixed.STEPS
  works = [plan.Work(slab, own)]
  return plan.RoundPlan(rnd, [], [slab], works, steps, np.zeros(0))


def slab_of(work: Workload, sig: slabs.Signature, rnd: int) -> slabs.Slab:
  """Returns the cohort of a round, all of it one slab."""
  held = Selection.of({'layer': work.depth})
  return slabs.cut_slabs(
    fixed.draw_cohort(work, rnd),
    [sig] * work.cohort,
    [held] * work.cohort,
    [{}] * work.cohort,
    [1.0] * work.cohort,
    {sig: work.cohort},
  )[0]


def _batches(work: Workload, rnd: int) -> Batch:
  images, labels = fixed.draw_round(work, rnd)
  valid = np.ones(labels.shape, bool)
  return Batch(np.ascontiguousarray(np.moveaxis(images, 3, 5)), labels, valid)


def build_foundation(
  work: Workload, tensors: Tensors | None, dtype: str, unroll: bool
) -> foundation.Foundation:
  """Builds the ViT with LoRA on q and v around the tensors."""
  sizes = vit.ViTConfig(
    work.depth,
    work.embed,
    work.heads,
    work.ffn,
    work.patch,
    image_size=fixed.SIDE,
    eps=1e-12,
    num_classes=fixed.CLASSES,
  )
  adapter = Lora(fixed.RANK, fixed.ALPHA / fixed.RANK, 0.0)
  adapters = {'attn.q': adapter, 'attn.v': adapter}
  rngs = nnx.Rngs(fixed.SEED)
  model = vit.ViT(sizes, adapters, unroll=unroll, rngs=rngs)
  split = foundation.split(model, work.depth)
  if tensors is None:
    rng = np.random.default_rng(fixed.SEED)
    noise = lambda x: np.float32(0.02) * rng.normal(size=x.shape)
    frozen = jax.tree.map(lambda x: x + noise(x), split.base)
    base = foundation.store(frozen, dtype)
    return dataclasses.replace(split, base=jax.device_put(base))
  plain = {
    name.removeprefix('base_model.model.vit.').replace('.base_layer', ''): x
    for name, x in tensors.items()
  }
  # A backbone refuses adapters and heads, which are no part of it.
  own = {
    name: x
    for name, x in plain.items()
    if 'lora_' not in name and '.classifier.' not in name
  }
  frozen = backbone.assemble(own, sizes, 'init').params
  return dataclasses.replace(
    split,
    base=jax.device_put(foundation.store(frozen, dtype)),
    theta=jax.device_put(_theta(work, plain)),
  )


def _theta(work: Workload, tensors: Tensors) -> Any:
  def stacked(part, matrix):
    names = [
      f'layers.{i}.attention.{part}_proj.lora_{matrix}.default.weight'
      for i in range(work.depth)
    ]
    return np.stack([tensors[name].T for name in names])

  def lora(part):
    b = stacked(part, 'B')
    wide = (*b.shape[:2], work.heads, work.embed // work.heads)
    return {'lora_a': stacked(part, 'A'), 'lora_b': b.reshape(wide)}

  head = 'base_model.model.classifier.modules_to_save.default.'
  return {
    'blocks': {'attn': {'q': lora('q'), 'v': lora('v')}},
    'head': {
      'kernel': tensors[head + 'weight'].T,
      'bias': tensors[head + 'bias'],
    },
  }

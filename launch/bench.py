"""Measures the engine on a fixed workload and prints one JSON line.

  python -m launch.bench --workload=A [--init=weights.npz] [--mode=map]

Workload A is compute: ViT-Tiny/4, 12 layers, 65 tokens, LoRA r=8 on q and v
plus the head; 8 of 100 clients, 5 SGD-momentum steps of 16 examples. B is
overhead: 2 layers of width 64, 32 of 200 clients, batch 8. Weights come from
`--init` (an .npz of a peft-wrapped transformers ViT), or are drawn as
transformers and peft draw them where those are installed, or are random; the
line says which. Equal weights give equal losses in any framework.
"""

import dataclasses
import json
import resource
import sys
import time
from typing import Any
import zipfile

from absl import flags
from flax import nnx
import jax
import numpy as np
import optax

from fedjax_tune.costs import products
from fedjax_tune.data.tasks import Task
from fedjax_tune.engine import plan, slabs
from fedjax_tune.engine.client import Batch
from fedjax_tune.engine.round import Engine
from fedjax_tune.engine.step import Own
from fedjax_tune.methods.depth import uniform
from fedjax_tune.models import backbone, foundation, vit
from fedjax_tune.models.lora import Lora
from fedjax_tune.selection import Selection
from launch import start

_WORKLOAD = flags.DEFINE_enum('workload', 'A', ['A', 'B'], 'What to run.')
_INIT = flags.DEFINE_string('init', '', 'Initial weights, .npz.')
_MODE = flags.DEFINE_enum(
  'mode', 'auto', ['auto', 'map', 'chunk', 'vmap'], 'engine.mode.'
)
_DTYPE = flags.DEFINE_enum(
  'dtype', 'float32', ['float32', 'bfloat16'], 'model.dtype.'
)
_CHUNK = flags.DEFINE_integer('chunk', 2, 'engine.chunk.', lower_bound=1)
_ROUNDS = flags.DEFINE_integer(
  'rounds', 0, "Rounds; 0 is the workload's.", lower_bound=0
)

_RANK, _ALPHA, _CLASSES, _STEPS, _LR, _SEED = 8, 16, 10, 5, 0.01, 0


@dataclasses.dataclass(frozen=True)
class Workload:
  """Sizes of a workload."""

  model: vit.ViTConfig
  population: int
  cohort: int
  batch: int
  examples: int
  rounds: int


def _workload(name: str) -> Workload:
  def model(depth, embed, heads, ffn, patch):
    return vit.ViTConfig(
      depth,
      embed,
      heads,
      ffn,
      patch,
      image_size=32,
      eps=1e-12,
      num_classes=_CLASSES,
    )

  if name == 'A':
    return Workload(model(12, 192, 3, 768, 4), 100, 8, 16, 80, 4)
  return Workload(model(2, 64, 2, 128, 8), 200, 32, 8, 40, 5)


def client_data(client: int, examples: int) -> tuple[np.ndarray, np.ndarray]:
  """Draws a client's images [n, 32, 32, 3] and labels: pattern plus noise."""
  patterns = np.random.default_rng(_SEED + 12345).normal(
    size=(_CLASSES, 3, 32, 32)
  )
  rng = np.random.default_rng((_SEED, client))
  labels = rng.integers(0, _CLASSES, size=examples)
  noise = rng.normal(size=(examples, 3, 32, 32))
  images = 0.5 * patterns.astype(np.float32)[labels] + noise.astype(np.float32)
  return np.moveaxis(images, 1, 3), labels.astype(np.int32)


def initial_weights(work: Workload) -> tuple[dict[str, np.ndarray] | None, str]:
  """Returns tensors under peft's names, and where they come from."""
  if _INIT.value:
    return _read(_INIT.value), _INIT.value
  try:
    import peft
    import torch
    import transformers
  except ImportError:
    return None, 'random'
  m = work.model
  torch.manual_seed(_SEED)
  sizes: dict[str, Any] = {
    'hidden_size': m.embed,
    'num_hidden_layers': m.depth,
    'num_attention_heads': m.heads,
    'intermediate_size': m.ffn,
    'image_size': m.image_size,
    'patch_size': m.patch,
    'num_labels': m.num_classes,
    'hidden_dropout_prob': 0.0,
    'attention_probs_dropout_prob': 0.0,
  }
  vit_config = transformers.ViTConfig(**sizes)
  model = transformers.ViTForImageClassification(vit_config)
  lora = peft.LoraConfig(
    r=_RANK,
    lora_alpha=_ALPHA,
    lora_dropout=0.0,
    target_modules=['q_proj', 'v_proj'],
    modules_to_save=['classifier'],
  )
  named = peft.get_peft_model(model, lora).named_parameters()
  return {n: p.detach().numpy() for n, p in named}, 'transformers+peft'


def _read(path: str) -> dict[str, np.ndarray]:
  try:
    return dict(np.load(path))
  except (ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
    raise ValueError(f'--init={path} must be an .npz file: {error}') from error


def build_foundation(
  work: Workload, tensors: dict[str, np.ndarray] | None
) -> foundation.Foundation:
  """Builds the ViT with LoRA on q and v around the tensors."""
  adapter = Lora(_RANK, _ALPHA / _RANK, 0.0)
  adapters = {'attn.q': adapter, 'attn.v': adapter}
  rngs = nnx.Rngs(_SEED)
  split = foundation.split(
    vit.ViT(work.model, adapters, rngs=rngs), work.model.depth
  )
  if tensors is None:
    rng = np.random.default_rng(_SEED)
    noise = lambda x: np.float32(0.02) * rng.normal(size=x.shape)
    frozen = jax.tree.map(lambda x: x + noise(x), split.base)
    base = foundation.store(frozen, _DTYPE.value)
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
  frozen = backbone.assemble(own, work.model, 'init').params
  return dataclasses.replace(
    split,
    base=jax.device_put(foundation.store(frozen, _DTYPE.value)),
    theta=jax.device_put(_theta(work.model, plain)),
  )


def _theta(model: vit.ViTConfig, tensors: dict[str, np.ndarray]) -> Any:
  def stacked(part, matrix):
    names = [
      f'layers.{i}.attention.{part}_proj.lora_{matrix}.default.weight'
      for i in range(model.depth)
    ]
    return np.stack([tensors[name].T for name in names])

  def lora(part):
    b = stacked(part, 'B')
    wide = (*b.shape[:2], model.heads, model.embed // model.heads)
    return {'lora_a': stacked(part, 'A'), 'lora_b': b.reshape(wide)}

  head = 'base_model.model.classifier.modules_to_save.default.'
  return {
    'blocks': {'attn': {'q': lora('q'), 'v': lora('v')}},
    'head': {
      'kernel': tensors[head + 'weight'].T,
      'bias': tensors[head + 'bias'],
    },
  }


def slab_of(work: Workload, sig: slabs.Signature, rnd: int) -> slabs.Slab:
  """Draws the cohort of a round, all of it one slab."""
  rng = np.random.default_rng((_SEED, 777, rnd))
  cohort = rng.choice(work.population, work.cohort, replace=False).astype(int)
  held = Selection.of({'layer': work.model.depth})
  return slabs.cut_slabs(
    cohort.tolist(),
    [sig] * work.cohort,
    [held] * work.cohort,
    [{}] * work.cohort,
    [1.0] * work.cohort,
    {sig: work.cohort},
  )[0]


def cohort_batches(work: Workload, slab: slabs.Slab) -> Batch:
  """Cuts the clients' data into batches [C, S, B, ...]."""
  parts = []
  for client in slab.ids:
    images, labels = client_data(int(client), work.examples)
    lead = (_STEPS, work.batch)
    valid = np.ones(lead, bool)
    images = images.reshape(*lead, *images.shape[1:])
    parts.append((images, labels.reshape(lead), valid))
  return Batch(*map(np.stack, zip(*parts, strict=True)))


def main(argv: list[str]) -> None:
  """Runs the workload and prints its line."""
  start.reject_arguments(argv)
  work = _workload(_WORKLOAD.value)
  tensors, source = initial_weights(work)
  try:
    model = build_foundation(work, tensors)
  except KeyError as error:
    raise ValueError(f'--init={source} lacks the tensor {error}.') from error
  algorithm = uniform.fedavg(
    model,
    Task('classification', _CLASSES),
    (work.model.depth,) * work.population,
    work.model.depth,
  )
  engine = Engine(algorithm, optax.sgd(1.0, momentum=0.9), optax.sgd(1.0))
  sig = slabs.Signature.of(algorithm.rule.draw(0, [0])[0])
  shapes = jax.eval_shape(
    lambda b: jax.tree.map(lambda x: x[0], b),
    cohort_batches(work, slab_of(work, sig, 0)),
  )
  engine.compile(
    {sig: work.cohort}, lambda _: shapes, {}, _MODE.value, _CHUNK.value
  )
  state, key = engine.init(), jax.random.key(_SEED)
  losses, seconds, steps = [], [], work.cohort * _STEPS
  for rnd in range(_ROUNDS.value or work.rounds):
    slab = slab_of(work, sig, rnd)
    batches = cohort_batches(work, slab)
    begin = time.perf_counter()
    own = Own(slab.held, slab.info, (), slab.weight, slab.ids, batches)
    item = plan.Work(slab, jax.device_put(own))
    planned = plan.RoundPlan(rnd, [], [item], steps, np.zeros(0))
    state, sums = engine.round(state, planned, key, _LR)
    jax.block_until_ready(state)
    seconds.append(time.perf_counter() - begin)
    losses.append(float(sums['loss'] / sums['count']))
  steady = seconds[1:] or seconds
  line = {
    'workload': _WORKLOAD.value,
    'client_steps_per_s': steps / float(np.median(steady)),
    'losses': losses,
    'round_s': seconds,
    'mode': _MODE.value,
    'dtype': _DTYPE.value,
    'products_gflops': {k: v / 1e9 for k, v in products.rates().items()},
    'init': source,
    'compiles': len(engine.programs.compiled),
    'peak_rss_mib': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    'device': jax.devices()[0].device_kind,
    'jax': jax.__version__,
  }
  sys.stdout.write(json.dumps(line) + '\n')


if __name__ == '__main__':
  start.run(main)

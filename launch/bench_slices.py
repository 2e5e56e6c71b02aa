"""Times a client's step at five widths: do slices cost what they should?

  python -m launch.bench_slices [--repeats=5]

It times a local step that trains all parameters of a MiniLM-sized encoder
(random weights, 16 texts of 64 tokens), with all, 3/4, 1/2, 1/4 and 1/8 of the
heads' width and of the MLP. It prints a JSON line for each: FLOPs counted from
the program that runs, seconds, and both relative to the full model.
"""

import json
import sys
import time

from absl import flags
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_tune import selection
from fedjax_tune.costs import cost
from fedjax_tune.data.tasks import Task
from fedjax_tune.engine.algorithm import Algorithm, Context
from fedjax_tune.engine.client import Batch, client_update
from fedjax_tune.engine.slabs import Signature
from fedjax_tune.methods.depth import uniform
from fedjax_tune.methods.raffm.spaces import row_of
from fedjax_tune.models import backbone, foundation, sizes
from fedjax_tune.selection import Selection
from fedjax_tune.typing import Tokens

from . import start

_REPEATS = flags.DEFINE_integer(
  'repeats', 5, 'Timings each; the median counts.', lower_bound=1
)

_SHARES = (1.0, 0.75, 0.5, 0.25, 0.125)
_BATCH, _TOKENS, _STEPS = 16, 64, 2
_MODEL = sizes.TextConfig(
  depth=6,
  embed=384,
  heads=12,
  ffn=1536,
  vocab=30522,
  positions=512,
  family='bert',
  num_classes=2,
  full=True,
)


def main(argv: list[str]) -> None:
  """Times each width and prints its line."""
  start.reject_arguments(argv)
  model = backbone.build_model(_MODEL, rngs=nnx.Rngs(0))
  found = foundation.split(model, _MODEL.depth)
  axes = dict(sizes.Axes.of(_MODEL), token=_TOKENS, key=_TOKENS, patch=0)
  task = Task('classification', _MODEL.num_classes)
  algorithm = uniform.fedavg(found, task, (_MODEL.depth,), _MODEL.depth)
  lines = []
  for share in _SHARES:
    row = row_of((share, 1.0, share, 1.0, 1.0), axes)
    lines.append(_measure(found, algorithm, row) | {'share': share})
  for line in lines:
    line['flops_relative'] = line['flops'] / lines[0]['flops']
    line['seconds_relative'] = line['seconds'] / lines[0]['seconds']
    sys.stdout.write(json.dumps(line) + '\n')


def _measure(
  found: foundation.Foundation,
  algorithm: Algorithm,
  row: dict[str, int],
) -> dict[str, float]:
  """Returns the FLOPs and the seconds of one local step."""
  sig = Signature.of(row, _TOKENS)
  batch = _batches()
  one = jax.tree.map(lambda x: x[0], batch)
  counted = cost.client_cost(algorithm, sig, jax.eval_shape(lambda: one))

  @jax.jit
  def update(local, batches):
    def objective(local, batch, key):
      client = found.assemble(found.base, local, row)
      return algorithm.client.loss(client, batch, context, key)

    key, rate = jax.random.key(0), jnp.float32(1e-4)
    held = Selection.of(row)
    context = Context(sig, held, {}, (), (), rate, jnp.int32(0))
    return client_update(objective, optax.adamw(1.0), local, batches, key, rate)

  local = selection.select_within(found.theta, found.axes, row)
  jax.block_until_ready(update(local, batch))
  seconds = []
  for _ in range(_REPEATS.value):
    begin = time.perf_counter()
    jax.block_until_ready(update(local, batch))
    seconds.append((time.perf_counter() - begin) / _STEPS)
  return {
    'flops': counted.flops,
    'params': counted.theta_params,
    'seconds': float(np.median(seconds)),
  }


def _batches() -> Batch:
  rng = np.random.default_rng(0)
  lead = (_STEPS, _BATCH)
  ids = rng.integers(1, _MODEL.vocab, (*lead, _TOKENS)).astype(np.int32)
  inputs = Tokens(ids, np.zeros_like(ids))
  labels = rng.integers(0, _MODEL.num_classes, lead).astype(np.int32)
  return jax.device_put(Batch(inputs, labels, np.ones(lead, bool)))


if __name__ == '__main__':
  start.run(main)

"""Estimated memory of a local step against the compiler's own figure."""

import dataclasses
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from fedjax_tune import config, selection
from fedjax_tune.costs import cost, flops, memory
from fedjax_tune.data import tasks
from fedjax_tune.engine import client, local_optimizer
from fedjax_tune.engine.algorithm import Context
from fedjax_tune.engine.client import Batch
from fedjax_tune.engine.slabs import Signature
from fedjax_tune.methods.depth import uniform
from fedjax_tune.methods.raffm import spaces
from fedjax_tune.models import backbone, foundation, peft, sizes
from fedjax_tune.models.lora import Lora
from fedjax_tune.typing import Tokens

_TOKENS = 64
# Of head width, heads, MLP, model width and depth.
_SIZES = (
  (1.0, 1.0, 1.0, 1.0, 1.0),
  (1.0, 1.0, 5 / 12, 1.0, 1.0),
  (1.0, 0.5, 0.5, 1.0, 0.5),
  (1.0, 1.0, 0.3, 0.75, 1.0),
  (1.0, 0.5, 0.5, 0.5, 0.5),
)
_MODELS = {
  'vit': sizes.ViTConfig(
    6, 384, 6, 1536, patch=16, image_size=128, num_classes=10
  ),
  'bert': sizes.TextConfig(
    6, 384, 6, 1536, vocab=3000, positions=128, num_classes=4
  ),
  'llama': sizes.DecoderConfig(
    6, 384, 2, 1024, 3000, 128, 3, 64, num_classes=4
  ),
}


def _batch(kind, examples):
  def zeros(*lead: int, dtype: Any = np.int32) -> np.ndarray:
    return np.zeros((examples, *lead), dtype)

  inputs = Tokens(zeros(_TOKENS), zeros(_TOKENS))
  if kind == 'vit':
    inputs = zeros(128, 128, 3, dtype=np.uint8)
  return Batch(inputs, zeros(), zeros(dtype=np.bool_))


@functools.cache
def _algorithm(kind, tune, shares):
  """FedAvg of a model that was cut to a client's size, in shapes alone."""
  shape = peft.with_trained(_MODELS[kind], config.Model(tune=tune))
  lora = Lora(16, 1.0, 0.1)
  targets = ('attn.q', 'attn.k', 'attn.v') if tune == 'lora' else ()

  def make():
    return backbone.build_model(
      shape, dict.fromkeys(targets, lora), rngs=nnx.Rngs(0)
    )

  whole = foundation.split(nnx.eval_shape(make), shape.depth)
  axes = peft.axis_sizes(shape, config.Data(lengths=(_TOKENS,)))
  held = spaces.row_of(shares, axes)
  cut = lambda tree, names: jax.eval_shape(
    lambda t: selection.select_within(t, names, held), tree
  )
  found = dataclasses.replace(
    whole,
    theta=cut(whole.theta, whole.axes),
    base=cut(whole.base, whole.base_axes),
    depth=held['layer'],
  )
  task = tasks.Task('classification', shape.num_classes)
  own = uniform.fedavg(found, task, (found.depth,), found.depth)
  return own, Signature.of({'layer': found.depth})


def _compiled(algorithm, sig, batch, optimizer):
  """Returns what XLA gives the local steps of a client, inputs included."""
  model, own = algorithm.model, sig.shapes()
  one = jnp.float32(1)
  context = Context(sig, own, {}, (), (), one, jnp.int32(0))

  def run(local, base, batches, key):
    def objective(theta, batch, key):
      made = model.assemble(base, theta, own)
      return algorithm.client.loss(made, batch, context, key)

    return client.client_update(objective, optimizer, local, batches, key, one)

  # Of one step the compiler would make no loop.
  steps = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((2, *x.shape), x.dtype), batch
  )
  key = jax.eval_shape(lambda: jax.random.key(0))
  lowered = jax.jit(run).lower(model.theta, model.base, steps, key)
  found = lowered.compile().memory_analysis()
  assert found is not None
  return found.argument_size_in_bytes + found.temp_size_in_bytes


@pytest.mark.parametrize('shares', [*_SIZES[::2], *tiny.slow(*_SIZES[1::2])])
@pytest.mark.parametrize(
  ('kind', 'tune', 'examples'),
  [
    ('vit', 'lora', 16),
    pytest.param('vit', 'full', 4, marks=pytest.mark.slow),
    pytest.param('bert', 'full', 16, marks=pytest.mark.slow),
    pytest.param('bert', 'lora', 4, marks=pytest.mark.slow),
    pytest.param('llama', 'lora', 16, marks=pytest.mark.slow),
    pytest.param('llama', 'full', 4, marks=pytest.mark.slow),
  ],
)
def test_within_a_tenth_of_the_compiler(kind, tune, examples, shares):
  algorithm, sig = _algorithm(kind, tune, shares)
  batch = _batch(kind, examples)
  optimizer = local_optimizer.build(config.Local(optimizer='adamw'))
  got = cost.client_cost(algorithm, sig, batch, optimizer=optimizer)
  want = _compiled(algorithm, sig, batch, optimizer)
  assert got.memory == pytest.approx(want, rel=0.1)


# -- the laws of the walk


def _peak(fn, *shapes, fixed=()):
  args = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
  program = flops.trace(fn, *args)
  return memory.peak(program, [i in fixed for i in range(len(args))])


def test_a_chain_of_products_holds_two():
  def chain(x, w):
    return x @ w @ w @ w

  assert _peak(chain, (8, 8), (8, 8)) == 2 * 8 * 8 * 4


def test_elementwise_operations_are_fused():
  assert _peak(lambda x, w: jnp.exp(x * 2 + 1) @ w, (8, 8), (8, 8)) == (
    2 * 8 * 8 * 4
  )


def test_what_is_made_of_weights_alone_is_at_hand():
  fn = lambda w, x: (w @ w) @ x
  assert _peak(fn, (8, 8), (8, 2)) == 8 * 8 * 4 + 8 * 2 * 4
  assert _peak(fn, (8, 8), (8, 2), fixed=(0,)) == 8 * 2 * 4


def test_a_loop_takes_what_a_turn_takes():
  def loop(x, w):
    return jax.lax.scan(lambda c, _: (c @ w @ w, None), x, length=9)[0]

  # The result, and the two products of a turn.
  assert _peak(loop, (8, 8), (8, 8)) == 3 * 8 * 8 * 4


def test_residuals_grow_with_depth():
  def loss(x, w, depth):
    turn = lambda c, _: (jnp.sin(c @ w), None)
    return jnp.sum(jax.lax.scan(turn, x, length=depth)[0])

  peaks = [
    _peak(jax.grad(functools.partial(loss, depth=depth)), (64, 8), (8, 8))
    for depth in (4, 8, 12)
  ]
  assert peaks[2] - peaks[1] == peaks[1] - peaks[0] > 0

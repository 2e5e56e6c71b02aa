"""The closed form of a client's cost against the traced program."""

import functools
from typing import Any

from flax import nnx
import jax
import numpy as np
import pytest

from fedjax_tune import config, selection
from fedjax_tune.costs import cost, estimate
from fedjax_tune.data import tasks
from fedjax_tune.engine.client import Batch
from fedjax_tune.engine.group import Signature
from fedjax_tune.methods.depth import uniform
from fedjax_tune.methods.raffm import spaces
from fedjax_tune.models import backbone, foundation, linear, peft, sizes
from fedjax_tune.typing import Tokens

_BATCH, _TOKENS = 4, 64
_TARGETS: tuple[str, ...] = ('attn.q', 'attn.k', 'attn.v')
# Of head width, heads, MLP, model width and depth.
_SHARES = [
  (1.0, 1.0, 1.0, 1.0, 1.0),
  (1.0, 1.0, 5 / 12, 1.0, 1.0),
  (0.5, 0.5, 0.5, 1.0, 1.0),
  (1.0, 1.0, 0.3, 0.75, 1.0),
  (0.5, 0.5, 0.5, 0.5, 0.5),
]
_KINDS = {
  'vit': _SHARES,
  'bert': _SHARES,
  # Rotary heads keep their width.
  'llama': [(1.0, *shares[1:]) for shares in _SHARES[1:]],
}
_CASES = [(kind, shares) for kind, each in _KINDS.items() for shares in each]


def _config(kind):
  """Half of a base model's width, half of its depth."""
  if kind == 'vit':
    return sizes.ViTConfig(
      6, 384, 6, 1536, patch=16, image_size=128, num_classes=10
    )
  if kind == 'llama':
    return sizes.DecoderConfig(6, 384, 2, 1024, 3000, 128, 3, 64, num_classes=4)
  return sizes.TextConfig(
    6, 384, 6, 1536, vocab=3000, positions=128, num_classes=4
  )


def _batch(kind):
  def zeros(*lead: int, dtype: Any = np.int32) -> np.ndarray:
    return np.zeros((_BATCH, *lead), dtype)

  inputs = Tokens(zeros(_TOKENS), zeros(_TOKENS))
  if kind == 'vit':
    inputs = zeros(128, 128, 3, dtype=np.uint8)
  return Batch(inputs, zeros(), zeros(dtype=np.bool_))


def _shape(kind, tune):
  """The sizes of a model with what it trains, if not adapters."""
  model = config.Model(tune=tune, prompt_tokens=20)
  return peft.with_trained(_config(kind), model)


@functools.cache
def _foundation(kind, tune):
  """The model in shapes alone."""
  shape = _shape(kind, tune)
  lora = linear.Adapter(16, 1.0, 0.1)
  adapters = dict.fromkeys(_TARGETS if tune == 'lora' else (), lora)

  def make():
    model = backbone.build_model(shape, adapters, rngs=nnx.Rngs(0))
    if tune == 'bitfit':
      foundation.release(model, lambda name: name == 'bias')
    return model

  return foundation.split(nnx.eval_shape(make), shape.depth)


def _both(kind, shares, tune):
  """Returns the estimate, the exact cost, and what the client holds."""
  shape = _shape(kind, tune)
  all_sizes = peft.axis_sizes(shape, config.Data(lengths=(_TOKENS,)))
  row = spaces.row_of(shares, all_sizes)
  found = _foundation(kind, tune)
  task = tasks.Task('classification', shape.num_classes)
  full = uniform.fedavg(found, task, (shape.depth,), shape.depth)
  exact = cost.client_cost(full, Signature.of(row), _batch(kind))
  return (
    estimate.client(
      {**all_sizes, **row}, batch_size=_BATCH, full=tune == 'full'
    ),
    exact,
    row,
  )


@pytest.mark.parametrize(('kind', 'shares'), _CASES)
def test_full_tuning_costs_what_its_program_counts(kind, shares):
  guess, exact, row = _both(kind, shares, 'full')
  assert guess.flops == pytest.approx(exact.flops, rel=0.05)
  found = _foundation(kind, 'full')
  held = jax.eval_shape(
    lambda blocks: selection.select(blocks, found.axes['blocks'], row),
    found.theta['blocks'],
  )
  assert guess.params == foundation.num_params(held)


# Adapters are left out: rank 16 of 384 on three maps of six.
@pytest.mark.parametrize(('kind', 'shares'), _CASES)
def test_adapters_are_a_tenth_at_most(kind, shares):
  guess, exact, _ = _both(kind, shares, 'lora')
  assert 0.9 < guess.flops / exact.flops < 1


@pytest.mark.parametrize('tune', ['bitfit', 'prompt', 'prefix'])
@pytest.mark.parametrize('kind', ['vit', 'bert'])
def test_what_else_trains_costs_what_its_program_counts(kind, tune):
  guess, exact, _ = _both(kind, _SHARES[0], tune)
  assert guess.flops == pytest.approx(exact.flops, rel=0.05)


def test_a_narrower_model_costs_less_of_everything():
  full, narrow = (_both('bert', s, 'full')[0] for s in _SHARES[:2])
  assert narrow.params < full.params
  assert narrow.flops < full.flops
  assert narrow.memory < full.memory

"""Methods of different width, against what their papers say, by hand."""

import dataclasses
import math

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from fedjax_tune import selection
from fedjax_tune.data.tasks import Task
from fedjax_tune.engine.client import Batch
from fedjax_tune.methods import METHODS
from fedjax_tune.methods.facts import Facts
from fedjax_tune.methods.width import rates
from fedjax_tune.models import foundation, linear

_SIZES = {'layer': tiny.DEPTH, 'embed': 6}
# Of BERT and the ViT.
_WIDE = {**_SIZES, 'embed': 16, 'qk_dim': 8, 'v_dim': 8, 'ffn': 32}
_KEY = jax.random.key(0)


def _experiment(name, sizes=None, seed=1, **options):
  e = tiny.experiment(name, seed=seed)
  sizes = sizes or _SIZES
  options = {
    'rates': (0.5, 1.0, 0.25),
    'axes': tuple(a for a in sizes if a != 'layer'),
    **options,
  }
  e.width = dataclasses.replace(e.width, **options)
  return e


def _build(name, sizes=None, present=None, **options):
  """Returns a method whose clients 0, 1, 2 have a half, all and a quarter."""
  e = _experiment(name, sizes, **options)
  budgets = (tiny.DEPTH,) * 4
  return tiny.build(e, tiny.stack(), budgets, present, sizes or _SIZES)


def _held(algorithm, found, client):
  """Returns what a client knows, and its model."""
  context = tiny.context(algorithm, client)
  local = selection.select_within(found.theta, found.axes, context.held)
  return context, found.assemble(found.base, local, context.held)


def _loss(algorithm, found, client, batch, key=_KEY):

  def run(theta, base):
    view = dataclasses.replace(found, theta=theta, base=base)
    context, model = _held(algorithm, view, client)
    return algorithm.client.loss(model, batch, context, key)[0]

  return float(jax.jit(run)(found.theta, found.base))


def _cross_entropy(logits_BxK, batch):
  logits_BxK = np.asarray(logits_BxK, np.float64)
  log_z_B = np.log(np.exp(logits_BxK).sum(1))
  losses_B = log_z_B - logits_BxK[np.arange(len(log_z_B)), batch.label]
  return losses_B[np.asarray(batch.valid)].mean()


def _slow_stack(found, n, batch, rate):
  """The stack of width n; what each linear map gives is divided by `rate`."""

  def apply(frozen, lora, x, ins, outs):
    kernel, a = frozen['kernel'][ins, outs], lora['lora_a'][ins]
    wide = x @ kernel + 2.0 * x @ a @ lora['lora_b'][:, outs]
    return (wide + frozen['bias'][outs]) / rate

  base, theta = jax.tree.map(np.asarray, (found.base, found.theta))
  x = np.asarray(batch.inputs).reshape(len(batch.label), -1) / 255 - 0.5
  some, everything = slice(n), slice(None)
  x = apply(base['embed'], theta['embed'], x, everything, some)
  for layer in range(tiny.DEPTH):
    blocks = (base['blocks'], theta['blocks'])
    frozen, lora = jax.tree.map(lambda w, i=layer: w[i], blocks)
    x = x + np.tanh(apply(frozen, lora, x, some, some))
  return x @ theta['head']['kernel'][:n] + theta['head']['bias']


# -- HeteroFL


def test_amounts_are_rounded_up_and_clients_take_rates_in_turn():
  algorithm = _build('heterofl')
  widths = rates.Prefix({'embed': 6}, (0.5, 1.0, 0.25))
  assert [widths.rate(k) for k in range(4)] == [0.5, 1.0, 0.25, 0.5]
  rows = algorithm.rule.draw(0, [0, 1, 2])
  assert [row['embed'] for row in rows] == [3, 6, math.ceil(6 / 4)]
  for k, row in enumerate(rows):
    assert widths.rate_of(tiny.signature(algorithm, k)) == widths.rate(k)
    assert row['embed'] == widths.amounts(widths.rate(k))['embed']


@pytest.mark.parametrize('scaler', [True, False])
def test_heterofl_divides_what_linear_maps_give(scaler):
  found, batch = tiny.stack(), tiny.batch(tiny.STACK_SIZE, 5)
  algorithm = _build('heterofl', scaler=scaler)
  for client, (n, rate) in enumerate([(3, 0.5), (6, 1.0), (2, 0.25)]):
    logits = _slow_stack(found, n, batch, rate if scaler else 1)
    want = _cross_entropy(logits, batch)
    got = _loss(algorithm, found, client, batch)
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize('full', [True, False])
def test_heterofl_divides_the_activations_of_a_text_model(monkeypatch, full):
  tuned = {'full': True} if full else {'targets': ('mlp.fc1',)}
  found = tiny.text_foundation(**tuned)
  valid = jnp.ones(3, bool)
  batch = Batch(tiny.texts(3), jnp.asarray([0, 1, 2]), valid)
  got = _loss(_build('heterofl', _WIDE), found, 0, batch)
  plain = _build('heterofl', _WIDE, scaler=False)
  unscaled = _loss(plain, found, 0, batch)
  apply = linear.Linear.__call__

  # The sum of the embeddings is normalised, so that its scale is lost.
  def scaled(self, x, key=None):
    is_head = self.kernel.get_metadata('axes')[-1] == 'class'
    return apply(self, x, key) / (1 if is_head else 0.5)

  monkeypatch.setattr(linear.Linear, '__call__', scaled)
  np.testing.assert_allclose(got, _loss(plain, found, 0, batch), rtol=1e-5)
  assert abs(got - unscaled) > 1e-3


def test_heterofl_masks_the_logits_of_absent_classes():
  found, batch = tiny.stack(), tiny.batch(tiny.STACK_SIZE, 5)
  present = np.array([[True, False, True], [True, True, True], [False] * 3])
  algorithm = _build('heterofl', None, present, scaler=False)
  for client, n in enumerate((3, 6, 2)):
    logits = _slow_stack(found, n, batch, 1)
    want = _cross_entropy(np.where(present[client], logits, 0), batch)
    got = _loss(algorithm, found, client, batch)
    np.testing.assert_allclose(got, want, rtol=1e-5)
  off = {'masked_loss': False, 'head_by_class': False}
  plain = _build('heterofl', None, present, **off)
  assert plain.client.tell(0, [0]) == [{}]
  # The head by class is of no concern to the loss.
  unmasked = _build('heterofl', None, present, scaler=False, masked_loss=False)
  got = _loss(unmasked, found, 0, batch)
  want = _cross_entropy(_slow_stack(found, 3, batch, 1), batch)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  # Evaluation sees all classes.
  whole = {'layer': tiny.DEPTH}
  assert algorithm.evaluation.models == {
    'full': whole,
    'rate0.5': whole | {'embed': 3},
    'rate0.25': whole | {'embed': 2},
  }
  context, model = _held(algorithm, found, 0)
  assert context.sig.amounts == ()
  assert {k: x.tolist() for k, x in context.info.items()} == {
    'present': [1, 0, 1]
  }
  predict = algorithm.evaluation.predict
  logits = predict('full', model, context.held, batch.inputs)
  want = _slow_stack(found, 3, batch, 1)
  np.testing.assert_allclose(logits, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', ['heterofl', 'fedrolex', 'fjord'])
def test_two_rates_of_one_size_are_refused(name):
  with pytest.raises(ValueError, match=r'0\.2 and 0\.3 must differ in some'):
    _build(name, rates=(1.0, 0.3, 0.2))


# -- FedRolex and Federated Dropout


def test_fedrolex_rolls_by_one_a_round_and_around_the_end():
  rule = _build('fedrolex', roll='forward').rule
  windows = {
    rnd: [list(row['embed']) for row in rule.draw(rnd, [0, 2, 3])]
    for rnd in (0, 1, 4, 5, 6, 13)
  }
  assert windows == {
    0: [[0, 1, 2], [0, 1], [0, 1, 2]],
    1: [[1, 2, 3], [1, 2], [1, 2, 3]],
    4: [[4, 5, 0], [4, 5], [4, 5, 0]],
    5: [[5, 0, 1], [5, 0], [5, 0, 1]],
    6: [[0, 1, 2], [0, 1], [0, 1, 2]],
    13: [[1, 2, 3], [1, 2], [1, 2, 3]],
  }
  assert rule.draw(4, [1]) == [{'layer': tiny.DEPTH, 'embed': 6}]


def test_each_axis_of_fedrolex_has_its_own_end():
  sizes = {**_SIZES, 'ffn': 10}
  (row,) = _build('fedrolex', sizes, roll='forward').rule.draw(7, [0])
  assert list(row['embed']) == [1, 2, 3]
  assert list(row['ffn']) == [7, 8, 9, 0, 1]


def test_federated_dropout_draws_units_anew():
  sizes = {**_SIZES, 'embed': 60, 'ffn': 60}
  rule = _build('federated_dropout', sizes).rule
  draw = lambda rnd, k: rule.draw(rnd, [k])[0]['embed']
  first = draw(0, 0)
  assert len(set(first.tolist())) == 30
  np.testing.assert_array_equal(first, np.sort(first))
  np.testing.assert_array_equal(rule.draw(0, [3, 0])[1]['embed'], first)
  others = [draw(1, 0), draw(0, 3), rule.draw(0, [0])[0]['ffn']]
  other = _build('federated_dropout', sizes, seed=7).rule
  others.append(other.draw(0, [0])[0]['embed'])
  assert all(np.any(other != first) for other in others)
  assert isinstance(draw(0, 1), int)
  held = np.concatenate([draw(rnd, 0) for rnd in range(200)])
  # Each unit in 100 rounds, with a deviation of 7.
  assert np.all(abs(np.bincount(held, minlength=60) - 100) < 35)


# -- FjORD


def _fjord_losses(algorithm, client, batch):
  """Returns the losses of 40 steps of a client."""
  found = tiny.stack()
  context, model = _held(algorithm, found, client)
  loss = jax.jit(
    lambda key: algorithm.client.loss(model, batch, context, key)[0]
  )
  keys = jax.random.split(_KEY, 40)
  return np.array([loss(key) for key in keys])


def _assert_all_occur(got, want):
  """Every loss is one of these, and each of these occurs."""
  near = np.isclose(got[:, None], np.array(want)[None], rtol=1e-5)
  assert np.all(near.sum(1) == 1)
  assert np.all(near.sum(0) >= 5)


@pytest.mark.parametrize(
  ('client', 'widths'), [(0, (3, 2)), (1, (6, 3, 2)), (2, (2,))]
)
def test_fjord_trains_every_width_up_to_the_clients(client, widths):
  batch = tiny.batch(tiny.STACK_SIZE, 5)
  algorithm = _build('fjord', distill=False)
  want = [
    _cross_entropy(_slow_stack(tiny.stack(), n, batch, 1), batch)
    for n in widths
  ]
  _assert_all_occur(_fjord_losses(algorithm, client, batch), want)


def test_fjord_trains_the_rates_of_its_options_where_devices_are_fitted():
  batch = tiny.batch(tiny.STACK_SIZE, 5)
  e = _experiment('fjord', distill=False)
  facts = _facts(e, Task('classification', tiny.CLASSES))
  # Every device can train the whole model.
  facts = dataclasses.replace(facts, fitted={'width': (1.0,) * 4})
  algorithm = METHODS['fjord'].build(facts)
  want = [
    _cross_entropy(_slow_stack(tiny.stack(), n, batch, 1), batch)
    for n in (6, 3, 2)
  ]
  _assert_all_occur(_fjord_losses(algorithm, 0, batch), want)


def _facts(e, task):
  return Facts(
    e,
    _SIZES,
    (tiny.DEPTH,) * 4,
    task,
    None,
    {'model': lambda _: tiny.stack()},
  )


def test_fjord_teaches_the_narrow_by_the_widest():
  batch = tiny.batch(tiny.STACK_SIZE, 5)
  algorithm = _build('fjord', distill=True)
  log_probs = {}
  for n in (2, 3):
    logits = _slow_stack(tiny.stack(), n, batch, 1)
    log_probs[n] = logits - np.log(np.exp(logits).sum(1, keepdims=True))
  widest = _cross_entropy(log_probs[3], batch)
  kl_B = (np.exp(log_probs[3]) * (log_probs[3] - log_probs[2])).sum(1)
  taught = widest + kl_B[np.asarray(batch.valid)].mean()
  _assert_all_occur(_fjord_losses(algorithm, 0, batch), [widest, taught])
  facts = _facts(_experiment('fjord', distill=True), Task('regression', 1))
  with pytest.raises(ValueError, match=r'width\.distill=True needs classes'):
    METHODS['fjord'].build(facts)


@pytest.mark.parametrize('kind', ['vit', 'bert'])
def test_narrow_is_select_and_merge(kind):
  found = (
    tiny.vit_foundation() if kind == 'vit' else tiny.text_foundation(full=True)
  )
  amounts = {'embed': 8, 'heads': 1, 'qk_dim': 3, 'v_dim': 5, 'ffn': 7}
  model = found.merge(found.base, found.theta)
  got = nnx.state(foundation.narrow(model, amounts))
  base = selection.select_within(found.base, found.base_axes, amounts)
  theta = selection.select_within(found.theta, found.axes, amounts)
  want = nnx.state(found.merge(base, theta))
  tiny.assert_equal(nnx.to_pure_dict(got), nnx.to_pure_dict(want))
  assert model.blocks.attn.q.kernel.shape == (tiny.DEPTH, 16, 2, 8)
  narrowed = nnx.to_pure_dict(got)['blocks']['attn']['q']['kernel']
  assert narrowed.shape == (tiny.DEPTH, 8, 1, 3)

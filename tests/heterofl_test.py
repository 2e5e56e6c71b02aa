"""HeteroFL's and FedRolex's server rules, against their authors', in NumPy."""

import dataclasses
import functools
import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from fedjax_tune import selection
from fedjax_tune.engine.algorithm import Client
from fedjax_tune.methods import METHODS
from fedjax_tune.methods.width import fedrolex, heterofl, rates
from fedjax_tune.models import decoder
from fedjax_tune.models.sizes import DecoderConfig
from fedjax_tune.selection import Selection


def _build(name, sizes, present=None, found=None, **options):
  e = tiny.experiment(name)
  e.width = dataclasses.replace(
    e.width, axes=tuple(a for a in sizes if a != 'layer'), **options
  )
  return tiny.build(
    e,
    found or tiny.stack(),
    (tiny.DEPTH,) * 4,
    None if present is None else np.array(present),
    sizes,
  )


# -- the head, class by class


def _combine(old, new, held, has_class):
  """The authors' `combine` of a head [D, K] in plain loops over clients."""
  total, count = np.zeros_like(old), np.zeros_like(old)
  for local, rows, labels in zip(new, held, has_class, strict=True):
    for k in np.flatnonzero(labels):
      total[rows, k] += local[:, k]
      count[rows, k] += 1
  return np.where(count > 0, total / np.maximum(count, 1), old)


def _merged(algorithm, cohort, theta, axes, deltas):
  """Returns what the server has after clients sent their deltas."""
  rows = algorithm.rule.draw(3, cohort)
  infos = algorithm.client.tell(3, cohort)
  aggregator = algorithm.aggregator
  selected = {axis for row in rows for axis in row} | {'class'}
  total = selection.zero_sum(theta, axes, selected)
  for row, info, delta in zip(rows, infos, deltas, strict=True):
    lead = lambda x: jnp.asarray(x)[None]
    held, told = Selection.stack([row]), jax.tree.map(lead, info)
    part = selection.group_sum(
      theta,
      axes,
      selection.within(aggregator.where(held, told), axes),
      jax.tree.map(lead, delta),
      jnp.ones(1),
      selected,
    )
    total = jax.tree.map(jnp.add, total, part)
  update, _ = aggregator.merge(theta, {'all': total}, ())
  return jax.tree.map(lambda w, d: w + d, theta, update.delta)


def test_a_class_moves_by_the_mean_of_those_who_have_it():
  one_each = [[True, False, False], [False, True, False]] * 2
  theta = {'kernel': jnp.zeros((6, 3)), 'bias': jnp.zeros(3)}
  axes = {'kernel': ('embed', 'class'), 'bias': ('class',)}
  unit = jax.tree.map(jnp.ones_like, theta)
  sizes = {'layer': 4, 'embed': 6}
  for head_by_class, want in ((True, [1, 1, 0]), (False, [1, 1, 1])):
    algorithm = _build(
      'heterofl', sizes, one_each, rates=(1.0,), head_by_class=head_by_class
    )
    masked = [
      jax.tree.map(lambda x, p=p: x * jnp.array(p), unit) for p in one_each[:2]
    ]
    new = _merged(algorithm, [0, 1], theta, axes, masked)
    half = 1 if head_by_class else 0.5
    np.testing.assert_array_equal(new['bias'], half * np.array([1, 1, 0]))
    np.testing.assert_array_equal(new['kernel'][2], new['bias'])
    # Also where those who lack a class send something for it.
    new = _merged(algorithm, [0, 1], theta, axes, [unit, unit])
    np.testing.assert_array_equal(new['bias'], want)


@pytest.mark.parametrize('name', ['heterofl', 'fedrolex'])
def test_the_head_is_the_authors_combine(name):
  rng = np.random.default_rng(0)
  present = rng.random((4, 3)) < 0.6
  present[:, 2] = False
  algorithm = _build(
    name, {'layer': 4, 'embed': 7}, present, rates=(1.0, 0.5, 0.3)
  )
  theta = {'kernel': rng.normal(size=(7, 3)), 'bias': rng.normal(size=3)}
  theta = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), theta)
  axes = {'kernel': ('embed', 'class'), 'bias': ('class',)}
  cohort = [0, 1, 2, 3]
  rows = algorithm.rule.draw(3, cohort)
  held = [
    np.arange(7)[: row['embed']]
    if isinstance(row['embed'], int)
    else row['embed']
    for row in rows
  ]
  deltas = [
    {'kernel': rng.normal(size=(len(h), 3)), 'bias': rng.normal(size=3)}
    for h in held
  ]
  got = _merged(algorithm, cohort, theta, axes, deltas)
  old = jax.tree.map(np.asarray, theta)
  kernels = [
    old['kernel'][h] + d['kernel'] for h, d in zip(held, deltas, strict=True)
  ]
  want = _combine(old['kernel'], kernels, held, present)
  np.testing.assert_allclose(got['kernel'], want, rtol=1e-5)
  biases = [(old['bias'] + d['bias'])[None] for d in deltas]
  want = _combine(old['bias'][None], biases, [np.arange(1)] * 4, present)
  np.testing.assert_allclose(got['bias'], want[0], rtol=1e-5)
  # A class of nobody stays bit for bit.
  np.testing.assert_array_equal(got['kernel'][:, 2], old['kernel'][:, 2])


def test_a_round_leaves_absent_classes_out():
  run = tiny.run(tiny.experiment('heterofl', width={'rates': (1.0,)}))
  e, found = run.experiment, run.foundation
  present = np.array([[1, 1, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0]], bool)
  algorithm = tiny.build(e, found, present=present)
  planner = dataclasses.replace(run.planner, algorithm=algorithm)
  run = dataclasses.replace(run, algorithm=algorithm, planner=planner)
  key, start = jax.random.key(0), run.engine.init()
  plan = run.planner.plan(0)
  whole, _ = run.engine.round(start, plan, key, 0.1)

  def alone(work):
    weight = jnp.where(work.own.ids == 0, work.own.weight, 0)
    return work._replace(own=work.own._replace(weight=weight))

  single = plan._replace(works=[alone(work) for work in plan.works])
  only, _ = run.engine.round(start, single, key, 0.1)
  before, after, own = (
    np.asarray(s.theta['head']['kernel']) for s in (start, whole, only)
  )
  # Client 0 alone has class 1; all have class 0, nobody class 2.
  np.testing.assert_allclose(after[:, 1], own[:, 1], rtol=1e-6)
  assert np.abs(after[:, 1] - before[:, 1]).max() > 1e-4
  assert np.abs(after[:, 0] - own[:, 0]).max() > 1e-4
  np.testing.assert_array_equal(after[:, 2], before[:, 2])


# -- the scaler


def test_a_head_that_predicts_tokens_is_not_scaled():
  shape = DecoderConfig(
    2, 8, 1, 8, vocab=9, positions=8, group=1, head_dim=4, tied=False
  )
  model: Any = decoder.Decoder(shape, rngs=nnx.Rngs(0))
  nnx.update(model, jax.tree.map(jnp.ones_like, nnx.state(model)))
  scaled: Any = heterofl._scaled(model, 0.5)
  assert np.all(scaled.blocks.attn.q.kernel[...] == 2)
  assert np.all(scaled.embed.word[...] == 2)
  assert np.all(scaled.lm_head.kernel[...] == 1)


# -- windows


@pytest.mark.parametrize(
  ('rate', 'size'),
  [(0.07, 100), (0.1, 30), (1 / 3, 12), (2 / 3, 64), (0.0625, 4), (0.29, 100)],
)
def test_shares_are_the_authors_counts(rate, size):
  assert rates.amount(rate, size) == int(np.ceil(size * np.float64(rate)))
  assert rates.amount(rate, size) == int(np.ceil(size * (rate / 1)))


def test_fedrolex_windows_are_the_authors():
  sizes = {'layer': 4, 'embed': 12, 'ffn': 10}
  rule = _build('fedrolex', sizes, rates=(0.5, 1.0)).rule
  (first,) = rule.draw(1, [0])
  assert first['embed'].tolist() == [11, 0, 1, 2, 3, 4]
  for rnd in (0, 1, 5, 11, 12, 25):
    (row,) = rule.draw(rnd, [0])
    for axis in ('embed', 'ffn'):
      n = sizes[axis]
      rolled = np.roll(np.arange(n), rnd % n)[: math.ceil(0.5 * n)]
      np.testing.assert_array_equal(row[axis], rolled)
    assert rule.draw(rnd, [1]) == [sizes]


def _flat_heads(shift, heads, channels, held):
  """The authors' indices of queries, keys and values: [heads, held]."""
  rolled = np.roll(np.arange(heads * channels), shift % (heads * channels))
  return rolled.reshape(heads, -1)[:, :held]


# Forwards is that of their indices, the other way round.
_ROLLS = [(n, 'backward') for n in (0, 1, 7, 8, 11, 17)]


@pytest.mark.parametrize(('rnd', 'roll'), [*_ROLLS, (11, 'forward')])
def test_fedrolex_across_heads_is_the_authors(rnd, roll):
  found = tiny.vit_foundation(targets=('attn.q', 'attn.proj'))
  sizes = {'layer': tiny.DEPTH, 'qk_dim': 8, 'v_dim': 8}
  build = functools.partial(
    _build,
    'fedrolex',
    sizes,
    found=found,
    rates=(0.625, 1.0),
    scaler=False,
    roll=roll,
  )
  algorithm = build(across_heads=True)
  base, theta = jax.tree.map(np.asarray, (found.base, found.theta))
  attn = base['blocks']['attn']
  flat = lambda kernel: kernel.reshape(*kernel.shape[:2], 16)
  q, k = (flat(attn[name]['kernel']) for name in 'qk')
  proj = attn['proj']['kernel'].reshape(tiny.DEPTH, 16, 16)
  widths = fedrolex.Rolling({'qk_dim': 8, 'v_dim': 8}, (0.625, 1.0), roll)
  give: Any = lambda model, *_: model
  mix: Any = fedrolex.mixing(Client(give), widths).loss
  batch, key = tiny.batch(tiny.VIT_SIZE, 2), jax.random.key(0)
  lora_a = theta['blocks']['attn']['proj']['lora_a'].reshape(tiny.DEPTH, 16, -1)
  for client, held in ((0, 5), (1, 8)):
    context = tiny.context(algorithm, client, rnd)
    row = context.held
    local = selection.select(found.theta, found.axes, row)
    model = found.assemble(found.base, local, row)
    mixed = mix(model, batch, context, key)
    at = _flat_heads(rnd if roll == 'backward' else -rnd, 2, 8, held)
    ours = mixed.blocks.attn
    # What a head computes: its scores, and what its values are worth.
    for h in range(2):
      scores = np.einsum('ldc,lec->lde', q[..., at[h]], k[..., at[h]])
      kernels = ours.q.kernel[:, :, h], ours.k.kernel[:, :, h]
      got = np.einsum('ldc,lec->lde', *map(np.asarray, kernels))
      np.testing.assert_allclose(got, scores, rtol=1e-4, atol=1e-6)
      by_head = lambda x, h=h: np.sort(np.asarray(x)[:, h], axis=1)
      want = np.sort(proj[:, at[h]], axis=1)
      np.testing.assert_array_equal(by_head(ours.proj.kernel), want)
      want = np.sort(lora_a[:, at[h]], axis=1)
      np.testing.assert_array_equal(by_head(ours.proj.lora_a), want)
    # The channels that train are those of windows within heads.
    channels = row['qk_dim']
    channels = np.arange(8) if isinstance(channels, int) else channels
    within = {h * 8 + int(c) for h in range(2) for c in channels}
    assert within == set(at.ravel().tolist())
  loss, _ = algorithm.client.loss(model, batch, context, key)
  plain = build(across_heads=False)
  same, _ = plain.client.loss(model, batch, context, key)
  # A whole client computes something else, unless heads only change places.
  assert (abs(float(loss - same)) > 1e-6) == (rnd % 8 != 0)


def test_across_heads_is_refused_where_it_means_nothing():
  sizes = {'layer': 4, 'heads': 2, 'qk_dim': 8}
  with pytest.raises(ValueError, match=r'across_heads=True must be False'):
    _build('fedrolex', sizes, rates=(1.0, 0.5), across_heads=True)
  rotary = {'layer': 4, 'v_dim': 8, 'rotary': 8}
  e = tiny.experiment('fedrolex', width={'axes': ('v_dim',)})
  e.width.across_heads = True
  with pytest.raises(ValueError, match=r'across_heads=True does not serve a d'):
    METHODS['fedrolex'].check(e, rotary, (4,) * 4)

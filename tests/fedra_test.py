"""FedRA: its draws, and a whole round against the paper's formulas."""

import collections
import itertools

import hypothesis
from hypothesis import strategies as st
import jax
import numpy as np
import pytest
import tiny
import torch
from torch.nn import functional as F

from fedjax_tune import selection
from fedjax_tune.engine.randomness import host_rng
from fedjax_tune.methods.depth import cover, fedra, layers

# -- the allocation matrix


def test_rows_by_their_definition():
  for rnd in range(30):
    row = layers.draw_row(seed=3, rnd=rnd, client=1, depth=6, budget=4)
    assert len(set(row)) == 4
    assert list(row) == sorted(row)
    assert 0 <= row[0] <= row[-1] < 6
  full = layers.draw_row(seed=3, rnd=0, client=1, depth=6, budget=6)
  assert list(full) == list(range(6))


def test_rows_are_uniform_and_independent():
  draws = 3000
  rows = np.array(
    [[layers.draw_row(0, rnd, k, 5, 2) for k in (0, 1)] for rnd in range(draws)]
  )
  for client in (0, 1):
    pairs = rows[:, client] @ [5, 1]
    _, counts = np.unique(pairs, return_counts=True)
    assert len(counts) == 10
    # Each pair of layers has probability 1/10; five standard deviations.
    spread = np.sqrt(draws * 0.1 * 0.9)
    assert np.abs(counts - draws / 10).max() < 5 * spread
  same = np.mean((rows[:, 0] == rows[:, 1]).all(-1))
  assert abs(same - 0.1) < 5 * np.sqrt(0.09 / draws)


def _rows(budgets, depth, seed):
  rng = np.random.default_rng(seed)
  return [np.sort(rng.choice(depth, c, replace=False)) for c in budgets]


@hypothesis.given(
  depth=st.integers(1, 40),
  budgets=st.lists(st.integers(1, 40), min_size=1, max_size=12),
  seed=st.integers(0, 999),
)
@hypothesis.settings(max_examples=80, deadline=None)
def test_repair_covers_whenever_it_can(depth, budgets, seed):
  budgets = [min(budget, depth) for budget in budgets]
  drawn = _rows(budgets, depth, seed)
  rows = layers.repair_coverage(drawn, depth, host_rng('repair', seed, 0))
  if len(set(np.concatenate(drawn))) == depth:
    assert rows is drawn
  for row, budget in zip(rows, budgets, strict=True):
    assert len(row) == len(set(row)) == budget
    assert list(row) == sorted(row)
    assert 0 <= row[0] <= row[-1] < depth
  covered = set(np.concatenate(rows))
  assert len(covered) == min(depth, sum(budgets))


# The authors' loop takes 50,000 redraws of these, or does not end.
@pytest.mark.parametrize(
  ('budgets', 'depth'), [((8,) * 4, 32), ((1,) * 48, 48), ((7, 9, 8, 9), 32)]
)
def test_repair_ends_where_budgets_hardly_cover(budgets, depth):
  drawn = _rows(budgets, depth, 0)
  rng = np.random.default_rng(1)
  rows = layers.repair_coverage(drawn, depth, rng)
  assert sorted(set(np.concatenate(rows).tolist())) == list(range(depth))
  assert [len(row) for row in rows] == list(budgets)


@pytest.mark.parametrize(
  ('budgets', 'depth'), [((2, 2), 3), ((2, 1), 3), ((2, 2, 1), 4)]
)
def test_every_cover_is_as_likely(budgets, depth):
  subsets = [itertools.combinations(range(depth), c) for c in budgets]
  covers = [
    rows
    for rows in itertools.product(*subsets)
    if len(set(sum(rows, ()))) == depth
  ]
  rng = np.random.default_rng(0)
  each = 60
  seen = collections.Counter(
    tuple(tuple(row.tolist()) for row in cover.draw_cover(budgets, depth, rng))
    for _ in range(each * len(covers))
  )
  assert set(seen) == set(covers)
  excess = sum((seen[rows] - each) ** 2 / each for rows in covers)
  freedom = len(covers) - 1
  # A chi-square's mean and deviation.
  assert excess < freedom + 5 * np.sqrt(2 * freedom)


def test_layers_of_repaired_rows_are_uniform():
  counts = np.zeros((4, 12))
  for seed in range(600):
    rows = layers.repair_coverage(
      _rows((4,) * 4, 12, seed), 12, np.random.default_rng((seed, 1))
    )
    for k, row in enumerate(rows):
      counts[k, row] += 1
  # Each client has each layer in a third of the rounds.
  assert np.abs(counts - 200).max() < 5 * np.sqrt(600 * 2 / 9)


def test_repair_is_refused_where_no_cohort_covers():
  e = tiny.experiment(fedra={'coverage_repair': True})
  e.clients.cohort_size = 2
  with pytest.raises(ValueError, match=r'hold all 4 blocks; .* add up to 3\.'):
    fedra.check(e, {'layer': 4}, (1, 2, 1, 1))
  fedra.check(e, {'layer': 4}, (1, 2, 2, 1))
  e.clients.cohort, e.clients.count = 'one_per_domain', 2
  with pytest.raises(ValueError, match=r'add up to 3\.'):
    fedra.check(e, {'layer': 4}, (1, 1, 2, 1))
  fedra.check(e, {'layer': 4}, (1, 2, 2, 1))


def test_repair_is_an_option():
  methods = [
    tiny.build(
      tiny.experiment(fedra={'coverage_repair': repair}),
      tiny.stack(),
      (2, 1, 1, 1),
    )
    for repair in (False, True)
  ]
  owners = [
    [
      np.bincount(
        np.concatenate(
          [row['layer'] for row in method.rule.draw(rnd, range(4))]
        ),
        minlength=tiny.DEPTH,
      )
      for rnd in range(40)
    ]
    for method in methods
  ]
  assert np.min(owners[0]) == 0
  assert np.min(owners[1]) > 0
  # Where nothing was missing, nothing was redrawn.
  for plain, repaired in zip(*owners, strict=True):
    if plain.min() > 0:
      np.testing.assert_array_equal(plain, repaired)


# -- a whole round in float64, from the formulas


def _vit(images, base, theta, layers, scale):
  """Logits of the blocks `layers`, whose adapters lie in that order."""
  heads, width, eps = 2, 8, 1e-6
  dim = heads * width

  def adapted(x, kernel, bias, lora):
    a, b = lora['lora_a'], lora['lora_b']
    low = x @ a.reshape(-1, a.shape[-1])
    return x @ kernel + bias + scale * low @ b.reshape(-1, b.shape[-1])

  def norm(x, p):
    return F.layer_norm(x, (dim,), p['scale'], p['bias'], eps)

  pixels = images.double() / 255
  pixels = ((pixels - 0.5) / 0.5).permute(0, 3, 1, 2)
  # Unfold gives [B, channel * row * column, patch].
  patches = F.unfold(pixels, 8, stride=8).mT.unflatten(-1, (3, 8, 8))
  patches = patches.permute(0, 1, 3, 4, 2).flatten(2)
  patch, embed = base['embed']['patch'], base['embed']
  x = adapted(patches, patch['kernel'], patch['bias'], theta['embed']['patch'])
  prefix = embed['prefix'].expand(len(x), -1, -1)
  x = torch.cat([prefix, x], 1) + embed['position']
  for j, layer in enumerate(layers):
    p = _at(base['blocks'], layer)
    lora = _at(theta['blocks'], j)
    y = norm(x, p['norm1'])
    outs = []
    for h in range(heads):
      q, k, v = (
        y @ p['attn'][n]['kernel'][:, h] + p['attn'][n]['bias'][h]
        for n in 'qkv'
      )
      outs.append(torch.softmax(q @ k.mT / width**0.5, -1) @ v)
    proj, fc1, fc2 = p['attn']['proj'], p['mlp']['fc1'], p['mlp']['fc2']
    x = x + adapted(
      torch.cat(outs, -1),
      proj['kernel'].flatten(0, 1),
      proj['bias'],
      lora['attn']['proj'],
    )
    hidden = F.gelu(norm(x, p['norm2']) @ fc1['kernel'] + fc1['bias'])
    x = x + adapted(hidden, fc2['kernel'], fc2['bias'], lora['mlp']['fc2'])
  token = norm(x, base['norm'])[:, 0]
  return token @ theta['head']['kernel'] + theta['head']['bias']


def _at(tree, i):
  return jax.tree.map(lambda p: p[i], tree)


def _tensors(tree):
  return jax.tree.map(lambda x: torch.tensor(np.array(x, np.float64)), tree)


def _client(run, base, theta, layers, batches):
  """One client's round; returns its trained tree."""
  cfg = run.experiment.local
  blocks = jax.tree.map(lambda p: p[layers], theta['blocks'])
  local = jax.tree.map(
    lambda p: p.clone().requires_grad_(), {**theta, 'blocks': blocks}
  )
  leaves = jax.tree.leaves(local)
  sgd = torch.optim.SGD(
    leaves, cfg.lr, momentum=cfg.momentum, weight_decay=cfg.weight_decay
  )
  norms = []
  for image, label, valid in zip(*batches, strict=True):
    logits = _vit(image[valid], base, local, layers, scale=2.0)
    sgd.zero_grad()
    F.cross_entropy(logits, label[valid].long()).backward()
    norms.append(torch.nn.utils.clip_grad_norm_(leaves, cfg.clip_norm))
    sgd.step()
  # The clip is at work.
  assert max(norms) > cfg.clip_norm
  return jax.tree.map(lambda p: p.detach(), local)


def _aggregate(theta, ends, rows):
  """Each layer over its owners; what all hold over all."""
  mean = lambda *parts: sum(parts) / len(parts)
  blocks = jax.tree.map(torch.clone, theta['blocks'])
  for layer in range(tiny.DEPTH):
    owners = [k for k, row in enumerate(rows) if layer in row]
    if not owners:
      continue
    own = [_at(ends[k]['blocks'], list(rows[k]).index(layer)) for k in owners]
    for old, new in zip(
      jax.tree.leaves(blocks),
      jax.tree.leaves(jax.tree.map(mean, *own)),
      strict=True,
    ):
      old[layer] = new
  shared = {
    name: jax.tree.map(mean, *[end[name] for end in ends])
    for name in ('embed', 'head')
  }
  return {**shared, 'blocks': blocks}


def test_two_rounds_are_their_twin():
  e = tiny.experiment(lora={'dropout': 0.0}, clients={'budgets': (3, 1, 1)})
  run = tiny.run(e, tiny.vit_foundation())
  base, theta = _tensors(run.foundation.base), _tensors(run.theta)
  uncovered = 0
  for rnd in (0, 1):
    rows = [
      layers.draw_row(e.seed, rnd, k, tiny.DEPTH, budget)
      for k, budget in enumerate(e.clients.budgets)
    ]
    uncovered += tiny.DEPTH - len(set(np.concatenate(rows)))
    batches = {
      int(k): [torch.tensor(np.array(x[i])) for x in work.own.batches[:3]]
      for work in run.planner.plan(rnd).works
      for i, k in enumerate(work.slab.ids)
    }
    ends = [
      _client(run, base, theta, row, batches[k]) for k, row in enumerate(rows)
    ]
    theta = _aggregate(theta, ends, rows)
  got = run.rounds(2).theta
  # The case has a layer that nobody holds.
  assert uncovered > 0
  start = run.theta['blocks']['mlp']['fc2']['lora_b']
  assert np.abs(got['blocks']['mlp']['fc2']['lora_b'] - start).max() > 1e-2
  tiny.assert_close(
    got, jax.tree.map(lambda p: p.numpy(), theta), rtol=0, atol=1e-5
  )


def test_a_skipped_block_is_the_identity():
  found = tiny.vit_foundation()
  images, rows = tiny.batch(tiny.VIT_SIZE, 3).inputs, np.array([0, 2])
  mask = np.isin(np.arange(tiny.DEPTH), rows).astype(np.float32)

  def silence(tree, ends):
    def keep(path, leaf):
      name = jax.tree_util.keystr(path, simple=True, separator='/')
      off = name.startswith('blocks') and name.endswith(ends)
      shape = (-1,) + (1,) * (leaf.ndim - 1)
      return leaf * mask.reshape(shape) if off else leaf

    return jax.tree.map_with_path(keep, tree)

  ends = tuple(f'{m}/{k}' for m in ('proj', 'fc2') for k in ('kernel', 'bias'))
  masked = found.merge(
    silence(found.base, ends), silence(found.theta, ('lora_b',))
  )
  held = selection.select(found.theta, found.axes, {'layer': rows})
  gathered = found.merge(found.base, held)
  got = jax.jit(lambda: gathered(images, rows))()
  want = jax.jit(lambda: masked(images, np.arange(tiny.DEPTH)))()
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)

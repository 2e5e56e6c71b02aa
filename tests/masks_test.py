"""The masks of RaFFM's paper-era code: what they admit, and what moves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from fedjax_tune.methods.raffm import masks

_SIZES = {
  'layer': 4,
  'embed': 768,
  'heads': 12,
  'qk_dim': 64,
  'v_dim': 64,
  'ffn': 3072,
}


def _half_of_heads(rng, shape):
  del rng
  return np.broadcast_to(np.arange(shape[-1]) < shape[-1] // 2, shape)


def test_masked_gradients_move_what_the_mask_admits(monkeypatch):
  # Heads as narrow as the model's have no mask of the authors'.
  queries = ('attn.q', 'attn.k')
  preset = dict(masks.PRESETS['paper_vit'])
  preset[queries] = masks.Masked(('heads', 'qk_dim'), _half_of_heads)
  monkeypatch.setitem(masks.PRESETS, 'paper_vit', preset)
  run = tiny.vit_run(
    'raffm', mode='mask', space='paper_vit', embed=(1.0,), layers=(1.0,)
  )
  plan = run.planner.plan(0)
  (work,) = plan.works
  clients = [member.client for member in plan.members]
  rows = run.algorithm.client.tell(0, clients)
  is_full = [all(np.all(x) for x in row.values()) for row in rows]
  assert sum(is_full) == 1

  def move(client):
    """Trains this client of the cohort alone."""
    weight = (work.slab.ids == client).astype(np.float32)
    own = work.own._replace(weight=jnp.asarray(weight))
    alone = plan._replace(works=[work._replace(own=own)])
    start = run.engine.init()
    end, _ = run.engine.round(start, alone, jax.random.key(0), 0.1)
    changed = lambda a, b: np.asarray(a != b)
    return jax.tree.map(changed, end.theta, start.theta)

  one = is_full.index(False)
  blocks = move(clients[one])['blocks']
  names = []
  for paths, masked in masks.PRESETS['paper_vit'].items():
    for module, name in (path.split('.') for path in paths):
      kernel = blocks[module][name]['kernel']
      dims = run.axes['blocks'][module][name]['kernel']
      shape = [
        n if a in ('layer', *masked.dims) else 1
        for a, n in zip(dims, kernel.shape, strict=True)
      ]
      admits = np.reshape(rows[one][masks.mask_name(paths)], shape) > 0
      assert not admits.all()
      assert not np.any(kernel & ~admits)
      assert np.all(kernel | ~admits)
      names.append(name)
  assert names == ['q', 'k', 'proj', 'fc1', 'fc2']
  for module, name in (('attn', 'v'), ('attn', 'proj'), ('mlp', 'fc1')):
    assert np.all(blocks[module][name]['bias'])
  everything = move(clients[is_full.index(True)])
  kernels = [
    m['kernel']
    for part in ('attn', 'mlp')
    for m in everything['blocks'][part].values()
  ]
  assert all(map(np.all, kernels))


def _mask_counts(preset, paths, shape):
  """Returns the masks of many clients and layers, and how much each admits."""
  told = masks.Masks(_SIZES, preset, 0)
  rows = [r for t in range(6) for r in told.info(t, range(12))]
  found = [np.reshape(row[masks.mask_name(paths)], (4, -1)) for row in rows]
  partly = np.concatenate([m for m in found if not m.all()])
  assert sum(m.all() for m in found) >= 6
  assert partly.shape[1] == shape
  return partly, set(partly.sum(1).tolist())


@pytest.mark.parametrize('preset', ['paper_bert', 'paper_distilbert'])
def test_text_masks_are_prefixes_of_the_authors_sizes(preset):
  rows = {128, 256, 320, 428, 512, 728, 768}
  ffn = rows - {768} | {1024, 2048, 3072}
  want = {
    ('attn.q', 'attn.k'): (64, set(range(32, 65, 4))),
    ('mlp.fc1',): (3072, ffn),
  }
  if preset == 'paper_bert':
    want |= {('attn.proj',): (768, rows), ('mlp.fc2',): (768, rows)}
  assert set(masks.PRESETS[preset]) == set(want)
  for paths, (size, counts) in want.items():
    drawn, sums = _mask_counts(preset, paths, size)
    assert sums == counts
    assert np.all(np.diff(drawn) <= 0)


def test_vision_masks_are_the_authors():
  drawn, sums = _mask_counts('paper_vit', ('attn.q', 'attn.k'), 12 * 64)
  assert sums == {12 * n for n in (32, 37, 42, 48, 53, 58)}
  by_head = drawn.reshape(-1, 12, 64)
  assert np.all(np.diff(by_head) <= 0)
  assert np.all(by_head == by_head[:, :1])
  for path, size in (('attn.proj', 768), ('mlp.fc1', 768), ('mlp.fc2', 3072)):
    drawn, sums = _mask_counts('paper_vit', (path,), size)
    # What sme.py leaves out is int((1 - share) * size).
    want = {
      768: {461, 538, 615, 653, 692},
      3072: {1844, 2151, 2458, 2612, 2765},
    }
    assert sums == want[size]
    # Inputs at random: not the same ones, nor the first ones.
    assert np.ptp(drawn.mean(0)) < 0.4
    assert abs(drawn.mean() - 0.77) < 0.05


def test_heads_of_a_large_vit_are_the_authors():
  large = {**_SIZES, 'heads': 16, 'embed': 1024, 'layer': 24}
  told = masks.Masks(large, 'paper_vit', 0)
  rows = [told.info(rnd, [0, 1]) for rnd in range(8)]
  found = np.stack(
    [row['mask.attn.q+attn.k'] for pair in rows for row in pair]
  ).reshape(-1, 16, 64)
  assert set(found.sum(-1).ravel().tolist()) == {24, 28, 32, 36, 40, 44, 64}


@pytest.mark.parametrize('share', [0.6, 0.7, 0.8, 0.85, 0.9, 1 / 3])
@pytest.mark.parametrize('size', [1, 7, 64, 100, 768])
def test_what_a_mask_leaves_out_is_rounded_down(share, size):
  zeros, ones = int((1 - share) * size), size - int((1 - share) * size)
  assert masks.admitted(share, size) == ones
  assert zeros <= (1 - share) * size < zeros + 1


def test_layers_do_not_share_a_mask():
  (row,) = [
    r
    for r in masks.Masks(_SIZES, 'paper_bert', 0).info(0, [4, 9])
    if not np.all(r['mask.mlp.fc1'])
  ]
  queries = np.asarray(row['mask.attn.q+attn.k']).reshape(4, 64)
  assert len(set(queries.sum(1))) > 1

"""Sites of different models, and what the models share."""

import jax
import numpy as np
import pytest
import tiny

from fedjax_tune import selection
from fedjax_tune.models import bottleneck, federation, foundation

_WIDE = bottleneck.Bottleneck(3, 2)
_NARROW = bottleneck.Bottleneck(3, 1)


@pytest.mark.parametrize(
  ('depth', 'num', 'sites', 'blocks'),
  [
    (4, 4, [0, 1, 2, 3], [0, 1, 2, 3]),
    (6, 3, [0, 0, 1, 1, 2, 2], [1, 3, 5]),
    (6, 4, [0, 1, 1, 2, 3, 3], [0, 2, 3, 5]),
    (5, 1, [0, 0, 0, 0, 0], [4]),
  ],
)
def test_sites(depth, num, sites, blocks):
  every = federation.Sites(depth, num)
  assert list(every.of_block) == sites
  assert list(every.blocks) == list(range(depth))
  some = federation.Sites(depth, num, every_block=False)
  assert list(some.blocks) == blocks
  # A block with an adapter has the site that it has among all.
  assert [some.of_block[b] for b in blocks] == list(range(num))
  assert [sites[b] for b in blocks] == list(range(num))
  assert sum(some.of_block == num) == depth - num


def _alloc(found, name, branches):
  held = {federation.tier_axis(t): int(t == name) for t in found.tiers}
  return {'layer': found.tiers[name].depth, 'branch': branches, **held}


def test_no_shared_shape_depends_on_a_tier():
  found = tiny.federated_stacks((4, _WIDE), (2, _NARROW))
  shapes = jax.tree.map(np.shape, found.theta['shared'])
  cores = shapes['blocks']['extra']
  assert cores == {'core_in': (2, 2, 3, 3), 'core_out': (2, 2, 3, 3)}
  alone = tiny.federated_stacks((2, _NARROW), (2, _WIDE))
  assert jax.tree.map(np.shape, alone.theta['shared']) == shapes


def test_a_tier_is_its_model_with_the_shared_cores():
  found = tiny.federated_stacks((4, _WIDE), (2, _NARROW))
  alloc = _alloc(found, 'large', 2)
  local = selection.select_within(found.theta, found.axes, alloc)
  assert all(x.size == 0 for x in jax.tree.leaves(local['small']))
  images = tiny.batch(tiny.STACK_SIZE, 3).inputs
  got = found.assemble(found.base, local, alloc)(images, np.arange(4))
  tier = found.tiers['large']
  theta = jax.tree.map(np.array, tier.theta)
  for name in bottleneck.CORES:
    core = found.theta['shared']['blocks']['extra'][name]
    theta['blocks']['extra'][name] = np.stack([core[i] for i in (0, 0, 1, 1)])
  want = tier.merge(tier.base, theta)(images, np.arange(4))
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_one_adapter_a_site():
  whole = tiny.federated_stacks((4, _WIDE), (2, _NARROW))
  found = federation.federate(
    whole.tiers, bottleneck.CORES, sites=2, every_block=False
  )
  large = found.theta['large']['blocks']['extra']
  assert large['up'].shape == (1, 2, 3, 6)
  alloc = _alloc(found, 'large', 2)
  local = selection.select_within(found.theta, found.axes, alloc)
  images = tiny.batch(tiny.STACK_SIZE, 3).inputs
  got = found.assemble(found.base, local, alloc)(images, np.arange(4))
  # Blocks 0 and 2 have none: there U is zero.
  tier = found.tiers['large']
  theta = jax.tree.map(np.array, tier.theta)
  extra = theta['blocks']['extra']
  extra['up'][[0, 2]] = 0
  for name in bottleneck.CORES:
    extra[name][[1, 3]] = found.theta['shared']['blocks']['extra'][name]
  want = tier.merge(tier.base, theta)(images, np.arange(4))
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_more_sites_than_blocks():
  whole = tiny.federated_stacks((4, _WIDE), (2, _NARROW))
  with pytest.raises(ValueError, match=r"sites=3 must be at most 2.*'small'"):
    federation.federate(whole.tiers, bottleneck.CORES, sites=3)


def test_no_tier_is_called_shared():
  (tier,) = tiny.federated_stacks((2, _NARROW)).tiers.values()
  with pytest.raises(ValueError, match="must not be called 'shared'"):
    federation.federate({'shared': tier}, bottleneck.CORES)


def test_cut_keeps_the_beginning():
  found = tiny.vit_foundation()
  small = foundation.cut(found, {'layer': 2, 'heads': 1})
  assert small.depth == 2
  q = small.base['blocks']['attn']['q']['kernel']
  want = found.base['blocks']['attn']['q']['kernel'][:2, :, :1]
  np.testing.assert_array_equal(q, want)

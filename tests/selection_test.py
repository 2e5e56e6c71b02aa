"""Selection along named axes: dispatch, its transpose, coverage."""

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from fedjax_tune import selection

_TREE = {'a': jnp.arange(12.0).reshape(4, 3), 'b': jnp.arange(2.0)}
_AXES = {'a': ('layer', 'rank'), 'b': ('embed',)}


def test_select_by_hand():
  got = selection.select(
    _TREE, _AXES, {'layer': np.array([3, 1]), 'rank': np.array([0, 2])}
  )
  np.testing.assert_array_equal(got['a'], [[9, 11], [3, 5]])
  np.testing.assert_array_equal(got['b'], _TREE['b'])


def test_an_index_outside_takes_zeros_and_puts_nothing_back():
  alloc = {'layer': np.array([[1, 4]])}
  got = selection.select(_TREE, _AXES, {'layer': alloc['layer'][0]})
  np.testing.assert_array_equal(got['a'], [[3, 4, 5], [0, 0, 0]])
  ones = {'a': jnp.ones((1, 2, 3)), 'b': jnp.ones((1, 2))}
  back = selection.scatter_sum(_TREE, _AXES, alloc, ones)
  np.testing.assert_array_equal(back['a'][:, 0], [0, 1, 0, 0])


def test_negative_indices_are_outside():
  for index in (np.array([-1, 1, -4]), jnp.array([-1, 1, -4])):
    got = selection.select(_TREE, _AXES, {'layer': index})
    np.testing.assert_array_equal(got['a'], [[0, 0, 0], [3, 4, 5], [0, 0, 0]])
  ones = {'a': jnp.ones((1, 3, 3)), 'b': jnp.ones((1, 2))}
  alloc = {'layer': np.array([[-1, 1, -4]])}
  back = selection.scatter_sum(_TREE, _AXES, alloc, ones)
  np.testing.assert_array_equal(back['a'][:, 0], [0, 1, 0, 0])
  total = selection.group_sum(_TREE, _AXES, alloc, ones, jnp.ones(1))
  np.testing.assert_array_equal(total.den['a'][:, 0], [0, 1, 0, 0])


@pytest.mark.parametrize('dtype', [np.int8, np.uint8, np.int64, np.uint64])
def test_indices_of_any_integer_type(dtype):
  # 2**32 + 1 would be 1 as an int32, and 200 negative as an int8.
  far = {np.int8: 127, np.uint8: 200}.get(dtype, 2**32 + 1)
  index = np.array([1, far], dtype)
  tree = {'a': jnp.arange(1.0, 131)}
  got = selection.select({'a': tree['a'][:120]}, {'a': ('x',)}, {'x': index})
  np.testing.assert_array_equal(got['a'], [2, 0])


@pytest.mark.parametrize(
  ('alloc', 'message'),
  [
    ({'layr': 2}, r"'layr' of the allocation must be one of embed, layer, ra"),
    ({'layer': 2, 'rnak': np.array([0])}, r"axis 'rnak' .* must be one of"),
    ({'layer': 5}, r'layer=5 must lie in \[0, 4\]'),
    ({'layer': -1}, r'layer=-1 must lie in \[0, 4\]'),
    (
      {'rank': np.array([0.0])},
      r'rank must have integer .* not float64 \(1,\)',
    ),
    ({'rank': jnp.array([0.0])}, r'rank must have integer .* not float32'),
    ({'rank': np.array([True, False])}, r'rank must have integer .* not bool'),
    ({'rank': True}, r'rank must have integer indices \[n\], not bool \(\)'),
    ({'rank': np.int64(2)}, r'indices \[n\], not int64 \(\)'),
    ({'rank': np.array([[0]])}, r'indices \[n\], not int64 \(1, 1\)'),
  ],
)
def test_allocations_that_mean_nothing_are_refused(alloc, message):
  with pytest.raises(ValueError, match=message):
    selection.select(_TREE, _AXES, alloc)
  # At trace time, too.
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(lambda tree: selection.select(tree, _AXES, alloc), _TREE)


@pytest.mark.parametrize(
  'axes',
  [
    {'a': ('layer',), 'b': ('embed',)},
    {'a': ('layer', 'rank', 'embed'), 'b': ('embed',)},
    {'a': {'x': ('layer', 'rank')}, 'b': ('embed',)},
    {'a': ('layer', 'rank')},
  ],
)
def test_axes_of_another_tree_are_refused(axes):
  with pytest.raises(ValueError, match=r'must name the|[Mm]ismatch|keys'):
    selection.select(_TREE, axes, {'layer': 1})


def test_nothing_at_all_can_be_held():
  got = selection.select(_TREE, _AXES, {'layer': 0, 'rank': np.zeros(0, int)})
  assert got['a'].shape == (0, 0)


def test_a_part_takes_what_it_knows_of():
  part = {'b': _TREE['b']}
  got = selection.select_within(
    part, {'b': ('embed',)}, {'layer': 1, 'embed': 1}
  )
  np.testing.assert_array_equal(got['b'], [0])


@pytest.mark.parametrize('weight', [0.0, -1.0, np.nan, np.inf, -np.inf])
def test_who_has_no_weight_is_left_out_whatever_it_sends(weight):
  alloc = {'layer': np.array([[0, 1], [1, 2]])}
  delta = {'a': jnp.ones((2, 2, 3)), 'b': jnp.ones((2, 2))}
  broken = {
    'a': delta['a'].at[1].set(jnp.nan), 'b': delta['b'].at[1].set(jnp.inf)
  }  # fmt: skip
  weights = jnp.array([2.0, weight])
  got = selection.group_sum(_TREE, _AXES, alloc, broken, weights)
  alone = jax.tree.map(lambda x: x[:1], (alloc, delta, weights))
  tiny.assert_equal(got, selection.group_sum(_TREE, _AXES, *alone))


def test_a_weight_that_is_no_number_is_not_nobody():
  num = {'w': jnp.array([1.0, 2.0, 3.0])}
  den = {'w': jnp.array([2.0, 0.0, jnp.nan])}
  mean = selection.coverage_mean(selection.GroupSum(num, den))
  np.testing.assert_array_equal(mean['w'], [0.5, 0, np.nan])


def test_scatter_sum_by_hand():
  local = {
    'a': jnp.asarray([[[1.0] * 3, [2.0] * 3], [[10.0] * 3, [20.0] * 3]]),
    'b': jnp.asarray([[1.0, 2.0], [3.0, 4.0]]),
  }
  alloc = {'layer': np.array([[0, 2], [2, 3]])}
  got = selection.scatter_sum(_TREE, _AXES, alloc, local)
  np.testing.assert_array_equal(got['a'][:, 1], [1, 0, 12, 20])
  np.testing.assert_array_equal(got['b'], [4, 6])


def test_put_back_by_hand():
  local = {'a': jnp.full((2, 3), 5.0), 'b': jnp.asarray([1.0, 2.0])}
  held = {'layer': np.array([3, 1]), 'of another tree': 7}
  got = selection.put_back(_TREE, _AXES, held, local)
  np.testing.assert_array_equal(got['a'][:, 1], [0, 5, 0, 5])
  np.testing.assert_array_equal(got['b'], [1, 2])


def test_without_a_selection_it_is_a_sum():
  local = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), _TREE)
  got = selection.scatter_sum(_TREE, _AXES, {}, local)
  tiny.assert_equal(got, jax.tree.map(lambda x: 3 * x, _TREE))


@pytest.mark.parametrize('model', ['stack', 'vit'])
def test_it_lowers_to_one_scatter_add_per_selected_leaf(model):
  found = tiny.stack() if model == 'stack' else tiny.vit_foundation()
  alloc = {'layer': jnp.zeros((3, 2), jnp.int32)}
  local = jax.vmap(
    lambda a: selection.select(found.theta, found.axes, {'layer': a})
  )(alloc['layer'])
  jaxpr = jax.make_jaxpr(
    lambda a, y: selection.scatter_sum(found.theta, found.axes, a, y)
  )(alloc, local)
  names = list(_primitives(jaxpr.jaxpr))
  axes = jax.tree.leaves(found.axes, is_leaf=lambda x: isinstance(x, tuple))
  layered = sum('layer' in names for names in axes)
  assert 0 < layered < len(axes)
  assert names.count('scatter-add') == layered
  assert not {'while', 'scan'} & set(names)


def _primitives(jaxpr):
  for eqn in jaxpr.eqns:
    yield eqn.primitive.name
    for value in eqn.params.values():
      inner = getattr(value, 'jaxpr', value)
      if hasattr(inner, 'eqns'):
        yield from _primitives(inner)


_indices = st.lists(st.integers(-3, 5), min_size=2, max_size=2)


@hypothesis.given(
  layers=st.lists(_indices, min_size=3, max_size=3),
  ranks=st.lists(_indices, min_size=3, max_size=3),
  seed=st.integers(0, 99),
)
@hypothesis.settings(max_examples=25, deadline=None)
def test_adjoint_over_two_axes(layers, ranks, seed):
  # Indices repeat; 4, 5 lie outside of 'layer', 3..5 of 'rank', and what is
  # negative of both.
  alloc = {'layer': np.array(layers), 'rank': np.array(ranks)}
  x = tiny.noise(_TREE, seed, 1.0)
  there = _dispatch(x, alloc)
  y = tiny.noise(there, seed + 1, 1.0)
  back = _collect(alloc, y)
  left = sum(np.vdot(there[k], y[k]) for k in x)
  right = sum(np.vdot(x[k], back[k]) for k in x)
  np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-4)


_dispatch = jax.jit(
  jax.vmap(lambda x, a: selection.select(x, _AXES, a), (None, 0))
)
_collect = jax.jit(
  lambda alloc, y: selection.scatter_sum(_TREE, _AXES, alloc, y)
)


def test_coverage_mean_by_hand():
  alloc = {'layer': np.array([[0, 1], [1, 2], [3, 3]])}
  delta = {'a': jnp.ones((3, 2, 3)), 'b': jnp.ones((3, 2))}
  delta = jax.tree.map(
    lambda x: x * jnp.arange(1, 4.0).reshape(-1, *[1] * (x.ndim - 1)), delta
  )
  # The last client is padding.
  weight = jnp.asarray([1.0, 3.0, 0.0])
  total = selection.group_sum(_TREE, _AXES, alloc, delta, weight)
  np.testing.assert_array_equal(total.den['a'], [[1], [4], [3], [0]])
  np.testing.assert_array_equal(total.den['b'], [4])
  mean = selection.coverage_mean(total)
  np.testing.assert_allclose(mean['a'][:, 0], [1, 7 / 4, 2, 0])
  np.testing.assert_allclose(mean['b'], [7 / 4, 7 / 4])
  scaled = selection.group_sum(_TREE, _AXES, alloc, delta, 8 * weight)
  tiny.assert_equal(selection.coverage_mean(scaled), mean)


def test_zero_sum_is_the_sum_over_nobody():
  zero = selection.zero_sum(_TREE, _AXES, ['layer'])
  assert zero.num['a'].shape == (4, 3)
  assert zero.den['a'].shape == (4, 1)
  assert zero.den['b'].shape == (1,)
  assert not any(np.any(x) for x in jax.tree.leaves(zero))

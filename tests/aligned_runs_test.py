"""Runs of aligned tiers: what they share, what nobody has, what identifies them."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
import tiny
import tiny_folders

import fedjax_tune as ft
from fedjax_tune import config
from fedjax_tune.costs import cost
from fedjax_tune.data import public
from fedjax_tune.deploy import models
from fedjax_tune.models import (
  bottleneck,
)
from fedjax_tune.training import build, identity, loop, run

_RANK, _CODE, _SIDE = 4, 5, 16


def _experiment(weights, **tiers):
  e = config.Experiment(
    method='heterotune',
    rounds=6,
    model=config.Model(tune='adapter'),
    fedadapter=config.Fedadapter(
      rank=_RANK, placement='parallel', projections='aligned'
    ),
    heterotune=config.Heterotune(branches=(1,) * len(weights)),
    tiers=config.Tiers(
      weights=tuple(weights), head='common', head_rank=_CODE, public_examples=60
    ),
    data=config.Data(name='arrays', image_size=_SIDE, lengths=(32,)),
    clients=config.Clients(
      partition='iid', count=4, budgets=(), min_examples=1,
      cohort='uniform', cohort_size=4,
    ),
    local=config.Local(optimizer='adam', lr=0.02, steps=4, batch_size=16),
  )  # fmt: skip
  for field, value in tiers.items():
    setattr(e.tiers, field, value)
  return e


def _pictures():
  train: Any
  test: Any
  train, test = tiny.examples(300, _SIDE), tiny.examples(90, _SIDE, seed=9)
  return ft.from_arrays(train.inputs, train.labels, test.inputs, test.labels)


_TWO = ('random:vit_test', 'random:vit_test')


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """A BERT and a Llama, of other widths and with other tokenizers."""
  root = tmp_path_factory.mktemp('aligned')
  llama = dataclasses.replace(tiny_folders.LLAMA, embed=24, ffn=40)
  return tiny_folders.write_bert(root), tiny_folders.write_llama(root, llama)


def _texts(weights, **tiers):
  e = _experiment(weights, public_examples=20, **tiers)
  e.data.name = 'ag_news_subset'
  with tfds.testing.mock_data(num_examples=40):
    return build.build(e)


def _shapes(setup):
  return jax.tree.map(np.shape, setup.algorithm.model.theta['shared'])


def test_what_tiers_share_knows_no_tier(folders):
  """Nor does it matter that their tokens are not the same."""
  both = _texts(folders)
  assert _shapes(both) == {
    'blocks': {
      'mlp_adapter': {
        'core_in': (2, 1, _RANK, _RANK),
        'core_in_bias': (2, 1, _RANK),
        'core_out': (2, 1, _RANK, _RANK),
        'core_out_bias': (2, 1, _RANK),
      }
    },
    'head': {'kernel': (_CODE, 4), 'bias': (4,)},
  }
  (wide,) = folders[1:]
  alone = _texts([wide])
  # A site for each of its own blocks, all else as before.
  rest = lambda setup: jax.tree.map(
    lambda x: x.shape[1:], setup.algorithm.model.theta['shared']
  )
  assert rest(alone) == rest(both)
  model: Any = alone.algorithm.model
  (llama,) = model.tiers.values()
  assert llama.base['head']['map'].shape == (24, _CODE)


def test_a_private_branch_is_no_ones_else(folders):
  e = _experiment(folders, public_examples=20)
  e.data.name, e.fedadapter.private = 'ag_news_subset', True
  with tfds.testing.mock_data(num_examples=40):
    theta = build.build(e).algorithm.model.theta
  assert set(theta['shared']['blocks']['mlp_adapter']) == {*bottleneck.SHARED}
  for name, width in (('bert', 16), ('llama', 24)):
    own = theta[name]['blocks']['mlp_adapter']
    assert own['private']['down'].shape[2:] == (width, _RANK)
    assert 'core_in' in own['private']
    # It starts with U = 0, so that the start is still the frozen model.
    assert not np.any(own['private']['up'])
    assert not np.any(own['mix'])


def test_bytes_of_a_round(folders):
  """Cores, biases and head, and of its own no more than a gate's logits."""
  setup = _texts(folders)
  for client in (0, 1):
    sig = tiny.signature(setup.algorithm, client)
    model = setup.algorithm.model
    held = functools.partial(cost.held_shapes, model.theta, model.axes)
    moved = setup.algorithm.traffic(sig, [sig], held)
    shared = 2 * 2 * (_RANK**2 + _RANK) + (_CODE + 1) * 4
    gates = [2, 3][client]
    assert moved.uplink == moved.downlink == 4 * (shared + gates)


def test_public_inputs_are_no_clients():
  setup = build.build(_experiment(_TWO, depth=(0, 3)), data=_pictures())
  owned = np.concatenate([setup.partition.indices[k] for k in range(4)])
  assert len(np.unique(owned)) == len(owned) == 300 - 60
  assert any('60 examples belong to no client' in n for n in setup.notes)
  free = _experiment(_TWO, depth=(0, 3), head='own')
  free.fedadapter.projections = 'free'
  assert build.build(free, data=_pictures()).partition.sizes().sum() == 300


def test_public_inputs_of_a_partition_as_given():
  parts = [np.arange(60 * k, 60 * k + 50) for k in range(4)]
  e = _experiment(_TWO, depth=(0, 3))
  setup = build.build(e, data=_pictures(), parts=parts)
  assert setup.partition.sizes().sum() == 200
  assert any('60 examples belong to no client' in n for n in setup.notes)
  e.tiers.public_examples = 101
  setup = build.build(e, data=_pictures(), parts=parts)
  assert any('100 examples belong to no client' in n for n in setup.notes)
  parts = [np.arange(75 * k, 75 * k + 75) for k in range(4)]
  with pytest.raises(ValueError, match=r'public_examples=101: no .* is left'):
    build.build(e, data=_pictures(), parts=parts)


@pytest.mark.parametrize(
  ('size', 'count'), [(4000, 512), (1000, 250), (300, 128), (200, 100)]
)
def test_of_few_examples_fewer_are_public(size, count):
  e = config.Experiment()
  train: Any = range(size)
  assert len(public.reserve(e.tiers, e.clients, train)) == count


def test_another_public_set(folders):
  setup = _texts(folders, public='imdb_reviews')
  assert setup.partition.sizes().sum() == 40
  with pytest.raises(ValueError, match=r"tiers\.public='no set'"):
    _texts(folders, public='no set')


def test_a_common_head_reads_examples_not_tokens(folders):
  e = _experiment(folders[:1])
  e.data.name, e.tiers.public_examples = 'squad', 10
  with (
    tfds.testing.mock_data(num_examples=40),
    pytest.raises(ValueError, match=r"tiers\.head='common' must be 'own' for"),
  ):
    build.build(e)


def test_what_is_aligned_identifies_a_run():
  e = _experiment(_TWO, depth=(0, 3))
  of = lambda: identity.of(build.build(e, data=_pictures()))['content']
  first = of()
  assert of() == first
  e.tiers.public_examples = 61
  assert of()['alignment'] != first['alignment']
  e.fedadapter.projections, e.tiers.head = 'free', 'own'
  assert 'alignment' not in of()


def test_a_head_alone_may_be_all_that_trains():
  e = _experiment(_TWO, depth=(0, 3))
  e.model.tune = 'head'
  setup = build.build(e, data=_pictures())
  theta = setup.algorithm.model.theta
  assert jax.tree.map(np.shape, theta) == {
    'shared': {'head': {'kernel': (_CODE, 3), 'bias': (3,)}}
  }
  made = run.Run(setup)
  planned = setup.planner.plan(0)
  state, _ = made.engine.round(
    made.engine.init(), planned, jax.random.key(0), e.local.lr
  )
  assert np.abs(state.theta['shared']['head']['kernel']).max() > 0


@pytest.mark.slow
def test_a_run_goes_on_where_it_was(tmp_path):
  """With projections computed anew, and what each client keeps."""
  e = _experiment(_TWO, depth=(0, 3), joins=(0, 1))
  e.fedadapter.private = e.heterotune.personal = True
  e.eval_every = e.checkpoint_every = 1
  e.engine.compilation_cache = False
  data = _pictures()
  e.rounds = 3
  want = loop.train(e, str(tmp_path / 'whole'), data=data)
  e.rounds = 2
  loop.train(e, str(tmp_path / 'halves'), data=data)
  e.rounds = 3
  got = loop.train(e, str(tmp_path / 'halves'), data=data, resume=True)
  assert set(got['other_accuracies']) >= {'vit_test', 'vit_test_d3'}
  # And with what it wrote, its models are built again without its data.
  ended = models.load(tmp_path / 'halves')
  assert set(ended.models) == {
    'vit_test', 'vit_test_d3', *(f'client{k}' for k in range(4))
  }  # fmt: skip
  for name in ('accuracy', 'train_loss', 'other_accuracies', 'uplink_bytes'):
    assert got[name] == want[name]

"""The experiment on transfer: its short cut, its division, its table."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
import tiny_folders

from experiments import _tails, heterotune_transfer
from fedjax_tune import config
from fedjax_tune.data import corpus
from fedjax_tune.methods.heterotune import checks
from fedjax_tune.models import peft, pretrained

_CELL = heterotune_transfer.Cell('l3', 'late', 64, 'aligned, cores and head', 0)
_TIERS = _CELL.experiment().tiers.weights


def test_a_tail_gives_what_the_whole_model_does(tmp_path):
  weights = pretrained.load_pretrained(tiny_folders.write_bert(tmp_path), '', 0)
  e = config.Experiment(model=config.Model(tune='adapter'))
  e.data = config.Data(name='ag_news_subset', lengths=(32,))
  e.fedadapter = config.Fedadapter(rank=3, placement='parallel')
  with tfds.testing.mock_data(num_examples=9):
    train, _ = corpus.load(e.data, weights.tokenizer, weights.config.pad)  # pyright: ignore[reportAttributeAccessIssue]
  whole = peft.build(e, weights, train.task)
  tail = _tails.tail(e, weights, train.task)
  # An adapter in the last block: in all others U is zero.
  theta: Any = jax.tree.map(np.array, whole.theta)
  up = theta['blocks']['mlp_adapter']['up']
  up[-1] = np.random.default_rng(0).normal(size=up[-1].shape)
  rest = {**theta, 'blocks': jax.tree.map(lambda x: x[-1:], theta['blocks'])}
  assert jax.tree.map(np.shape, rest) == jax.tree.map(np.shape, tail.theta)
  rows, layers = np.arange(9), np.arange(2)
  read = _tails.before(e, weights, train, rows)
  assert read.shape == (9, 2, 16)
  x, _ = whole.merge(whole.base, theta)._run(  # pyright: ignore[reportAttributeAccessIssue]
    train.read(rows), layers, None, pool=True
  )
  model: Any = tail.merge(tail.base, rest)
  got, _ = model._run(read, np.arange(1), None, pool=True)
  np.testing.assert_allclose(got[:, :1], x, rtol=1e-4, atol=1e-5)
  # The adapter does something.
  start: Any = tail.merge(tail.base, tail.theta)
  plain, _ = start._run(read, np.arange(1), None, pool=True)
  assert np.abs(got - plain).max() > 1e-2
  np.testing.assert_allclose(
    model(read, np.arange(1)),
    whole.merge(whole.base, theta)(train.read(rows), layers),
    rtol=1e-4,
    atol=1e-5,
  )


def test_the_poor_tier_grows_and_nobody_has_public_texts():
  labels = np.arange(5632) % 2
  before: list[set[int]] = []
  for count in (16, 64, 1024):
    cell = dataclasses.replace(_CELL, labels=count)
    parts, public = heterotune_transfer.divide(labels, cell, _TIERS)
    assert [len(p) for p in parts] == [320] * 8 + [count // 2] * 2
    everyone = np.concatenate([*parts, public])
    assert len(np.unique(everyone)) == len(everyone)
    assert labels[np.concatenate(parts[8:])].mean() == 0.5
    rich, poor = (set(np.concatenate(p)) for p in (parts[:8], parts[8:]))
    if before:
      assert before[0] == rich
      assert before[1] < poor
    before = [rich, poor]


def test_the_rich_tier_may_be_the_second():
  cell = dataclasses.replace(_CELL, setting='l6')
  tiers = cell.experiment().tiers
  assert tiers.weights == ('minilm_l6',) * 2 + ('minilm_l3',) * 8
  assert tiers.joins == (10,) * 2 + (0,) * 8
  parts, _ = heterotune_transfer.divide(
    np.arange(5632) % 2, cell, tiers.weights
  )
  assert [len(p) for p in parts] == [32] * 2 + [320] * 8


@pytest.mark.parametrize('design', heterotune_transfer.DESIGNS)
def test_designs_are_possible(design):
  e = dataclasses.replace(_CELL, design=design).experiment()
  sizes = {'layer': 1, 'tier:minilm_l6': 1, 'tier:minilm_l3': 1}
  checks.check(e, sizes, (1,) * 10)


def test_table():
  row = dataclasses.asdict(_CELL) | {'rich': 0.7, 'uplink': 2048}
  rows = [
    row | {'seed': seed, 'mark': mark, 'poor': value}
    for seed in (0, 1)
    for mark, value in (('before', 0.6 + seed / 10), ('after 10', 0.8))
  ]
  text = heterotune_transfer.table(rows)
  assert 'setting l3, joins late, labels 64' in text
  assert (
    '| aligned, cores and head | 65.0 ± 7.1 | 80.0 ± 0.0 | 70.0 ± 0.0 | 2 | 2 |'
    in text
  )

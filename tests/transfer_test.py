"""The experiment on transfer: its short cut, its division, its table."""

import dataclasses
import json
from typing import Any

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
import tiny_folders

from experiments import (
  _cells,
  _tails,
  _transfer_report,
  _whole,
  heterotune_transfer,
)
from fedjax_tune import config
from fedjax_tune.data import corpus
from fedjax_tune.methods.heterotune import checks
from fedjax_tune.models import peft, pretrained

_CELL = _cells.Cell('l3', 'late', 64, 'aligned, cores and head', 0)


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
    parts, public = _cells.divide(labels, cell)
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
  parts, _ = _cells.divide(np.arange(5632) % 2, cell)
  assert [len(p) for p in parts] == [32] * 2 + [320] * 8


def test_of_pictures_three_parts_of_one_network():
  cell = dataclasses.replace(_CELL, setting='d12', sites='all', labels=16)
  e = cell.experiment()
  assert e.tiers.depth == (12,) * 2 + (8,) * 4 + (6,) * 4
  assert e.tiers.joins == (10,) * 2 + (0,) * 8
  assert e.heterotune.mapping == 'index'
  parts, public = _cells.divide(np.arange(9000) % 9, cell)
  assert [len(p) for p in parts] == [8] * 2 + [320] * 8
  everyone = np.concatenate([*parts, public])
  assert len(np.unique(everyone)) == len(everyone)
  more = dataclasses.replace(cell, labels=1024)
  grown, _ = _cells.divide(np.arange(9000) % 9, more)
  assert set(np.concatenate(parts[:2])) < set(np.concatenate(grown[:2]))
  np.testing.assert_array_equal(parts[5], grown[5])


@pytest.mark.parametrize('design', _cells.DESIGNS)
@pytest.mark.parametrize(
  ('setting', 'sites'), [('l3', 'last'), ('l6', 'all'), ('d6', 'all')]
)
def test_designs_are_possible(setting, sites, design):
  cell = dataclasses.replace(_CELL, setting=setting, sites=sites, design=design)
  names = _cells.SETTINGS[setting].names
  depths = {f'tier:{name}': 6 for name in names}
  checks.check(cell.experiment(), {'layer': 6} | depths, (6,) * 10)


def test_what_is_there_is_not_run_again(tmp_path, monkeypatch):
  """The first rows say neither sites nor rounds."""
  row = dataclasses.asdict(_CELL) | {'mark': 'after 10', 'poor': 0.5}
  del row['sites'], row['rounds']
  (tmp_path / 'runs.jsonl').write_text(json.dumps(row) + '\n')
  whole = dataclasses.replace(_CELL, sites='all')
  ran = []

  def run_cell(cell):
    ran.append(cell)
    return [dataclasses.asdict(cell)]

  monkeypatch.setattr(_whole, 'run_cell', run_cell)
  heterotune_transfer.run_missing([_CELL, whole, whole], tmp_path)
  assert ran == [whole]


def test_table():
  row = dataclasses.asdict(_CELL) | {'rich': 0.7, 'uplink': 2048}
  rows = [
    row | {'seed': seed, 'mark': mark, 'poor': value}
    for seed in (0, 1)
    for mark, value in (('before', 0.6 + seed / 10), ('after 10', 0.8))
  ]
  text = _transfer_report.table(rows)
  assert 'setting l3, sites last, joins late, labels 64' in text
  assert (
    '| aligned, cores and head | 65.0 ± 7.1 | 80.0 ± 0.0 | 70.0 ± 0.0 | 2 | 2 |'
    in text
  )


def test_runs_of_other_lengths_have_tables_of_their_own():
  row = dataclasses.asdict(_CELL) | {'rich': 0.7, 'uplink': 2048, 'poor': 0.8}
  marks = {20: ('before', 'after 10'), 40: ('before', 'after 20')}
  text = _transfer_report.table(
    [row | {'rounds': n, 'mark': m} for n, own in marks.items() for m in own]
  )
  assert 'rounds 20, setting l3' in text
  assert 'rounds 40, setting l3' in text


def test_a_figure_for_each_setting_of_several_sizes(tmp_path):
  row = dataclasses.asdict(_CELL) | {'mark': 'after 10', 'poor': 0.8}
  sizes = {'l3': (16, 64), 'l6': (64,)}
  _transfer_report.draw(
    [
      row | {'setting': s, 'labels': n} for s, own in sizes.items() for n in own
    ],
    tmp_path,
  )
  names = [path.name for path in tmp_path.iterdir()]
  assert names == ['heterotune_transfer_l3_last_late.png']

"""Tiers from configuration to a run: other sizes, other families."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
import tiny_folders

from fedjax_tune import config
from fedjax_tune.models import tiers
from fedjax_tune.training import agreement, build, loop

_LLAMA = dataclasses.replace(tiny_folders.LLAMA, embed=24, ffn=40)


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """Folders of a BERT and of a Llama, each with a tokenizer of its own."""
  root = tmp_path_factory.mktemp('tiers')
  bert = tiny_folders.write_bert(root)
  return bert, tiny_folders.write_llama(root, _LLAMA)


def _experiment(weights, **sections):
  e = config.Experiment(
    method='heterotune',
    rounds=2,
    eval_every=2,
    model=config.Model(tune='adapter'),
    fedadapter=config.Fedadapter(
      rank=4, after=('attn', 'mlp'), projections='free'
    ),
    tiers=config.Tiers(weights=tuple(weights)),
    data=config.Data(name='ag_news_subset', lengths=(32,), test_examples=8),
    clients=config.Clients(
      partition='iid', count=4, budgets=(), min_examples=1,
      cohort='uniform', cohort_size=4,
    ),
    local=config.Local(lr=0.1, steps=2, batch_size=4),
  )  # fmt: skip
  for section, fields in sections.items():
    for field, value in fields.items():
      setattr(getattr(e, section), field, value)
  return e


def test_two_families_learn_together(folders, tmp_path):
  with tfds.testing.mock_data(num_examples=40):
    summary = loop.train(_experiment(folders), str(tmp_path))
  assert set(summary['other_accuracies']) == {'bert', 'llama'}
  mean = np.mean(list(summary['other_accuracies'].values()))
  assert summary['accuracy'] == pytest.approx(mean)
  assert summary['compiles'] == 2
  assert np.isfinite(summary['train_loss'])


def test_each_tier_reads_by_its_own_tokenizer(folders):
  with tfds.testing.mock_data(num_examples=40):
    setup: Any = build.build(_experiment(folders))
  assert setup.readers == {'bert': 0, 'llama': 1}
  letters = setup.train.view(1)
  np.testing.assert_array_equal(letters.labels, setup.train.labels)
  assert np.any(letters.inputs.ids != setup.train.inputs.ids)
  works = setup.planner.plan(0).works
  seen = {int(w.slab.ids[0]) % 2: w.own.batches.inputs.ids.max() for w in works}
  # Word pieces number fewer than bytes.
  assert seen[0] < tiny_folders.BERT.vocab
  assert {int(k) % 2 for k in seen} == {0, 1}
  bert, llama = setup.algorithm.model.tiers.values()
  assert bert.base['blocks']['attn']['q']['kernel'].shape[1] == 16
  assert llama.base['blocks']['attn']['q']['kernel'].shape[1] == 24


def test_what_tiers_share_knows_no_width(folders):
  """Each alone, models 16 and 24 wide, has cores of the same shapes."""
  with tfds.testing.mock_data(num_examples=40):
    setups = [build.build(_experiment([folder])) for folder in folders]
  sites = min(setup.algorithm.model.depth for setup in setups)
  shapes = [
    jax.tree.map(lambda x: x.shape[1:], setup.algorithm.model.theta['shared'])
    for setup in setups
  ]
  assert sites > 0
  assert shapes[0] == shapes[1]
  ups = [
    setup.algorithm.model.theta[name]['blocks']['mlp_adapter']['up'].shape
    for setup, name in zip(setups, ('bert', 'llama'), strict=True)
  ]
  assert (ups[0][-1], ups[1][-1]) == (16, 24)


def test_a_subnetwork_is_a_tier():
  e = _experiment(
    ('random:vit_test',) * 3,
    tiers={'depth': (0, 2, 2), 'width': (1.0, 0.5, 0.5)},
    data={'name': 'emoji_styles', 'image_size': 16},
  )
  assert tiers.names(e.tiers) == (
    'vit_test',
    'vit_test_d2_w0.5',
    'vit_test_d2_w0.5',
  )
  whole, part = tiers.load(e, '')
  assert whole.kept == {'layer': 4}
  assert part.kept == {'layer': 2, 'heads': 1, 'ffn': 16}
  assert tiers.readers((whole, part)) == dict.fromkeys(
    (whole.name, part.name), 0
  )


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'depth': (0, 9)}, r'tiers\.depth: tier .*d9. must keep at most 4'),
    ({'weights': ('random:vit_test', 'random:text_test')}, r'all read text'),
    ({'weights': ('/a/vit', '/b/vit')}, r"would be called 'vit'"),
    ({'width': (1.0,)}, r'tiers\.width=\(1\.0,\) must have 2 values'),
  ],
)
def test_bad_tiers(changes, message):
  e = _experiment(('random:vit_test', 'random:vit_test'), tiers=changes)
  e.data.image_size = 16
  with pytest.raises(ValueError, match=message):
    tiers.load(e, '')


def test_without_tiers_there_is_one_model():
  e: Any = config.Experiment()
  e.model.weights, e.data.image_size = 'random:vit_test', 16
  (only,) = tiers.load_one(e, '')
  assert (only.name, only.kept) == ('model', {'layer': 4})


def _pictures(method, weights, **sections):
  data = {'name': 'cifar10', 'image_size': 16}
  e = _experiment(weights, data=data, **sections)
  e.method, e.model.weights = method, 'random:vit_test'
  with tfds.testing.mock_data(num_examples=40):
    return build.build(e)


def test_a_method_of_several_models_needs_one():
  e = config.Experiment(method='heterotune')
  message = r'tiers\.weights=\(\) must name the models of method=heterotune'
  with tfds.testing.mock_data(num_examples=4):
    e.data.name, e.data.image_size, e.data.domains = (
      'domainnet',
      56,
      ('clipart',),
    )
    with pytest.raises(ValueError, match=message):
      agreement.agree(e)


def test_a_method_of_one_model_reads_no_tier():
  setup = _pictures('all_large', ('no such folder',))
  assert setup.algorithm.model.depth == 4


def test_budgets_may_name_the_deepest_tier_last():
  tier = {'depth': (2, 0)}
  setup = _pictures(
    'heterotune',
    ('random:vit_test',) * 2,
    tiers=tier,
    clients={'budgets': (2, 4)},
  )
  assert setup.budgets == (2, 4, 2, 4)
  with pytest.raises(ValueError, match=r'budgets=\(2, 3\) must be \(\)'):
    _pictures(
      'heterotune',
      ('random:vit_test',) * 2,
      tiers=tier,
      clients={'budgets': (2, 3)},
    )

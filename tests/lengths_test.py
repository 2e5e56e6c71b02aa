"""Texts longer than a model's positions are refused before any work."""

import dataclasses
from typing import Any

import pytest
import tensorflow_datasets as tfds
import tiny_folders
import tiny_text

from fedjax_tune import config
from fedjax_tune.data import corpus, text, text_sets, tokens
from fedjax_tune.models import peft, pretrained, sizes
from fedjax_tune.training import build

_TEXT = sizes.TextConfig(2, 16, 2, 24, vocab=40, positions=32)
_ROBERTA = dataclasses.replace(_TEXT, family='roberta', types=1, pad=1)
_LLAMA = sizes.DecoderConfig(2, 16, 2, 24, 40, 32, group=2, head_dim=4)


def _experiment(lengths, **sections) -> Any:
  e = config.Experiment(
    data=config.Data(name='ag_news_subset', lengths=lengths),
    clients=config.Clients(
      partition='iid', budgets=(), cohort='uniform', cohort_size=1
    ),
  )
  return dataclasses.replace(e, **sections)


@pytest.mark.parametrize('tune', ['full', 'prompt', 'prefix'])
@pytest.mark.parametrize(
  ('sizes_', 'most'),
  # RoBERTa's first two rows are no token's; Llama has no table, but a limit.
  [(_TEXT, 32), (_ROBERTA, 30), (_LLAMA, 32)],
)
def test_as_many_tokens_as_positions(sizes_, most, tune):
  """Of trained tokens only a decoder's take positions."""
  weights = pretrained.Pretrained(sizes_, {}, 'the folder')
  model = config.Model(tune=tune)
  if sizes_ is _LLAMA and tune != 'full':
    most -= model.prompt_tokens
  peft.check(_experiment((8, most), model=model), weights)
  message = rf'^data.lengths=\(8, {most + 1}\) .* {most}: .*the folder'
  with pytest.raises(ValueError, match=message):
    peft.check(_experiment((8, most + 1), model=model), weights)


def test_images_have_no_lengths():
  image = sizes.ViTConfig(2, 16, 2, 24, patch=4, image_size=8)
  weights = pretrained.Pretrained(image, {}, '')
  peft.check(_experiment((8, 999), model=config.Model(tune='full')), weights)


@pytest.fixture(name='unread')
def _unread(monkeypatch):
  """Has data, which nothing may read."""
  monkeypatch.delattr(corpus, 'load')
  with tfds.testing.mock_data(num_examples=4):
    yield


@pytest.mark.usefixtures('unread')
def test_a_run_is_refused_before_its_data(tmp_path):
  folder = tiny_folders.write_bert(tmp_path)
  experiment = _experiment((16, 64), model=config.Model(weights=folder))
  with pytest.raises(ValueError, match=r'data.lengths=\(16, 64\) .* 32'):
    build.build(experiment)


@pytest.mark.usefixtures('unread')
def test_every_tier_is_checked(tmp_path):
  wide = dataclasses.replace(tiny_folders.BERT, positions=64)
  tiers = config.Tiers(
    weights=(
      tiny_folders.write_bert(tmp_path / 'wide', wide),
      tiny_folders.write_llama(tmp_path),
    )
  )
  experiment = _experiment(
    (16, 64),
    method='heterotune',
    model=config.Model(tune='adapter'),
    tiers=tiers,
  )
  with pytest.raises(ValueError, match=r'data.lengths=\(16, 64\) .* 32.*llama'):
    build.build(experiment)


def test_a_text_without_tokens(tmp_path):
  """BERT adds two; Llama none, and a head would read padding."""
  rows = [{'text': t, 'label': 0} for t in ('a', '', 'b')]

  def encode(write, pad, entry):
    tokenizer = tokens.load(write(tmp_path / write.__name__))
    return text.encode(rows, entry, tokenizer, 8, pad).encoded.lengths

  labelled = text_sets.TEXT_SETS['imdb_reviews']
  pad = tiny_text.BERT_PAD
  assert list(encode(tiny_text.write_bert, pad, labelled)) == [3, 2, 3]
  write, pad = tiny_text.write_letters, tiny_text.ROBERTA_PAD
  with pytest.raises(ValueError, match=r"example 1 .* is '', which has no tok"):
    encode(write, pad, labelled)
  # There is nothing to predict in it, and nothing is made up.
  assert list(encode(write, pad, labelled.as_language())) == [1, 0, 1]

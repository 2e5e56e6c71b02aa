"""Next tokens: loss, sums, predictions, metrics, and what a text set gives."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
import tiny_text

from fedjax_tune import config
from fedjax_tune.data import corpus, metrics, tasks, text, text_sets, tokens

_B, _T, _V = 4, 6, 5
_LENGTHS = (6, 4, 1, 3)
_TASK: Any = tasks.Task('next_token', _V)


class _Batch(NamedTuple):
  label: np.ndarray
  valid: np.ndarray


def _example() -> tuple[np.ndarray, _Batch]:
  """Texts of 6, 4 and 1 tokens, and one that only fills the batch up."""
  rng = np.random.default_rng(0)
  ids = rng.integers(1, _V, (_B, _T)).astype(np.int32)
  lengths = np.array(_LENGTHS, np.int32)
  label = text.next_tokens(tokens.Encoded(ids, 0 * ids, lengths))
  for row, length in enumerate(_LENGTHS):
    np.testing.assert_array_equal(
      label[row], [*ids[row, 1:length], *[-1] * (_T - length + 1)]
    )
  logits = rng.normal(size=(_B, _T, _V)).astype(np.float32)
  return logits, _Batch(label, np.array([True, True, True, False]))


def _by_hand(logits, label) -> tuple[np.ndarray, np.ndarray]:
  """Loss and hit of every token, 0 where nothing follows."""
  losses, hits = np.zeros(label.shape), np.zeros(label.shape)
  for at in zip(*np.nonzero(label >= 0), strict=True):
    p = np.exp(logits[at]) / np.exp(logits[at]).sum()
    losses[at], hits[at] = -np.log(p[label[at]]), p.argmax() == label[at]
  return losses, hits


def test_every_token_counts_alike():
  logits, batch = _example()
  losses, hits = _by_hand(logits, batch.label)
  loss, sums = _TASK.loss(jnp.asarray(logits), batch)
  # Of 6, 4 and 1 tokens all but the last have a next one.
  assert sums['count'] == 5 + 3
  np.testing.assert_allclose(sums['loss'], losses[:3].sum(), rtol=1e-6)
  np.testing.assert_allclose(loss, losses[:3].sum() / 8, rtol=1e-6)
  assert sums['correct'] == hits[:3].sum()


def test_padding_changes_neither_loss_nor_gradient():
  logits, batch = _example()
  loss = lambda x, b: _TASK.loss(x, b)[0]
  want, slope = jax.value_and_grad(loss)(logits, batch)
  # Labels go on where outputs of a shorter batch end.
  wider = _Batch(
    np.pad(batch.label, [(0, 0), (0, 3)], constant_values=-1), batch.valid
  )
  np.testing.assert_allclose(loss(logits, wider), want, rtol=1e-6)
  # Outputs beyond a text's end may be anything, infinite too.
  wild = np.where((batch.label >= 0)[..., None], logits, np.inf)
  wild[3] = np.nan
  assert np.isfinite(loss(wild, batch))
  np.testing.assert_allclose(loss(wild, batch), want, rtol=1e-6)
  assert not np.any(np.asarray(slope)[batch.label < 0])
  assert not np.any(np.asarray(slope)[3])
  empty = _Batch(np.full_like(batch.label, -1), batch.valid)
  assert loss(logits, empty) == 0


def test_predictions_are_sums_of_texts():
  logits, batch = _example()
  losses, hits = _by_hand(logits, batch.label)
  got = _TASK.predict(jnp.asarray(logits), batch)
  np.testing.assert_allclose(got['loss'], losses.sum(1), rtol=1e-5)
  np.testing.assert_array_equal(got['correct'], hits.sum(1))
  np.testing.assert_array_equal(got['count'], [5, 3, 0, 2])
  found = metrics.evaluate(
    'next_token', _TASK.metrics, jax.device_get(got), batch.label
  )
  assert list(found) == ['accuracy', 'perplexity']
  assert found['accuracy'] == pytest.approx(hits.sum() / 10)
  assert found['perplexity'] == pytest.approx(np.exp(losses.sum() / 10))


def _load(name: str, folder: Any, task: str = 'next_token', **fields: Any):
  cfg = config.Data(name=name, task=task, lengths=(16, 32), **fields)
  return corpus.load(cfg, tokenizer=folder, pad=tiny_text.BERT_PAD)


@pytest.fixture(scope='module', name='folder')
def _folder(tmp_path_factory):
  return tiny_text.write_bert(tmp_path_factory.mktemp('bert'))


@pytest.mark.parametrize('name', ['imdb_reviews', 'glue/mrpc', 'lm1b'])
def test_any_text_set_will_do(folder, name):
  with tfds.testing.mock_data(num_examples=6):
    train, test = _load(name, folder)
  vocab = tokens.load(folder).get_vocab_size()
  assert train.task == tasks.Task('next_token', vocab) == test.task
  assert train.class_names == ()
  assert train.lengths is not None
  assert train.labels.shape == (6, 32)
  ids, _ = train.read(np.arange(6))
  for row, length in enumerate(train.lengths):
    np.testing.assert_array_equal(
      train.labels[row, : length - 1], ids[row, 1:length]
    )
    assert (train.labels[row, length - 1 :] == -1).all()


def test_a_pair_is_one_text():
  entry = text_sets.TEXT_SETS['glue/mnli'].as_language()
  assert entry.features == ('premise', 'hypothesis')
  assert entry.test == 'validation_matched'
  assert text_sets.TEXT_SETS['squad'].as_language().features == (
    'question', 'context', 'title',
  )  # fmt: skip


@pytest.mark.parametrize(
  ('name', 'fields', 'message'),
  [
    (
      'lm1b',
      {'task': ''},
      "must have image and label.*data.task must be 'next",
    ),
    ('cifar10', {}, 'has images, but the model .* reads text'),
    ('imdb_reviews', {'num_classes': 1}, 'data.num_classes=1: must be 0'),
  ],
)
def test_bad_fields_are_refused(folder, name, fields, message):
  with (
    tfds.testing.mock_data(num_examples=6),
    pytest.raises(ValueError, match=message),
  ):
    _load(name, None if fields == {'task': ''} else folder, **fields)

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_tune.data import tasks

_B, _T, _K = 5, 12, 3


class _Batch(NamedTuple):
  label: np.ndarray
  valid: np.ndarray


def _task(kind) -> Any:
  sizes = {'classification': _K, 'regression': 1, 'span': 2}
  return tasks.Task(kind, sizes[kind])


def _example(kind, seed=0):
  """Outputs and a batch in which every row is valid."""
  rng = np.random.default_rng(seed)
  if kind == 'classification':
    outputs = rng.normal(size=(_B, _K))
    label = rng.integers(0, _K, _B).astype(np.int32)
  elif kind == 'regression':
    outputs = rng.normal(size=(_B, 1))
    label = rng.normal(size=_B).astype(np.float32)
  else:
    outputs = rng.normal(size=(_B, _T, 2))
    first, last = rng.integers(2, 4, _B), rng.integers(7, _T - 2, _B)
    start = rng.integers(first, last + 1)
    end = rng.integers(start, last + 1)
    label = np.stack([start, end, first, last], 1).astype(np.int32)
    label[0, :2] = 0
  return outputs.astype(np.float32), _Batch(label, np.ones(_B, bool))


kinds = pytest.mark.parametrize(
  'kind', ['classification', 'regression', 'span']
)


def test_class_loss_by_hand():
  logits, batch = _example('classification')
  loss, sums = _task('classification').loss(logits, batch)
  p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  expected = -np.log(p[np.arange(_B), batch.label])
  np.testing.assert_allclose(loss, expected.mean(), rtol=1e-6)
  np.testing.assert_allclose(sums['loss'], expected.sum(), rtol=1e-6)
  assert sums['correct'] == np.sum(logits.argmax(1) == batch.label)
  assert sums['count'] == _B


def test_value_loss_by_hand():
  outputs = np.array([[1.0], [2.0], [4.0]], np.float32)
  batch = _Batch(np.array([1.0, 2.4, 3.0], np.float32), np.ones(3, bool))
  loss, sums = _task('regression').loss(outputs, batch)
  np.testing.assert_allclose(loss, (0 + 0.16 + 1) / 3, rtol=1e-5)
  assert sums['correct'] == 2


def test_span_loss_by_hand():
  logits, batch = _example('span')
  loss, sums = _task('span').loss(logits, batch)
  losses, hits = [], 0
  for logits_Tx2, (start, end, _, last) in zip(
    logits, batch.label, strict=True
  ):
    seen = logits_Tx2[: last + 2]  # The context's separator, but no padding.
    log_p = seen - np.log(np.exp(seen).sum(0))
    losses.append(-(log_p[start, 0] + log_p[end, 1]) / 2)
    hits += (seen.argmax(0) == (start, end)).all()
  np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-5)
  assert sums['correct'] == hits


@kinds
def test_padding_rows_change_nothing(kind):
  task = _task(kind)
  outputs, batch = _example(kind)
  # What a padding row computes does not matter, not even if it overflows.
  padded = np.concatenate([outputs, np.full_like(outputs[:2], np.inf)])
  wide = _Batch(
    np.concatenate([batch.label, batch.label[:2]]),
    np.arange(_B + 2) < _B,
  )
  loss, sums = task.loss(outputs, batch)
  wide_loss, wide_sums = task.loss(padded, wide)
  np.testing.assert_allclose(wide_loss, loss, rtol=1e-6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), wide_sums, sums
  )
  predicted, wide_predicted = (
    task.predict(outputs, batch),
    task.predict(padded, wide),
  )
  for name, value in predicted.items():
    np.testing.assert_array_equal(wide_predicted[name][:_B], value)


def test_padding_tokens_change_nothing():
  task = _task('span')
  outputs, batch = _example('span')
  rng = np.random.default_rng(1)
  noise = 50 * rng.normal(size=(_B, 7, 2)).astype(np.float32)
  padded = np.concatenate([outputs, noise], axis=1)
  np.testing.assert_allclose(
    task.loss(padded, batch)[0], task.loss(outputs, batch)[0], rtol=1e-6
  )
  for name, value in task.predict(outputs, batch).items():
    np.testing.assert_array_equal(task.predict(padded, batch)[name], value)
  gradient = jax.grad(lambda x: task.loss(x, batch)[0])(padded)
  assert np.isfinite(gradient).all()
  assert not gradient[:, _T:].any()


@kinds
def test_no_valid_row_gives_no_loss_and_no_gradient(kind):
  outputs, batch = _example(kind)
  nothing = batch._replace(valid=np.zeros(_B, bool))
  loss = lambda x: _task(kind).loss(x, nothing)
  assert loss(outputs)[0] == 0
  assert not any(jax.tree.leaves(loss(outputs)[1]))
  assert not jax.grad(lambda x: loss(x)[0])(outputs).any()


@pytest.mark.parametrize('seed', range(5))
def test_best_span_equals_brute_force(seed, monkeypatch):
  monkeypatch.setattr(tasks, '_MAX_ANSWER', 3)
  logits, batch = _example('span', seed)
  found = _task('span').predict(logits, batch)
  for row, (_, _, first, last) in enumerate(batch.label):
    spans = itertools.combinations_with_replacement(range(first, last + 1), 2)
    score = {
      (i, j): logits[row, i, 0] + logits[row, j, 1]
      for i, j in spans
      if j - i < 3
    }
    best = max(score, key=lambda s: score[s])
    assert (found['start'][row], found['end'][row]) == best
    np.testing.assert_allclose(found['score'][row], score[best], rtol=1e-6)
    np.testing.assert_allclose(
      found['null'][row], logits[row, 0].sum(), rtol=1e-6
    )


def test_predictions_of_classes_and_values():
  logits, batch = _example('classification')
  found = _task('classification').predict(logits, batch)['class']
  np.testing.assert_array_equal(found, logits.argmax(1))
  outputs, batch = _example('regression')
  found = _task('regression').predict(outputs, batch)['value']
  np.testing.assert_array_equal(found, outputs[:, 0])


@kinds
def test_works_in_half_precision_under_jit(kind):
  outputs, batch = _example(kind)
  task = _task(kind)
  loss, _ = jax.jit(task.loss)(jnp.asarray(outputs, jnp.bfloat16), batch)
  np.testing.assert_allclose(loss, task.loss(outputs, batch)[0], rtol=0.05)


def test_tasks_are_compile_keys():
  assert _task('span') == _task('span')
  assert hash(_task('span')) == hash(_task('span'))
  assert _task('regression').primary == 'pearson'


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (('ranking', 2), r"kind='ranking': must be one of classification"),
    (('classification', 0), r'num_outputs=0: .* at least 1'),
    (('regression', 3), r'num_outputs=3: .*regression must have 1'),
    (('span', 3), r'num_outputs=3: .*span must have 2'),
    (('span', 2, ('accuracy',)), r"'accuracy' must be one of f1, exact_match"),
  ],
)
def test_bad_tasks_are_refused(args, message):
  with pytest.raises(ValueError, match=message):
    tasks.Task(*args)


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
@kinds
def test_predictions_say_whether_outputs_are_finite(kind, bad):
  outputs, batch = _example(kind)
  assert _task(kind).predict(outputs, batch)['finite'].all()
  # The last output that counts; behind a context only its separator does.
  at = -1 if kind != 'span' else int(batch.label[1, 3]) + 1
  outputs[1, at] = bad
  found = _task(kind).predict(outputs, batch)['finite']
  np.testing.assert_array_equal(found, np.arange(_B) != 1)


def test_padding_tokens_need_not_be_finite():
  outputs, batch = _example('span')
  outputs[1, int(batch.label[1, 3]) + 2 :] = np.nan
  assert _task('span').predict(outputs, batch)['finite'].all()
  task: Any = tasks.Task('next_token', 3)
  label = np.array([[1, 2, -1], [1, -1, -1]])
  logits = np.zeros((2, 3, 3), np.float32)
  logits[label < 0] = np.nan
  assert task.predict(logits, _Batch(label, np.ones(2, bool)))['finite'].all()
  logits[1, 0, 2] = np.inf
  found = task.predict(logits, _Batch(label, np.ones(2, bool)))
  np.testing.assert_array_equal(found['finite'], [True, False])


@pytest.mark.parametrize('dtype', [jnp.float16, jnp.bfloat16])
def test_what_overflows_in_half_precision_is_not_finite(dtype):
  outputs, batch = _example('classification')
  predict = _task('classification').predict
  assert predict(jnp.asarray(outputs, dtype), batch)['finite'].all()
  large = (1e38 * jnp.asarray(outputs)).astype(dtype) * 100
  assert not predict(large, batch)['finite'].any()

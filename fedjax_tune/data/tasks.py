"""What is learned: classes, a number, a span of a text, or its next tokens.

A task has the loss of a model's outputs, the predictions made from them, and
the names of the metrics (`metrics.py`) that judge these. Nothing here depends
on how far a batch is padded, in rows or in tokens.
"""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp
import optax

from fedjax_tune.data import metrics
from fedjax_tune.typing import AnyArray

# A kind's metrics, unless a data set has its own; the first is the primary.
_METRICS = {
  'classification': ('accuracy',),
  'regression': ('pearson', 'spearman'),
  'span': ('f1', 'exact_match'),
  'next_token': ('accuracy', 'perplexity'),
}
_MAX_ANSWER = 30  # Tokens, as in BERT's run_squad.py.

# Metrics by name, as sums over examples, never means.
Sums = dict[str, jax.Array]
# The mean loss of a batch, and its metrics.
LossAndSums = tuple[jax.Array, Sums]


class Examples(Protocol):
  """The part of a batch that a task reads.

  `label` is int32[B], float32[B] for a regression, or for spans int32[B, 4]:
  the answer's first and last token, then the context's (the answer is token 0
  twice if the window has none). For next tokens it is int32[B, T], the token
  that follows each token, and -1 where none does; T is at least that of the
  outputs. `valid` is bool[B], False for padding rows.
  """

  @property
  def label(self) -> AnyArray: ...

  @property
  def valid(self) -> AnyArray: ...


@dataclasses.dataclass(frozen=True)
class Task:
  """What a model's outputs mean.

  Attributes:
    kind: 'classification' (outputs are logits [B, K]), 'regression' ([B, 1]),
      'span' (logits of start and end, [B, T, 2]) or 'next_token' (logits of
      each next token, [B, T, V]).
    num_outputs: K, 1, 2 or V.
    metrics: Names in `metrics.METRICS`, the primary one first; () takes the
      usual ones of the kind.

  Raises:
    ValueError: An unknown kind or metric, or a number that the kind excludes.
  """

  kind: str
  num_outputs: int
  metrics: tuple[str, ...] = ()

  def __post_init__(self):
    if self.kind not in _METRICS:
      raise ValueError(
        f'kind={self.kind!r}: must be one of {", ".join(_METRICS)}'
      )
    wanted = {'regression': 1, 'span': 2}.get(self.kind, self.num_outputs)
    if self.num_outputs != max(wanted, 1):
      raise ValueError(
        f'num_outputs={self.num_outputs}: a task of kind {self.kind} must have'
        f' {wanted if self.kind in ("regression", "span") else "at least 1"}'
      )
    if not self.metrics:
      object.__setattr__(self, 'metrics', _METRICS[self.kind])
    known = metrics.METRICS[self.kind]
    for name in self.metrics:
      if name not in known:
        raise ValueError(
          f'metrics={self.metrics}: {name!r} must be one of'
          f' {", ".join(known)} for {self.kind}'
        )

  @property
  def primary(self) -> str:
    """The metric by which runs are compared."""
    return self.metrics[0]

  def loss(self, outputs: jax.Array, batch: Examples) -> LossAndSums:
    """Returns the mean loss over the valid examples, and metric sums.

    The loss is cross entropy, the squared error, or for spans the mean of the
    cross entropies of start and end among the tokens that are not padding
    (arXiv 1810.04805, section 4.2). The sums are `loss`, `count`, and
    `correct`: the class is right; the value is less than 0.5 off; start and
    end are both right.

    Each next token has the same weight, not each text: the loss is the mean
    over all tokens of the batch that have a next one, and the sums are over
    these tokens too.
    """
    losses, hits = _LOSSES[self.kind](outputs, jnp.asarray(batch.label))
    valid = jnp.asarray(batch.valid)
    if self.kind == 'next_token':
      valid = valid[:, None] & _has_next(outputs, batch.label)
    # Not a product: what a padding row computes may be infinite.
    loss_sum = jnp.sum(jnp.where(valid, losses, 0))
    count = jnp.sum(valid.astype(losses.dtype))
    metrics = {
      'loss': loss_sum,
      'correct': jnp.sum((hits & valid).astype(losses.dtype)),
      'count': count,
    }
    return loss_sum / jnp.maximum(count, 1), metrics

  def predict(
    self, outputs: jax.Array, batch: Examples
  ) -> dict[str, jax.Array]:
    """Returns small arrays [B], the input of `scores.evaluate`.

    They are `class`; or `value`; or for spans `start`, `end` and `score` (the
    sum of the two logits) of the best span of at most 30 tokens within the
    context, and `null`, the score of no answer. Spans read the context's place
    from `batch`. Next tokens are judged here, as logits are large: `loss`,
    `correct` and `count` are each text's sums.

    In addition there is `finite`: whether all outputs of the example are
    finite, padding excluded. Of several NaN the first counts as the largest.
    """
    label = jnp.asarray(batch.label)
    predicted = _PREDICTIONS[self.kind](outputs, label)
    return {**predicted, 'finite': _finite(self.kind, outputs, label)}


def _class_loss(logits_BxK, label_B):
  losses_B = optax.softmax_cross_entropy_with_integer_labels(
    logits_BxK, label_B
  )
  return losses_B, jnp.argmax(logits_BxK, -1) == label_B


def _value_loss(outputs_Bx1, label_B):
  error_B = outputs_Bx1[:, 0] - label_B
  return error_B**2, jnp.abs(error_B) < 0.5


def _span_loss(logits_BxTx2, label_Bx4):
  answer_Bx2, last_Bx1 = label_Bx4[:, :2], label_Bx4[:, 3:]
  # The context is followed by one separator, and that by padding.
  token_T = jnp.arange(logits_BxTx2.shape[1])
  logits_BxTx2 = _mask(logits_BxTx2, token_T <= last_Bx1 + 1)
  losses_Bx2 = optax.softmax_cross_entropy_with_integer_labels(
    logits_BxTx2.swapaxes(1, 2), answer_Bx2
  )
  hits_Bx2 = jnp.argmax(logits_BxTx2, 1) == answer_Bx2
  return losses_Bx2.mean(-1), hits_Bx2.all(-1)


def _next_loss(logits_BxTxV, label_BxT):
  label_BxT = label_BxT[:, : logits_BxTxV.shape[1]]
  losses_BxT = optax.softmax_cross_entropy_with_integer_labels(
    logits_BxTxV, jnp.maximum(label_BxT, 0)
  )
  return losses_BxT, jnp.argmax(logits_BxTxV, -1) == label_BxT


def _has_next(logits_BxTxV, label_BxT):
  return jnp.asarray(label_BxT)[:, : logits_BxTxV.shape[1]] >= 0


def _predict_class(logits_BxK, label_B):
  del label_B
  return {'class': jnp.argmax(logits_BxK, -1)}


def _predict_value(outputs_Bx1, label_B):
  del label_B
  return {'value': outputs_Bx1[:, 0]}


def _predict_span(logits_BxTx2, label_Bx4):
  token_T = jnp.arange(logits_BxTx2.shape[1])
  first_Bx1, last_Bx1 = label_Bx4[:, 2:3], label_Bx4[:, 3:4]
  context_BxT = (token_T >= first_Bx1) & (token_T <= last_Bx1)
  logits_BxTx2 = logits_BxTx2.astype(jnp.float32)
  start_BxT, end_BxT = jnp.moveaxis(_mask(logits_BxTx2, context_BxT), -1, 0)
  # score[b, i, j] of the span of the tokens i to i + j.
  shifted = [jnp.roll(end_BxT, -j, axis=1) for j in range(_MAX_ANSWER)]
  score_BxTxJ = start_BxT[..., None] + jnp.stack(shifted, axis=-1)
  inside_TxJ = token_T[:, None] + jnp.arange(_MAX_ANSWER) < len(token_T)
  flat = jnp.where(inside_TxJ, score_BxTxJ, -jnp.inf).reshape(
    len(score_BxTxJ), -1
  )
  best_B = jnp.argmax(flat, -1)
  start_B = best_B // _MAX_ANSWER
  return {
    'start': start_B,
    'end': start_B + best_B % _MAX_ANSWER,
    'score': jnp.max(flat, -1),
    'null': logits_BxTx2[:, 0].sum(-1),
  }


def _predict_next(logits_BxTxV, label_BxT):
  losses_BxT, hits_BxT = _next_loss(logits_BxTxV, label_BxT)
  has_next_BxT = _has_next(logits_BxTxV, label_BxT)
  return {
    'loss': jnp.sum(jnp.where(has_next_BxT, losses_BxT, 0), axis=1),
    'correct': jnp.sum(hits_BxT & has_next_BxT, axis=1),
    'count': jnp.sum(has_next_BxT, axis=1),
  }


def _finite(kind, outputs, label):
  finite = jnp.isfinite(outputs)
  if kind == 'span':
    token_T = jnp.arange(outputs.shape[1])
    finite |= (token_T > label[:, 3:] + 1)[..., None]
  elif kind == 'next_token':
    finite |= ~_has_next(outputs, label)[..., None]
  return jnp.all(finite, range(1, finite.ndim))


def _mask(logits_BxTx2, kept_BxT):
  # Finite, so that two of them add up and gradients stay numbers.
  least = jnp.finfo(logits_BxTx2.dtype).min / 4
  return jnp.where(kept_BxT[..., None], logits_BxTx2, least)


_LOSSES = {
  'classification': _class_loss,
  'regression': _value_loss,
  'span': _span_loss,
  'next_token': _next_loss,
}
_PREDICTIONS = {
  'classification': _predict_class,
  'regression': _predict_value,
  'span': _predict_span,
  'next_token': _predict_next,
}

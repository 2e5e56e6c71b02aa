"""Predictions of models, and the batches in which they are computed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Self

import jax
import numpy as np

from fedjax_tune.data.corpus import Corpus
from fedjax_tune.engine.batches import bucket
from fedjax_tune.engine.client import Batch
from fedjax_tune.engine.evaluate import batches

# Arrays [n] of `Task.predict`.
Outputs = Mapping[str, np.ndarray]


class Predicted(NamedTuple):
  """A model's predictions for some examples.

  Attributes:
    rows: Positions of the examples, ascending, int [n].
    outputs: The prediction for each.
  """

  rows: np.ndarray
  outputs: Outputs

  @classmethod
  def join(cls, rows: Sequence[np.ndarray], outputs: Sequence[Outputs]) -> Self:
    """Joins batches."""
    at = np.concatenate(rows)
    by = np.argsort(at, kind='stable')
    join = lambda *pieces: np.concatenate(pieces)[by]
    return cls(at[by], jax.tree.map(join, *outputs))

  @classmethod
  def of(
    cls,
    corpus: Corpus,
    rows: np.ndarray,
    lengths: Sequence[int],
    size: int,
    say: Callable[[Batch], Mapping[str, jax.Array]],
  ) -> Self:
    """Computes predictions batch by batch.

    Args:
      corpus: The examples.
      rows: Positions of the examples to predict, int [n].
      lengths: Tokens to which texts are padded.
      size: Examples at a time.
      say: Returns the model's predictions for a batch.
    """
    order, outputs = [], []
    for index, batch in batches(corpus, rows, lengths, size):
      told = jax.device_get(say(batch))
      order.append(index)
      outputs.append({name: x[: len(index)] for name, x in told.items()})
    return cls.join(order, outputs)

  def judge(self, corpus: Corpus, rows: np.ndarray) -> float:
    """Returns the primary metric of some of the examples."""
    at = np.searchsorted(self.rows, rows)
    chosen = {name: values[at] for name, values in self.outputs.items()}
    return corpus.judge(rows, chosen)[corpus.task.primary]


def side_by_side(
  corpus: Corpus,
  rows: Sequence[np.ndarray],
  lengths: Sequence[int],
  size: int,
) -> Iterator[tuple[list[np.ndarray], Batch]]:
  """Yields batches [C, B] for several clients, each with its own rows.

  Args:
    corpus: The examples.
    rows: For each client positions, int [n], n at least 1.
    lengths: Tokens to which texts are padded; texts are read in order of
      length.
    size: Examples of a client at a time, B.

  Yields:
    The positions of each client's real examples, which come first, and the
    batch.
  """
  tokens = corpus.lengths
  if tokens is not None:
    rows = [r[np.argsort(tokens[r], kind='stable')] for r in rows]
  for begin in range(0, max(map(len, rows)), size):
    index = [r[begin : begin + size] for r in rows]
    filled = [
      np.resize(real if len(real) else all_[:1], size)
      for real, all_ in zip(index, rows, strict=True)
    ]
    at = np.stack(filled)
    length = 0 if tokens is None else bucket(lengths, tokens[at])
    inputs = jax.tree.map(
      lambda x, shape=at.shape: x.reshape(*shape, *x.shape[1:]),
      corpus.read(at.reshape(-1), length),
    )
    real = np.array([len(i) for i in index])
    valid = np.arange(size) < real[:, None]
    yield index, Batch(inputs, corpus.labels[at], valid)

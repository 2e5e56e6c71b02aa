"""The gradient of a local step: of its batch as a whole, or in parts.

Texts differ in length, and a batch is as long as its longest. Of any eight
movie reviews one is usually long, so padding a batch to its own longest text
saves next to nothing. In parts, texts of similar length run together, each part
padded to its own length. The batch remains the one that was drawn, and its
gradient is the mean over the parts.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_tune.data.tasks import LossAndSums, Sums
from fedjax_tune.typing import AnyArray, Inputs, Tree

# About how many tokens run together: shorter products are slow on a CPU, and
# what longer ones leave behind is out of its caches when it is read again.
_TOKENS = 128


class Batch(NamedTuple):
  """Examples, with any number of leading axes.

  Attributes:
    inputs: What the model reads.
    label: int32 [..., B].
    valid: bool [..., B]; False marks padding.
    row: For texts, the row in the batch as it was drawn, int32 [..., B].
  """

  inputs: Inputs
  label: AnyArray
  valid: AnyArray
  row: AnyArray | None = None

  def keys(self, key: jax.Array) -> jax.Array:
    """Returns the key of a model's dropout: one for each text, [B].

    A text's dropout then depends neither on its padding nor on the texts that
    run with it.
    """
    if self.row is None:
      return key
    return jax.vmap(jax.random.fold_in, (None, 0))(key, self.row)


class Parts(NamedTuple):
  """How a batch of B texts runs, in at most B parts of at most G texts.

  Attributes:
    bucket: Which of the run's lengths each part has, from 1; 0 means no part.
      int32 [..., B].
    rows: The texts of each part, as rows of the batch; -1 pads. int32 [..., B,
      G].
  """

  bucket: AnyArray
  rows: AnyArray


# (local, batch, key) -> loss and metrics
Objective = Callable[[Tree, Batch, jax.Array], LossAndSums]
# (local, batch, key) -> metrics, and the gradient of the loss
Gradient = Callable[[Tree, Batch, jax.Array], tuple[Sums, Tree]]


def together(length: int, batch: int) -> int:
  """Returns how many texts of a length run at once, in a batch of some size."""
  return min(batch, max(1, _TOKENS // length))


def of(objective: Objective) -> Gradient:
  """Differentiates the loss of a batch."""
  grad = jax.value_and_grad(objective, has_aux=True)

  def gradient(local: Tree, batch: Batch, key: jax.Array) -> tuple[Sums, Tree]:
    (_, metrics), grads = grad(local, batch, key)
    return metrics, grads

  return gradient


def in_parts(
  gradient: Gradient,
  lengths: Sequence[int],
  parts: Parts,
  local: Tree,
  batch: Batch,
  key: jax.Array,
) -> tuple[Sums, Tree]:
  """Returns the same as `gradient` for a batch, computed part by part.

  This is for clients that run one at a time: under a `vmap` each part would run
  in every length.

  Args:
    gradient: The gradient of a mean over what the metric `count` counts.
    lengths: Tokens to which texts are padded, ascending; there is a branch of
      the program for each.
    parts: The parts of the batch.
    local: What trains.
    batch: The texts.
    key: The step's key.

  Guarantees:
    - It equals the gradient of the whole batch except for rounding.
    - Padding rows of the batch cost nothing.
  """

  def padded_to(length):
    size = together(length, len(batch.valid))

    def run(rows):
      rows = rows[:size]
      part = jax.tree.map(lambda x: x[rows], batch)
      text = jax.tree.map(lambda x: x[:, :length], part.inputs)
      part = part._replace(inputs=text, valid=part.valid & (rows >= 0))
      metrics, grads = gradient(local, part, key)
      return metrics, jax.tree.map(lambda g: metrics['count'] * g, grads)

    # Traced once, though its shapes are asked for before it is put in place.
    return jax.jit(run, inline=True)

  branches = [padded_to(length) for length in lengths]
  shapes = jax.eval_shape(branches[0], parts.rows[0])
  nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

  def adding(run):
    return lambda total, rows: jax.tree.map(jnp.add, total, run(rows))

  choices = [lambda total, _: total, *map(adding, branches)]

  def add(total, part):
    return jax.lax.switch(part.bucket, choices, total, part.rows), None

  (metrics, grads), _ = jax.lax.scan(add, nothing, parts)
  count = jnp.maximum(metrics['count'], 1)
  return metrics, jax.tree.map(lambda g: g / count, grads)

"""Computes once the features that a classifier reads of each example."""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from fedjax_tune import selection
from fedjax_tune.data.corpus import Corpus
from fedjax_tune.engine import divided
from fedjax_tune.engine.algorithm import layer_ids
from fedjax_tune.engine.evaluate import batches
from fedjax_tune.models.foundation import Models
from fedjax_tune.selection import Selection
from fedjax_tune.typing import Inputs, Tree

_BATCH = 128

# (base, theta, examples, positions, lengths) -> float32 [positions, D]
Extract = Callable[[Tree, Tree, Corpus, np.ndarray, Sequence[int]], np.ndarray]


def build(whole: Models, held: Selection) -> Extract:
  """Builds the program that runs all of a model but its classifier.

  Args:
    whole: The model.
    held: Which part of it.
  """

  @jax.jit
  def run(base: Tree, theta: Tree, inputs: Inputs) -> jax.Array:
    local = selection.select_within(theta, whole.axes, held)
    model = whole.assemble(base, local, held)
    return model.class_tokens(inputs, layer_ids(held))[-1]

  def extract(base, theta, corpus, rows, lengths):
    found, order = [], []
    for index, batch in batches(corpus, rows, lengths, _BATCH):
      inputs = divided.beside(base, batch.inputs, split=True)
      features = run(base, divided.beside(base, theta), inputs)
      found.append(np.asarray(jax.device_get(features))[: len(index)])
      order.append(index)
    # `order` has the positions as they were read, and `rows` as they are wanted.
    place = np.argsort(np.argsort(rows, kind='stable'), kind='stable')
    return np.concatenate(found)[np.argsort(np.concatenate(order))][place]

  return extract

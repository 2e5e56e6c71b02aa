"""Accuracy of the server's models, by domain."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_tune import selection
from fedjax_tune.foundation import merge
from fedjax_tune.typing import Axes, Tree

# (base, theta) -> {evaluation: accuracy [domains]}
Evaluate = Callable[[Tree, Tree], dict[str, np.ndarray]]


def build_evaluate(
  graph: Any,
  method: Any,
  axes: Axes,
  examples: Any,
  *,
  batch_size: int = 128,
) -> Evaluate:
  """Builds the evaluation of every model that a method names.

  Args:
    graph: Structure of the model.
    method: Says which allocations to evaluate and how to predict.
    axes: Axes of theta.
    examples: Test data with `labels`, `domains`, `domain_names` and `read`.
    batch_size: Examples at a time; the last batch is padded.
  """
  num_domains = len(examples.domain_names)

  def count(name, base, theta, alloc, images, labels, domains):
    local = selection.select(theta, axes, alloc)
    model = merge(graph, base, local)
    scores_BxK = method.predict(name, model, alloc, images)
    hits_B = jnp.argmax(scores_BxK, -1) == labels
    # A padded example bears a domain that does not exist; it falls away.
    return jax.ops.segment_sum(hits_B.astype(jnp.int32), domains, num_domains)

  count = jax.jit(count, static_argnums=0)
  totals = np.bincount(examples.domains, minlength=num_domains)

  def evaluate(base, theta):
    hits: dict[str, Any] = dict.fromkeys(method.evaluations(), 0)
    allocs: Mapping[str, Any] = jax.device_put(method.evaluations())
    for batch in _batches(examples, batch_size, num_domains):
      arrays = jax.device_put(batch)
      for name, alloc in allocs.items():
        hits[name] += count(name, base, theta, alloc, *arrays)
    return {name: np.asarray(hit) / totals for name, hit in hits.items()}

  return evaluate


def _batches(examples, batch_size, padding_domain):
  size = len(examples.labels)
  for begin in range(0, size, batch_size):
    index = np.arange(begin, min(begin + batch_size, size))
    pad = (0, batch_size - len(index))
    rows = np.pad(index, pad, mode='edge')
    domains = np.pad(
      examples.domains[index], pad, constant_values=padding_domain
    )
    yield examples.read(rows), examples.labels[rows], domains.astype(np.int32)

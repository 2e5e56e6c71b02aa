"""PruneFL as RaFFM's authors describe it.

Jiang et al., "Model Pruning Enables Efficient Federated Learning on Edge
Devices", arXiv 1909.12326, scores parameters by their gradients and lets
clients compute with what is left. RaFFM's baseline
(github.com/yusx-swapp/RaFFM, experiments/comparison_baselines/prune_fl.py and
PruneFL/pruner.py) is simpler: before each round the server sets small weights
to zero, by magnitude; clients then train and send all weights, so that pruned
ones come back. This saves neither computing nor traffic.

**Their script does not train what it prunes.** `prunefl` copies the model,
prunes the original and returns the copy, with which the script continues. So
the released baseline is plain FedAvg of full models, `all_large` here. This
method is what the baseline was meant to be, with its two rules and their
values.

There are two other differences. Their script evaluates before it prunes; here
the pruned model is evaluated, which clients get next. In their script the name
of a linear map decides how it is pruned; here its role in the block does, which
is the same for a ViT.
"""

from collections.abc import Callable, Mapping
import dataclasses

import jax
import jax.numpy as jnp
from jax.tree_util import KeyPath
from jaxtyping import Array, Bool, Float

from fedjax_tune import config
from fedjax_tune.engine.algorithm import Algorithm
from fedjax_tune.methods.depth import uniform
from fedjax_tune.methods.facts import Facts
from fedjax_tune.typing import Axes, Tree

# Linear maps that Hugging Face calls 'dense', and a gated MLP's.
_DENSE = ('proj', 'fc1', 'fc2', 'gate', 'up', 'down', 'pooler')


def prune(
  keep: float, threshold: float
) -> Callable[[Tree, Axes], Callable[[Tree], Tree]]:
  """Returns the function that prunes before each round.

  The server optimizer's state is masked like the parameters, so that it forgets
  pruned ones.
  """

  def find(theta: Tree, axes: Axes) -> Callable[[Tree], Tree]:
    kept = mask(theta, axes, keep, threshold)
    return lambda tree: jax.tree.map(
      lambda x, stays: jnp.where(stays, x, 0), tree, kept
    )

  return find


def mask(theta: Tree, axes: Axes, keep: float, threshold: float) -> Tree:
  """Returns which parameters stay, bool, broadcastable to theta.

  Args:
    theta: All parameters.
    axes: Their axes.
    keep: Share of the weights of attention's output projection, the MLP and a
      pooler that stay, the largest of each layer.
    threshold: The magnitude that weights of queries, keys, values and of the
      classifier must exceed. Biases, norms and embeddings are not pruned.
  """

  def of(path: KeyPath, leaf: Array, names: tuple[str, ...]) -> Array:
    keys = [p.key for p in path]
    if keys[0] == 'embed' or keys[-1] != 'kernel':
      return jnp.ones([1] * leaf.ndim, bool)
    if keys[-2] in _DENSE:
      stack = leaf.shape[0] if names[0] == 'layer' else 1
      kept = largest(leaf.reshape(stack, -1), keep)
      return kept.reshape(leaf.shape)
    return jnp.abs(leaf) > threshold

  return jax.tree.map_with_path(of, theta, axes)


def largest(
  weights_LxN: Float[Array, 'L N'], keep: float
) -> Bool[Array, 'L N']:
  """Says which weights are among the largest share `keep` of their row."""
  magnitude_LxN = jnp.abs(weights_LxN)
  width = weights_LxN.shape[1]
  pruned = width - int(width * keep)
  if not pruned:
    return jnp.ones_like(magnitude_LxN, bool)
  limit_L = jnp.sort(magnitude_LxN, axis=1)[:, pruned - 1]
  return magnitude_LxN > limit_L[:, None]


def build(facts: Facts) -> Algorithm:
  """Builds FedAvg of full models whose linear maps are pruned before a round."""
  options = facts.experiment.prunefl
  return dataclasses.replace(
    uniform.build_all_large(facts),
    reorder=prune(options.keep, options.threshold),
  )


def check(
  experiment: config.Experiment,
  sizes: Mapping[str, int],
  budgets: tuple[int, ...],
) -> None:
  """Checks the options.

  Raises:
    ValueError: Not all parameters train.
  """
  del sizes, budgets
  if experiment.model.tune != 'full':
    raise ValueError(
      f"model.tune={experiment.model.tune!r} must be 'full' where"
      " method='prunefl': it prunes the weights that train."
    )

"""PruneFL as RaFFM's authors describe it.

Jiang et al., "Model Pruning Enables Efficient Federated Learning on Edge
Devices", arXiv 1909.12326, scores parameters by their gradients and lets
clients compute with what is left. RaFFM's baseline
(github.com/yusx-swapp/RaFFM, experiments/comparison_baselines/prune_fl.py and
PruneFL/pruner.py) is simpler: before each round the server sets small weights
to zero, by magnitude; clients then train and send all weights, so that pruned
ones come back. This saves neither computing nor traffic.

**Their script does not train what it prunes.** `prunefl` copies the model, prunes
the original and returns the copy, which the script goes on with: the released
baseline is plain FedAvg of full models, `all_large` here. This method is what
it was to be, with its two rules and their values.

Other differences: their script evaluates before it prunes, here the pruned
model is evaluated, the one that clients get next; and their names of the linear
maps decide how each is pruned, here its role in the block does, the same for a
ViT.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fedjax_tune import config
from fedjax_tune.methods import base
from fedjax_tune.typing import Axes, Tree

# Linear maps that Hugging Face calls 'dense', and a gated MLP's.
_DENSE = ('proj', 'fc1', 'fc2', 'gate', 'up', 'down', 'pooler')


@dataclasses.dataclass(frozen=True)
class PruneFL(base.Method):
  """FedAvg of full models whose linear maps are pruned before each round.

  Of attention's output projection, the MLP and a pooler, the largest weights
  of each layer stay; of queries, keys, values and the classifier, those above
  a threshold. Biases, norms and embeddings are not pruned.

  Attributes:
    keep: Share of the weights of each map that stay.
    threshold: Of the other maps, the magnitude that a weight must exceed.
  """

  keep: float
  threshold: float

  def reorder(self, theta: Tree, axes: Axes) -> Callable[[Tree], Tree]:
    """Returns how to prune; the optimizer forgets what it knew of the pruned.

    The optimizer's state is masked like the parameters.
    """
    mask = self.mask(theta, axes)
    return lambda tree: jax.tree.map(
      lambda x, kept: jnp.where(kept, x, 0), tree, mask
    )

  def mask(self, theta: Tree, axes: Axes) -> Tree:
    """Returns which parameters stay, bool, broadcastable to theta."""

    def of(path: Any, leaf: Array, names: tuple[str, ...]) -> Array:
      keys = [p.key for p in path]
      if keys[0] == 'embed' or keys[-1] != 'kernel':
        return jnp.ones([1] * leaf.ndim, bool)
      if keys[-2] in _DENSE:
        stack = leaf.shape[0] if names[0] == 'layer' else 1
        kept = largest(leaf.reshape(stack, -1), self.keep)
        return kept.reshape(leaf.shape)
      return jnp.abs(leaf) > self.threshold

    return jax.tree.map_with_path(of, theta, axes)


def largest(
  weights_LxN: Float[Array, 'L N'], keep: float
) -> Bool[Array, 'L N']:
  """Says which weights exceed all but the share `keep` of their row."""
  magnitude_LxN = jnp.abs(weights_LxN)
  width = weights_LxN.shape[1]
  pruned = width - int(width * keep)
  if not pruned:
    return jnp.ones_like(magnitude_LxN, bool)
  limit_L = jnp.sort(magnitude_LxN, axis=1)[:, pruned - 1]
  return magnitude_LxN > limit_L[:, None]


def build(
  experiment: config.Experiment,
  sizes: Mapping[str, int],
  budgets: tuple[int, ...],
) -> PruneFL:
  """Builds PruneFL from an experiment; every client holds all blocks.

  Raises:
    ValueError: Not all parameters train.
  """
  if experiment.model.tune != 'full':
    raise ValueError(
      f"model.tune={experiment.model.tune!r} must be 'full' where"
      " method='prunefl': it prunes the weights that train."
    )
  depth = sizes['layer']
  return PruneFL(
    depth,
    (depth,) * len(budgets),
    experiment.seed,
    keep=experiment.prunefl.keep,
    threshold=experiment.prunefl.threshold,
  )

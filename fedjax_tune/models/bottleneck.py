"""FedAdapter: a bottleneck of several branches behind a sublayer.

It follows "HeteroTune: Efficient Federated Learning for Large Heterogeneous
Models" (arXiv 2411.16796), which calls the branches and their gates a dense
mixture of adapters. Its code is not public: the paper says that there are
branches, that all of them are active, and that they carry what different models
share; the formula is a reconstruction. This is not the FedAdapter of arXiv
2205.10162 (AdaFL), which grows depth and width of ordinary adapters over time.

With free D and U a core means nothing to another model: (D, W1) and (D R^-1, R
W1) are the same function for any invertible R. As our addition, D and U may
therefore be aligned across models (`alignment.py`). This is close to Co-LoRA
(FedMosaic, arXiv 2506.11024), where matrices of size r x r are shared between
fixed aligned projections.
"""

import dataclasses
import math

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float

from fedjax_tune.models import linear, primitives
from fedjax_tune.models.sizes import Axes, BlockSizes

# The parameters that have the same shape in every model.
CORES = ('core_in', 'core_out')
# With the biases that they have between projections that are not free.
SHARED = (*CORES, 'core_in_bias', 'core_out_bias')
# The branch of which nothing is shared, whatever its parameters are called.
PRIVATE = 'private'


@dataclasses.dataclass(frozen=True)
class Bottleneck:
  """Sizes and choices of a FedAdapter.

  Attributes:
    rank: Width r of the bottleneck.
    branches: How many branches are mixed.
    core: 'mlp' (f(h) = gelu(h W1) W2) or 'linear' (f(h) = h W1).
    gating: 'static' (learned weights for each site), 'token' (for each token),
      or 'uniform'.
    placement: 'sequential' (reads the sublayer's output) or 'parallel' (reads
      the sublayer's input).
    scale: Factor s of the adapter's output.
    projections: 'free' (D and U train), 'aligned' or 'random' (set once, then
      frozen), or 'aligned_start' and 'alternating' (set once, then trained;
      the method decides when).
    private: Whether the model has an additional branch that no other model has.
  """

  rank: int
  branches: int = 1
  core: str = 'mlp'
  gating: str = 'static'
  placement: str = 'sequential'
  scale: float = 1.0
  projections: str = 'free'
  private: bool = False


class FedAdapter(nnx.Module):
  """y = out + s * (sum_b g_b(h) f_b(h)) U with h = x D.

  D and U belong to one model, the branches f_b to all models. U starts at zero,
  so that y = out at first.

  Unless D and U are free, h = (x - mean) D, the cores have biases, and their
  last map starts at zero instead. `mean`, D and U are zeros until they are set.

  Attributes:
    down: [L, D, R]; up: [L, R, D].
    mean: [L, D], only if D and U are not free.
    core_in, core_out: [L, branch, R, R]; a linear core has only the first.
    core_in_bias, core_out_bias: [L, branch, R], only if D and U are not free;
      a linear core has only the first.
    gate: Logits [L, branch]; with token gating, their map [L, R, branch].
    private: A FedAdapter of one branch between free projections, if the model
      has one. Private and shared branches are mixed by a learned share, a half
      at first. So each model keeps its full capacity; Co-LoRA also has a gate
      between the shared part and a client's own LoRA.
    mix: [L], the logit of the private branch's share.
  """

  def __init__(
    self, config: BlockSizes, sizes: Bottleneck, rngs: nnx.Rngs
  ) -> None:
    self.sizes = sizes
    axes = Axes.of(config)
    rank, branch = ('bottleneck', sizes.rank), ('branch', sizes.branches)

    def drawn(*names: linear.Axis) -> nnx.Param:
      shape = tuple(size for _, size in names)
      spread = 1 / math.sqrt(shape[-2])
      return linear.variable(
        nnx.Param, spread * jax.random.normal(rngs.params(), shape), names
      )

    def zeros(
      *names: linear.Axis, kind: type[linear.V] = nnx.Param
    ) -> linear.V:
      shape = tuple(size for _, size in names)
      return linear.variable(kind, jnp.zeros(shape), names)

    free, mlp = sizes.projections == 'free', sizes.core == 'mlp'
    frozen = sizes.projections in ('aligned', 'random')
    kind = linear.Frozen if frozen else nnx.Param
    # What the cores start with: with U = 0 anything, else nothing at the end.
    last = drawn if free else zeros
    narrow, square = (
      (axes.layer, branch, rank),
      (axes.layer, branch, rank, rank),
    )
    down = (axes.layer, axes.embed, rank)
    self.down = drawn(*down) if free else zeros(*down, kind=kind)
    self.core_in = drawn(*square) if mlp else last(*square)
    if mlp:
      self.core_out = last(*square)
    if not free:
      self.mean = zeros(axes.layer, axes.embed, kind=linear.Frozen)
      self.core_in_bias = zeros(*narrow)
      if mlp:
        self.core_out_bias = zeros(*narrow)
    if sizes.gating == 'static':
      self.gate = zeros(axes.layer, branch)
    elif sizes.gating == 'token':
      self.gate = zeros(axes.layer, rank, branch)
    self.up = zeros(axes.layer, rank, axes.embed, kind=kind)
    if sizes.private:
      alone = dataclasses.replace(
        sizes, branches=1, projections='free', private=False
      )
      self.private = FedAdapter(config, alone, rngs)
      self.mix = zeros(axes.layer)

  def __call__(
    self, read: Float[Array, '... D'], out: Float[Array, '... D']
  ) -> Float[Array, '... D']:
    """Adds to a sublayer's output.

    Args:
      read: The sublayer's input.
      out: The sublayer's output.
    """
    added = self._added(read, out)
    if self.sizes.private:
      share = jax.nn.sigmoid(self.mix[...])
      own = self.private._added(read, out)
      added = (1 - share) * added + share * own
    return out + self.sizes.scale * added

  def _added(
    self, read: Float[Array, '... D'], out: Float[Array, '... D']
  ) -> Float[Array, '... D']:
    """Returns the output of all branches but the private one."""
    x = read if self.sizes.placement == 'parallel' else out
    if self.sizes.projections != 'free':
      x = x - self.mean[...]
    h = x @ self.down[...]
    mixed = jnp.einsum('...br,...b->...r', self._branches(h), self._gates(h))
    return mixed @ self.up[...]

  def _branches(self, h: Float[Array, '... R']) -> Float[Array, '... b R']:
    """Returns f_b(h) of every branch."""
    z = jnp.einsum('...r,brs->...bs', h, self.core_in[...])
    biased = self.sizes.projections != 'free'
    if biased:
      z = z + self.core_in_bias[...]
    if self.sizes.core == 'linear':
      return z
    z = jnp.einsum('...br,brs->...bs', primitives.gelu(z), self.core_out[...])
    return z + self.core_out_bias[...] if biased else z

  def _gates(self, h: Float[Array, '... R']) -> Float[Array, '... b']:
    """Returns the branches' weights, which add up to 1."""
    held = self.core_in.shape[0]
    if self.sizes.gating == 'uniform':
      return jnp.full((*h.shape[:-1], held), 1 / held, h.dtype)
    if self.sizes.gating == 'static':
      logits = jnp.broadcast_to(self.gate[...], (*h.shape[:-1], held))
    else:
      logits = h @ self.gate[...]
    return jax.nn.softmax(logits, -1)

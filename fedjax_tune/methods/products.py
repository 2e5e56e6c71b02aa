"""Exact means of what clients' adapters multiply to: FlexLoRA, FLoRA, FedEx.

The mean of products is not the product of means. These methods aggregate
s_k A_k B_k, s_k the client's scale, and differ in where they put the mean.
Here clients sum dense products on the device, which equals all that stacking
and factoring do, without ragged arrays; bytes are counted for what the methods
send, the factors.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_tune import config, selection
from fedjax_tune.engine.cost import Traffic, num_bytes
from fedjax_tune.engine.group import Row, Signature
from fedjax_tune.methods import adapters, base, ranks
from fedjax_tune.selection import GroupSum
from fedjax_tune.typing import Allocation, Axes, Tree


@dataclasses.dataclass(frozen=True)
class _Exact(ranks.FedIT):
  """Clients send their adapters, and what they multiply to."""

  @classmethod
  def build(
    cls,
    experiment: config.Experiment,
    sizes: Mapping[str, int],
    budgets: tuple[int, ...],
    **options: Any,
  ) -> Self:
    """Builds the method from an experiment.

    Raises:
      ValueError: As the other ranks' methods, or the server does not take the
        mean as it is.
    """
    server = experiment.server
    if (server.optimizer, server.lr) != ('fedavg', 1.0):
      raise ValueError(
        f'server.optimizer={server.optimizer!r} and server.lr={server.lr}'
        f" must be 'fedavg' and 1.0 with method={experiment.method!r}: the"
        ' mean is exact as it is, not as a step.'
      )
    return super().build(experiment, sizes, budgets, **options)

  def sums(self, theta: Tree, axes: Axes) -> tuple[Tree, Axes]:
    """Adds the kernels that the adapters multiply to."""
    names = adapters.product_axes(axes, self.adapted)
    shapes = {'theta': theta, 'kernels': self.shapes(theta)}
    return shapes, {'theta': axes, 'kernels': names}

  def shapes(self, theta: Tree) -> Tree:
    """Returns the shapes of the adapted kernels."""
    multiply = lambda t: adapters.products(t, self.adapted, 1.0)
    return jax.eval_shape(multiply, theta)

  def upload(
    self, sig: Signature, start: Tree, delta: Tree, alloc: Allocation
  ) -> Tree:
    """Adds the products of the trained adapters."""
    theta = super().upload(sig, start, delta, alloc)
    scale = self.scale(sig['rank'])
    kernels = adapters.products(theta, self.adapted, scale)
    return {'theta': theta, 'kernels': kernels}

  def merge(
    self, theta: Tree, totals: Mapping[Any, GroupSum], memory: Tree
  ) -> tuple[base.Update, Tree]:
    """Averages adapters as FedIT, kernels exactly, and asks `place`."""
    num, den = base.everyone(totals)
    parts = {name: GroupSum(num[name], den[name]) for name in num}
    update, _ = super().merge(theta, {'all': parts['theta']}, memory)
    kernels = selection.coverage_mean(parts['kernels'])
    return self.place(theta, update, kernels, memory)

  def place(
    self, theta: Tree, update: base.Update, kernels: Tree, memory: Tree
  ) -> tuple[base.Update, Tree]:
    """Decides where the mean of the products goes."""
    raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class FlexLora(_Exact):
  """FlexLoRA: the SVD of the mean product gives the next A and B.

  Bai, Chen, Qian, Yao, Li, "Federated Fine-tuning of Large Language Models
  under Heterogeneous Tasks and Client Resources", NeurIPS 2024, arXiv
  2402.11505; the authors' code is the branch FlexLoRA of
  github.com/alibaba/FederatedScope (fed_utils/model_aggregation.py and
  adaptive_peft.py). The server keeps the largest rank, a client gets the best
  approximation of its own: the first ranks of it, over the client's scale. B
  gets the singular values. Theirs is `rank.scaling` 'client' (alpha 16) and
  `server.weighting` 'examples'.
  """

  def begin(
    self,
    sig: Signature,
    held: Tree,
    alloc: Allocation,
    memory: Tree,
    key: jax.Array,
  ) -> Tree:
    """Divides B by the client's scale instead of the server's."""
    del alloc, memory, key
    ratio = self.scale(self.server_rank) / self.scale(sig['rank'])
    divide = lambda a, b, _: (a, ratio * b)
    return adapters.change_pairs(divide, held, self.adapted)

  def evaluations(self) -> dict[str, Row]:
    """Leaves out clients whose B is not the server's."""
    rows = super().evaluations()
    return rows if self.scaling == 'common' else {'full': rows['full']}

  def place(
    self, theta: Tree, update: base.Update, kernels: Tree, memory: Tree
  ) -> tuple[base.Update, Tree]:
    """Factors the mean."""
    pairs, scale = {}, self.scale(self.server_rank)
    for path, stack in self.adapted.items():
      part = kernels
      for name in (*path, 'kernel'):
        part = part[name]
      a, b = adapters.pair(theta, path)
      pairs[path] = adapters.factor(part / scale, a, b, stack)
    new = adapters.replace(theta, pairs)
    put = lambda _, after, before: after - before
    delta = adapters.change(put, update.delta, new, theta)
    covered = adapters.change(jnp.ones_like, update.covered)
    return base.Update(delta, covered), memory


@dataclasses.dataclass(frozen=True)
class _Merged(_Exact):
  """Adds to frozen kernels; the sum over all rounds is the memory."""

  def init_memory(self, theta: Tree) -> Tree:
    """Returns what was added at first: nothing."""
    zeros = lambda x: jnp.zeros(x.shape, x.dtype)
    return jax.tree.map(zeros, self.shapes(theta))

  def ground(self, memory: Tree) -> Tree:
    """Returns what was added in all rounds."""
    return memory


@dataclasses.dataclass(frozen=True)
class Flora(_Merged):
  """FLoRA: the mean product goes into the frozen kernels; adapters restart.

  Wang et al., "FLoRA: Federated Fine-Tuning Large Language Models with
  Heterogeneous Low-Rank Adaptations", NeurIPS 2024, arXiv 2409.05976; the
  authors' code is github.com/ATP-1010/FederatedLLM (main.py,
  fed_utils/model_aggregation.py, `stacking`). They stack [p_1 A_1; p_2 A_2;
  ...] and [B_1 B_2 ...], whose product is the mean of products, and wrap the
  model in it. Every client begins each round with an A of its own draw and
  B = 0; with ranks r_k they set lora_alpha = 2 r_k, one scale for all, which
  is `rank.scaling` 'common'; p_k is by examples, `server.weighting` 'examples'.

  Everyone gets the stack of all. A client that sat out rounds would need
  theirs, too; only the round's own stack is counted.
  """

  def init(self, theta: Tree, axes: Axes) -> tuple[Tree, Axes]:
    """Keeps the server's adapters at a product of zero."""
    rest = lambda a, b, _: (a, jnp.zeros_like(b))
    return adapters.change_pairs(rest, theta, self.adapted), axes

  def begin(
    self,
    sig: Signature,
    held: Tree,
    alloc: Allocation,
    memory: Tree,
    key: jax.Array,
  ) -> Tree:
    """Draws A as torch and peft do, and sets B to zero."""
    del sig, alloc, memory
    pairs = {}
    for i, (path, stack) in enumerate(self.adapted.items()):
      a, b = adapters.pair(held, path)
      bound = adapters.fan_in(a, stack) ** -0.5
      draw = jax.random.uniform(
        jax.random.fold_in(key, i), a.shape, a.dtype, -bound, bound
      )
      pairs[path] = (draw, jnp.zeros_like(b))
    return adapters.replace(held, pairs)

  def place(
    self, theta: Tree, update: base.Update, kernels: Tree, memory: Tree
  ) -> tuple[base.Update, Tree]:
    """Adds the mean to the kernels; the server's adapters rest."""
    del theta
    delta = adapters.change(jnp.zeros_like, update.delta)
    covered = adapters.change(jnp.zeros_like, update.covered)
    return base.Update(delta, covered), jax.tree.map(jnp.add, memory, kernels)

  def evaluations(self) -> dict[str, Row]:
    """Evaluates one model: all of it is in the kernels, for everyone."""
    return {'full': super().evaluations()['full']}

  def traffic(
    self,
    sig: Signature,
    cohort: Sequence[Signature],
    held: Callable[[Signature], Tree],
  ) -> Traffic:
    """Counts the stack of the whole cohort on the way down."""
    sizes = [num_bytes(adapters.leaves(held(s))) for s in (sig, *cohort)]
    up = num_bytes(held(sig))
    return Traffic(up, up - sizes[0] + sum(sizes[1:]))


@dataclasses.dataclass(frozen=True)
class FedexLora(_Merged):
  """FedEx-LoRA: FedIT, and its error goes into the frozen kernels.

  Singhal, Ponkshe, Vepakomma, "FedEx-LoRA: Exact Aggregation for Federated and
  Efficient Fine-Tuning of Large Language Models", ACL 2025, arXiv 2410.09432;
  its abstract and summaries were read, not its code:

    W <- W + mean(A_k B_k) - mean(A_k) mean(B_k),

  after which the server's model is exactly the mean of the clients'. The
  paper knows one rank, and weights clients alike; other ranks are filled up
  with zeros. A client of a smaller rank holds the exact kernel, but the first
  ranks only of the mean adapters, and with `rank.scaling` 'client' multiplies
  them by its own scale.
  """

  def place(
    self, theta: Tree, update: base.Update, kernels: Tree, memory: Tree
  ) -> tuple[base.Update, Tree]:
    """Adds to the kernels what the mean adapters lack."""
    put = lambda moves, change, old: old + jnp.where(moves, change, 0)
    new = jax.tree.map(put, update.covered, update.delta, theta)
    scale = self.scale(self.server_rank)
    have = adapters.products(new, self.adapted, scale)
    add = lambda old, want, got: old + want - got
    return update, jax.tree.map(add, memory, kernels, have)

  def traffic(
    self,
    sig: Signature,
    cohort: Sequence[Signature],
    held: Callable[[Signature], Tree],
  ) -> Traffic:
    """Counts the residual's factors on the way down.

    The residual has at most the rank of all clients' B together; where that
    is cheaper, it travels as it is.
    """
    local = held(sig)
    together = sum(s['rank'] for s in cohort)
    residual = 0
    for path, stack in self.adapted.items():
      a, b = adapters.pair(local, path)
      count = int(np.prod(a.shape[:stack]))
      ins, outs = adapters.fan_in(a, stack), int(np.prod(b.shape[stack + 1 :]))
      params = min(together * (ins + outs), ins * outs)
      residual += count * params * b.dtype.itemsize
    up = num_bytes(local)
    return Traffic(up, up + residual)

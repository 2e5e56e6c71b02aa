"""Exact means of the products of adapters: FlexLoRA, FLoRA, FedEx-LoRA.

The mean of products is not the product of means. These methods aggregate s_k
A_k B_k, with s_k the client's scale, and differ in where they put the mean.
Here clients sum dense products on the device, which equals stacking and
factoring without ragged arrays. Bytes are counted for what the methods send,
the factors.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_tune import config, selection
from fedjax_tune.data.tasks import Task
from fedjax_tune.engine.algorithm import (
  Aggregator,
  Algorithm,
  Client,
  Context,
  Evaluation,
  GroupSums,
  Sent,
  Traffic,
  Update,
  everyone,
  remember_nothing,
)
from fedjax_tune.engine.slabs import Signature
from fedjax_tune.methods import refusals
from fedjax_tune.methods.facts import Facts
from fedjax_tune.methods.rank import adapters, ranks
from fedjax_tune.models.foundation import Foundation, num_bytes
from fedjax_tune.selection import GroupSum
from fedjax_tune.typing import Axes, Tree

# (theta, FedIT's update, mean product of each map, memory) -> update, memory
Place = Callable[[Tree, Update, Tree, Tree], tuple[Update, Tree]]


def client(task: Task, lora: ranks.Ranks) -> Client:
  """Returns the client that sends its adapters and their products."""

  def finish(
    start: Tree, delta: Tree, steps: jax.Array, context: Context
  ) -> Sent:
    sent = ranks.send_adapters(start, delta, steps, context)
    scale = lora.scale(context.sig['rank'])
    kernels = adapters.products(sent.tree, lora.adapted, scale)
    return sent._replace(tree={'theta': sent.tree, 'kernels': kernels})

  return dataclasses.replace(ranks.padding_client(task), finish=finish)


def exact_mean(
  lora: ranks.Ranks,
  place: Place,
  init: Callable[[Tree], Tree] = remember_nothing,
  frozen_delta: Callable[[Tree], Tree] | None = None,
) -> Aggregator:
  """Averages adapters as FedIT does, and kernels exactly.

  Args:
    lora: The adapters.
    place: Decides where the mean of the products goes.
    init: See `Aggregator`.
    frozen_delta: See `Aggregator`.
  """

  def spec(theta: Tree, axes: Axes) -> tuple[Tree, Axes]:
    """Adds the kernels that the adapters multiply to."""
    names = adapters.product_axes(axes, lora.adapted)
    shapes = {'theta': theta, 'kernels': kernel_shapes(lora, theta)}
    return shapes, {'theta': axes, 'kernels': names}

  def merge(theta: Tree, sums: GroupSums, memory: Tree) -> tuple[Update, Tree]:
    num, den = everyone(sums)
    parts = {name: GroupSum(num[name], den[name]) for name in num}
    update, _ = lora.padded_mean(theta, {'all': parts['theta']}, memory)
    kernels = selection.coverage_mean(parts['kernels'])
    return place(theta, update, kernels, memory)

  found = Aggregator(merge, init, spec)
  if frozen_delta is None:
    return found
  return dataclasses.replace(found, frozen_delta=frozen_delta)


def kernel_shapes(lora: ranks.Ranks, theta: Tree) -> Tree:
  """Returns the shapes of the adapted kernels."""
  multiply = lambda t: adapters.products(t, lora.adapted, 1.0)
  return jax.eval_shape(multiply, theta)


def _merged_mean(lora: ranks.Ranks, place: Place) -> Aggregator:
  """Returns the mean that adds to frozen kernels and remembers the total."""

  def init(theta: Tree) -> Tree:
    zeros = lambda x: jnp.zeros(x.shape, x.dtype)
    return jax.tree.map(zeros, kernel_shapes(lora, theta))

  return exact_mean(lora, place, init, lambda memory: memory)


def check(
  experiment: config.Experiment,
  sizes: Mapping[str, int],
  budgets: tuple[int, ...],
) -> None:
  """Checks the options.

  Raises:
    ValueError: See `ranks.check`; or the server changes the mean.
  """
  refusals.server_steps(
    experiment,
    refusals.method(experiment),
    'the mean is exact as it is, not as a step',
  )
  ranks.check(experiment, sizes, budgets)


def check_flora(
  experiment: config.Experiment,
  sizes: Mapping[str, int],
  budgets: tuple[int, ...],
) -> None:
  """Checks the options.

  Raises:
    ValueError: See `check`; or adapters would start from values that FLoRA
      discards.
  """
  if given := experiment.lora.init:
    raise ValueError(
      f"lora.init={given!r} must be '' where method='flora': its adapters start"
      ' anew in each round.'
    )
  check(experiment, sizes, budgets)


def build_flexlora(facts: Facts) -> Algorithm:
  """Builds FlexLoRA: the SVD of the mean product gives the next A and B.

  Bai, Chen, Qian, Yao, Li, "Federated Fine-tuning of Large Language Models
  under Heterogeneous Tasks and Client Resources", NeurIPS 2024, arXiv
  2402.11505; the authors' code is the branch FlexLoRA of
  github.com/alibaba/FederatedScope (fed_utils/model_aggregation.py and
  adaptive_peft.py). The server keeps the largest rank. A client gets the best
  approximation of its own rank: the first ranks, divided by the client's scale.
  B gets the singular values. The authors use `rank.scaling` 'client' (alpha 16)
  and `server.weighting` 'examples'.
  """
  found, task = facts.foundation(), facts.task
  lora = ranks.Ranks.of(facts, found)

  def init(held: Tree, context: Context, key: jax.Array) -> Tree:
    """Divides B by the client's scale instead of the server's."""
    del key
    ratio = lora.scale(lora.server_rank) / lora.scale(context.sig['rank'])
    divide = lambda a, b, _: (a, ratio * b)
    return adapters.change_pairs(divide, held, lora.adapted)

  def place(
    theta: Tree, update: Update, kernels: Tree, memory: Tree
  ) -> tuple[Update, Tree]:
    """Factors the mean."""
    pairs, scale = {}, lora.scale(lora.server_rank)
    for path, stack in lora.adapted.items():
      part = kernels
      for name in (*path, 'kernel'):
        part = part[name]
      a, b = adapters.pair(theta, path)
      pairs[path] = adapters.factor(part / scale, a, b, stack)
    new = adapters.replace(theta, pairs)
    put = lambda _, after, before: after - before
    delta = adapters.change(put, update.delta, new, theta)
    covered = adapters.change(jnp.ones_like, update.covered)
    return Update(delta, covered), memory

  evaluation = lora.evaluation(task)
  if lora.scaling != 'common':
    # The B of smaller clients is not the server's.
    evaluation = _only_full(evaluation)
  return Algorithm(
    model=found,
    rule=lora.rule,
    client=dataclasses.replace(client(task, lora), init=init),
    aggregator=exact_mean(lora, place),
    evaluation=evaluation,
  )


def _only_full(evaluation: Evaluation) -> Evaluation:
  full = {'full': evaluation.models['full']}
  return dataclasses.replace(evaluation, models=full)


def build_flora(facts: Facts) -> Algorithm:
  """Builds FLoRA: the mean product goes into frozen kernels; adapters restart.

  Wang et al., "FLoRA: Federated Fine-Tuning Large Language Models with
  Heterogeneous Low-Rank Adaptations", NeurIPS 2024, arXiv 2409.05976; the
  authors' code is github.com/ATP-1010/FederatedLLM (main.py,
  fed_utils/model_aggregation.py, `stacking`). They stack [p_1 A_1; p_2 A_2;
  ...] and [B_1 B_2 ...], whose product is the mean of products, and wrap the
  model in it. Every client begins each round with an A of its own draw and B =
  0. With ranks r_k they set lora_alpha = 2 r_k, one scale for all, which is
  `rank.scaling` 'common'; p_k is by examples, `server.weighting` 'examples'.

  One model is evaluated: everything is in the kernels, for every client. Every
  client gets the stack of all clients. A client that missed rounds would also
  need their stacks, but only the round's own stack is counted.
  """
  found, task = facts.foundation(), facts.task
  lora = ranks.Ranks.of(facts, found)

  def init(held: Tree, context: Context, key: jax.Array) -> Tree:
    """Draws A as torch and peft do, and sets B to zero."""
    del context
    pairs = {}
    for i, (path, stack) in enumerate(lora.adapted.items()):
      a, b = adapters.pair(held, path)
      bound = adapters.fan_in(a, stack) ** -0.5
      draw = jax.random.uniform(
        jax.random.fold_in(key, i), a.shape, a.dtype, -bound, bound
      )
      pairs[path] = (draw, jnp.zeros_like(b))
    return adapters.replace(held, pairs)

  def place(
    theta: Tree, update: Update, kernels: Tree, memory: Tree
  ) -> tuple[Update, Tree]:
    """Adds the mean to the kernels; the server's adapters rest."""
    del theta
    delta = adapters.change(jnp.zeros_like, update.delta)
    covered = adapters.change(jnp.zeros_like, update.covered)
    return Update(delta, covered), jax.tree.map(jnp.add, memory, kernels)

  def traffic(
    sig: Signature,
    cohort: Sequence[Signature],
    held: Callable[[Signature], Tree],
  ) -> Traffic:
    """Counts the stack of the whole cohort on the way down."""
    sizes = [num_bytes(adapters.leaves(held(s))) for s in (sig, *cohort)]
    up = num_bytes(held(sig))
    return Traffic(up, up - sizes[0] + sum(sizes[1:]))

  return Algorithm(
    model=_at_rest(found, lora),
    rule=lora.rule,
    client=dataclasses.replace(client(task, lora), init=init),
    aggregator=_merged_mean(lora, place),
    evaluation=_only_full(lora.evaluation(task)),
    traffic=traffic,
  )


def _at_rest(found: Foundation, lora: ranks.Ranks) -> Foundation:
  """Returns a model whose adapters have a product of zero."""
  rest = lambda a, b, _: (a, jnp.zeros_like(b))
  theta = adapters.change_pairs(rest, found.theta, lora.adapted)
  return dataclasses.replace(found, theta=theta)


def build_fedex_lora(facts: Facts) -> Algorithm:
  """Builds FedEx-LoRA: FedIT, with its error added to the frozen kernels.

  Singhal, Ponkshe, Vepakomma, "FedEx-LoRA: Exact Aggregation for Federated and
  Efficient Fine-Tuning of Large Language Models", ACL 2025, arXiv 2410.09432;
  its abstract and summaries were read, not its code:

    W <- W + mean(A_k B_k) - mean(A_k) mean(B_k),

  after which the server's model is exactly the mean of the clients'. The paper
  has one rank, and weights clients equally; smaller ranks are padded with zeros
  here. A client of a smaller rank holds the exact kernel, but only the first
  ranks of the mean adapters, and with `rank.scaling` 'client' multiplies them
  by its own scale.
  """
  found, task = facts.foundation(), facts.task
  lora = ranks.Ranks.of(facts, found)

  def place(
    theta: Tree, update: Update, kernels: Tree, memory: Tree
  ) -> tuple[Update, Tree]:
    """Adds to the kernels what the mean adapters lack."""
    put = lambda moves, change, old: old + jnp.where(moves, change, 0)
    new = jax.tree.map(put, update.covered, update.delta, theta)
    scale = lora.scale(lora.server_rank)
    have = adapters.products(new, lora.adapted, scale)
    add = lambda old, want, got: old + want - got
    return update, jax.tree.map(add, memory, kernels, have)

  def traffic(
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
    for path, stack in lora.adapted.items():
      a, b = adapters.pair(local, path)
      count = int(np.prod(a.shape[:stack]))
      ins, outs = adapters.fan_in(a, stack), int(np.prod(b.shape[stack + 1 :]))
      params = min(together * (ins + outs), ins * outs)
      residual += count * params * b.dtype.itemsize
    up = num_bytes(local)
    return Traffic(up, up + residual)

  return Algorithm(
    model=found,
    rule=lora.rule,
    client=client(task, lora),
    aggregator=_merged_mean(lora, place),
    evaluation=lora.evaluation(task),
    traffic=traffic,
  )

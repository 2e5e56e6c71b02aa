"""FjORD: ordered dropout of width, with self-distillation.

Horvath, Laskaridis, Almeida, Leontiadis, Venieris, Lane, "FjORD: Fair and
Accurate Federated Learning under Heterogeneous Targets with Ordered Dropout",
NeurIPS 2021, arXiv 2102.13451.
"""

from collections.abc import Collection
import dataclasses

import jax
import jax.numpy as jnp
import optax

from fedjax_tune.data.tasks import Task
from fedjax_tune.engine.algorithm import (
  Algorithm,
  Client,
  Context,
  LossAndSums,
  outputs,
)
from fedjax_tune.engine.client import Batch
from fedjax_tune.methods.facts import Facts
from fedjax_tune.methods.width import rates
from fedjax_tune.models import foundation
from fedjax_tune.models.foundation import Model
from fedjax_tune.typing import AnyArray

# Apart from the keys of dropout, which are those of full models.
_DRAW = int.from_bytes(b'draw')


def client(
  task: Task,
  widths: rates.Prefix,
  trained: Collection[float],
  *,
  distill: bool,
) -> Client:
  """Returns the client that trains another width in each step.

  It draws one of the rates up to its own, uniformly, and trains the model of
  that width (section 3.1). With `distill` it also trains its widest model, and
  the narrow one learns from the outputs of the widest (section 3.3, with equal
  weights and temperature 1; no gradient flows into the teacher).

  Args:
    task: What is learned.
    widths: What clients hold of each width.
    trained: Rates that a step may train, in addition to the client's own.
    distill: Whether narrow models learn from the widest.
  """

  def loss(
    model: Model, batch: Batch, context: Context, key: jax.Array
  ) -> LossAndSums:
    held, widest = context.held, widths.rate_of(context.sig)
    up_to_own = sorted({widest, *(r for r in trained if r < widest)})
    draw, keys = jax.random.fold_in(key, _DRAW), batch.keys(key)

    def train(rate):
      narrow = foundation.narrow(model, widths.amounts(rate))
      scores = outputs(narrow, batch.inputs, held, keys)
      if not distill or rate == up_to_own[-1]:
        return task.loss(scores, batch)
      own = outputs(model, batch.inputs, held, keys)
      total, metrics = task.loss(own, batch)
      return total + _divergence(scores, own, batch.valid), metrics

    branches = [lambda rate=rate: train(rate) for rate in up_to_own]
    drawn = jax.random.randint(draw, (), 0, len(up_to_own))
    return jax.lax.switch(drawn, branches)

  return Client(loss, by_example=True)


def _divergence(
  student_BxK: jax.Array, teacher_BxK: jax.Array, valid_B: AnyArray
) -> jax.Array:
  """Mean KL divergence of the student from the fixed teacher."""
  fixed = jax.lax.stop_gradient(jax.nn.log_softmax(teacher_BxK))
  kl_B = optax.losses.kl_divergence_with_log_targets(
    jax.nn.log_softmax(student_BxK), fixed
  )
  total = jnp.sum(jnp.where(valid_B, kl_B, 0))
  return total / jnp.maximum(jnp.sum(valid_B), 1)


def build(facts: Facts) -> Algorithm:
  """Builds FjORD: each local step trains a random width up to the client's own.

  A client of rate r holds the first r of every axis. The rates are those of the
  configuration. As in the paper the server takes the mean over holders, by the
  client's rate and not by the rates that its steps drew.

  Raises:
    ValueError: `width.distill` without classes.
  """
  distill, task = facts.experiment.width.distill, facts.task
  if distill and task.kind != 'classification':
    raise ValueError(
      f'width.distill=True needs classes; the task is a {task.kind}.'
    )
  widths = rates.Prefix(*rates.of(facts))
  # Not those that devices are fitted with: where all have the whole model, it
  # still learns to be cut.
  trained = facts.experiment.width.rates
  return dataclasses.replace(
    rates.fedavg(facts, widths),
    client=client(task, widths, trained, distill=distill),
  )

"""FjORD: ordered dropout of width, with self-distillation.

Horvath, Laskaridis, Almeida, Leontiadis, Venieris, Lane, "FjORD: Fair and
Accurate Federated Learning under Heterogeneous Targets with Ordered Dropout",
NeurIPS 2021, arXiv 2102.13451.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp
import optax

from fedjax_tune import config, foundation
from fedjax_tune.engine.client import Batch
from fedjax_tune.engine.group import Signature
from fedjax_tune.methods import width
from fedjax_tune.tasks import Task
from fedjax_tune.typing import Allocation

# Apart from the keys of dropout, which are those of full models.
_DRAW = int.from_bytes(b'draw')


@dataclasses.dataclass(frozen=True)
class Fjord(width.Width):
  """Each local step trains a random width up to the client's own.

  A client of rate r holds the first r of every axis. In each step it draws one
  of the rates up to r, uniformly, and trains the model of that width (section
  3.1). With `distill` it trains its widest model too, and the narrow one
  learns from that one's outputs (section 3.3, with equal weights and
  temperature 1; the teacher is not moved by the student's error).

  The rates are those of the configuration. The server's mean over holders is
  the method's, by the client's rate, not by what a step drew.
  """

  distill: bool = False

  def meet(self, task: Task, present: Any) -> Self:
    """Refuses to distill where there are no classes.

    Raises:
      ValueError: `width.distill` without classes.
    """
    if self.distill and task.kind != 'classification':
      raise ValueError(
        f'width.distill=True needs classes; the task is a {task.kind}.'
      )
    return super().meet(task, present)

  def loss(
    self,
    sig: Signature,
    model: Any,
    alloc: Allocation,
    batch: Batch,
    key: jax.Array,
    rnd: jax.Array,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of the width that this step draws."""
    del rnd
    widest = self.rate_of(sig)
    rates = sorted({r for r in self.rates if r <= widest})
    draw = jax.random.fold_in(key, _DRAW)

    def train(rate):
      narrow = foundation.narrow(model, self.amounts(rate))
      scores = self.outputs(narrow, batch.inputs, alloc, key)
      if not self.distill or rate == rates[-1]:
        return self.task.loss(scores, batch)
      own = self.outputs(model, batch.inputs, alloc, key)
      loss, metrics = self.task.loss(own, batch)
      return loss + _divergence(scores, own, batch.valid), metrics

    branches = [lambda rate=rate: train(rate) for rate in rates]
    return jax.lax.switch(jax.random.randint(draw, (), 0, len(rates)), branches)


def _divergence(
  student_BxK: jax.Array, teacher_BxK: jax.Array, valid_B: jax.Array
) -> jax.Array:
  """Mean KL divergence of the student from the fixed teacher."""
  fixed = jax.lax.stop_gradient(jax.nn.log_softmax(teacher_BxK))
  kl_B = optax.losses.kl_divergence_with_log_targets(
    jax.nn.log_softmax(student_BxK), fixed
  )
  total = jnp.sum(jnp.where(valid_B, kl_B, 0))
  return total / jnp.maximum(jnp.sum(valid_B), 1)


def build(
  experiment: config.Experiment,
  sizes: Mapping[str, int],
  budgets: tuple[int, ...],
) -> Fjord:
  """Builds FjORD from an experiment."""
  common = width.common(experiment, sizes, budgets)
  return Fjord(*common, distill=experiment.width.distill)

"""HeteroFL: nested prefixes of every width.

Diao, Ding, Tarokh, "HeteroFL: Computation and Communication Efficient
Federated Learning for Heterogeneous Clients", ICLR 2021, arXiv 2010.01264;
the authors' code is the repository of that title of github.com/diaoenmao
(fed.py, models/transformer.py, modules/modules.py `Scaler`).
"""

from collections.abc import Collection, Mapping, Sequence
import dataclasses
from typing import Any, Self

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from fedjax_tune import config
from fedjax_tune.engine.client import Batch
from fedjax_tune.engine.group import Row, Signature
from fedjax_tune.methods import width
from fedjax_tune.tasks import Task
from fedjax_tune.typing import Allocation


@dataclasses.dataclass(frozen=True)
class HeteroFL(width.Width):
  """HeteroFL: scaled activations, masked cross entropy, a head by class.

  Attention is sliced within each head, not across heads. The mean over holders
  is uniform (`server.weighting='uniform'`). Rates belong to clients, the
  authors' mode 'fix'; their 'dynamic' draws them anew each round.

  Attributes:
    scaler: While training, the output of every embedding and linear map but
      the head's is divided by the rate; written here as a division of its
      parameters, frozen ones and adapters too, the same numbers. A word table
      that predicts tokens, too, divides the logits.
    masked_loss: While training, logits of classes that a client lacks are 0.
    head_by_class: The head's weights and bias of a class are averaged over
      the clients that have the class (`combine`, `label_split`); where nobody
      of a round has it, they stay. Otherwise over all clients, so that those
      who never saw a class slow it down.
    present: Which classes each client has, bool [clients, K].
  """

  scaler: bool = True
  masked_loss: bool = True
  head_by_class: bool = True
  present: tuple[tuple[bool, ...], ...] = ()

  def meet(self, task: Task, present: np.ndarray | None) -> Self:
    """Notes which classes each client has."""
    known = () if present is None else tuple(map(tuple, present.tolist()))
    return dataclasses.replace(super().meet(task, present), present=known)

  def allocate(self, rnd: int, cohort: Sequence[int]) -> list[Row]:
    """Adds which classes the client has; the key names no axis."""
    rows = super().allocate(rnd, cohort)
    if not self.present or not (self.masked_loss or self.head_by_class):
      return rows
    return [
      {**row, 'present': np.asarray(self.present[k], np.int32)}
      for row, k in zip(rows, cohort, strict=True)
    ]

  def notes(self) -> Collection[str]:
    """Names the classes that a client has."""
    return ('present',)

  def counts(self, alloc: Allocation) -> Allocation:
    """Leaves classes that a client lacks out of what it sends."""
    if not self.head_by_class or 'present' not in alloc:
      return alloc
    present = jnp.asarray(alloc['present'])
    classes = jax.lax.broadcasted_iota(
      jnp.int32, present.shape, present.ndim - 1
    )
    # An index outside the axis puts nothing back.
    outside = present.shape[-1]
    return {**alloc, 'class': jnp.where(present > 0, classes, outside)}

  def evaluations(self) -> dict[str, Row]:
    """Evaluates the model of every rate, which is what its clients keep."""
    rows: dict[str, Row] = {'full': {'layer': self.depth}}
    for rate in sorted({r for r in self.rates if r < 1}, reverse=True):
      rows[f'rate{rate:g}'] = {'layer': self.depth, **self.amounts(rate)}
    return rows

  def loss(
    self,
    sig: Signature,
    model: Any,
    alloc: Allocation,
    batch: Batch,
    key: jax.Array,
    rnd: jax.Array,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Cross entropy of the scaled model; absent classes have logit 0."""
    del rnd
    rate = self.rate_of(sig)
    if self.scaler and rate != 1:
      model = _scaled(model, rate)
    scores = self.outputs(model, batch.inputs, alloc, key)
    if self.masked_loss and 'present' in alloc:
      scores = jnp.where(jnp.asarray(alloc['present']) > 0, scores, 0)
    return self.task.loss(scores, batch)


# What the outputs of linear maps and embeddings are linear in.
_SCALED = frozenset(
  {'kernel', 'bias', 'lora_b', 'prefix', 'position', 'word', 'type'}
  # Trained tokens stand beside those outputs.
  | {'prompt', 'key', 'value'}
)


def _scaled(model: Any, rate: float) -> Any:
  """Returns the model with HeteroFL's Scaler behind its linear maps."""
  graph, state = nnx.split(model)

  def divide(path, variable):
    *modules, name = path
    is_scaled = modules[0] != 'head' and 'norm' not in modules[-1]
    if not is_scaled or name not in _SCALED:
      return variable
    return variable.replace(variable[...] / rate)

  flat = [(path, divide(path, v)) for path, v in nnx.to_flat_state(state)]
  return nnx.merge(graph, nnx.from_flat_state(flat))


def build(
  experiment: config.Experiment,
  sizes: Mapping[str, int],
  budgets: tuple[int, ...],
) -> HeteroFL:
  """Builds HeteroFL from an experiment."""
  common = width.common(experiment, sizes, budgets)
  return HeteroFL(*common, **options(experiment))


def options(experiment: config.Experiment) -> dict[str, Any]:
  """Returns the options that FedRolex shares."""
  section = experiment.width
  return {
    'scaler': section.scaler,
    'masked_loss': section.masked_loss,
    'head_by_class': section.head_by_class,
  }

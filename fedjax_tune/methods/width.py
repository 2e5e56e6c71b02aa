"""Clients of different width: HeteroFL, FedRolex, Federated Dropout.

Each holds a share of every hidden axis, its rate; what it holds of them is
the beginning, a rolling window, or random. The server averages each
coordinate over those who held it.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any, Self

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from fedjax_tune import config
from fedjax_tune.engine.client import Batch
from fedjax_tune.engine.group import Row, Signature
from fedjax_tune.methods import base
from fedjax_tune.randomness import host_rng
from fedjax_tune.tasks import Task
from fedjax_tune.typing import Allocation


@dataclasses.dataclass(frozen=True)
class Width(base.Method):
  """A prefix of every axis, as large as the client's rate.

  Attributes:
    sizes: For each narrowed axis its full size.
    rates: Shares; clients take them in turn, by their number.
  """

  sizes: Mapping[str, int]
  rates: tuple[float, ...]

  def rate(self, client: int) -> float:
    """Returns the share of every axis that a client holds."""
    return self.rates[client % len(self.rates)]

  def amounts(self, rate: float) -> dict[str, int]:
    """Returns how much of each narrowed axis is held at a rate."""
    return {axis: math.ceil(rate * n) for axis, n in self.sizes.items()}

  def rate_of(self, sig: Signature) -> float:
    """Returns the rate of a signature's clients."""
    held = {axis: sig.axes[axis] for axis in self.sizes}
    return next(r for r in self.rates if self.amounts(r) == held)

  def allocate(self, rnd: int, cohort: Sequence[int]) -> list[Row]:
    """Returns what each client of the cohort holds."""
    rows = []
    for k in cohort:
      amounts = self.amounts(self.rate(k))
      whole = {a: n for a, n in amounts.items() if n == self.sizes[a]}
      held = self.choose(rnd, k, amounts)
      rows.append({'layer': self.depth, **held, **whole})
    return rows

  def choose(self, rnd: int, client: int, amounts: Mapping[str, int]) -> Row:
    """Returns which part of each narrowed axis a client holds.

    Args:
      rnd: The round.
      client: Its number.
      amounts: How much it holds of each; what it holds whole needs no choice.
    """
    del rnd, client
    return amounts


@dataclasses.dataclass(frozen=True)
class HeteroFL(Width):
  """HeteroFL: nested prefixes, scaled activations, masked cross entropy.

  Diao, Ding, Tarokh, "HeteroFL: Computation and Communication Efficient
  Federated Learning for Heterogeneous Clients", ICLR 2021, arXiv 2010.01264;
  the authors' code is the repository of that title of github.com/diaoenmao
  (fed.py, models/transformer.py, modules/modules.py `Scaler`).

  Attention is sliced within each head, not across heads. The mean over holders
  is uniform (`server.weighting='uniform'`).

  Attributes:
    scaler: While training, the output of every embedding and linear map but
      the head's is divided by the rate; written here as a division of its
      parameters, frozen ones and adapters too, the same numbers. A word table
      that predicts tokens, too, divides the logits.
    masked_loss: While training, logits of classes that a client lacks are 0.
    present: Which classes each client has, bool [clients, K].
  """

  scaler: bool = True
  masked_loss: bool = True
  present: tuple[tuple[bool, ...], ...] = ()

  def meet(self, task: Task, present: np.ndarray | None) -> Self:
    """Notes which classes each client has, for the masked loss."""
    known = () if present is None else tuple(map(tuple, present.tolist()))
    return dataclasses.replace(super().meet(task, present), present=known)

  def allocate(self, rnd: int, cohort: Sequence[int]) -> list[Row]:
    """Adds which classes the client has; the key names no axis."""
    rows = super().allocate(rnd, cohort)
    if not self.masked_loss or not self.present:
      return rows
    return [
      {**row, 'present': np.asarray(self.present[k], np.int32)}
      for row, k in zip(rows, cohort, strict=True)
    ]

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
    if 'present' in alloc:
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


@dataclasses.dataclass(frozen=True)
class FedRolex(Width):
  """FedRolex: a window that rolls by one in each round.

  Alam, Liu, Yan, Zhang, "FedRolex: Model-Heterogeneous Federated Learning with
  Rolling Sub-Model Extraction", NeurIPS 2022, arXiv 2212.01548; the authors'
  code is github.com/AIoT-MLSys-Lab/FedRolex. All clients of a round share the
  roll, so the narrower of two windows lies within the wider.
  """

  def choose(self, rnd: int, client: int, amounts: Mapping[str, int]) -> Row:
    """Returns the windows, from position `rnd` on, around the end."""
    del client
    return {
      axis: (np.arange(amount) + rnd) % self.sizes[axis]
      for axis, amount in amounts.items()
    }


@dataclasses.dataclass(frozen=True)
class FederatedDropout(Width):
  """Federated Dropout: random units, new for each client and round.

  Caldas, Konecny, McMahan, Talwalkar, "Expanding the Reach of Federated
  Learning by Reducing Client Resource Requirements", arXiv 1812.07210. One
  draw an axis serves all layers and heads: units of different layers have
  nothing to do with each other, so the draw is as random as one a layer.
  """

  def choose(self, rnd: int, client: int, amounts: Mapping[str, int]) -> Row:
    """Returns distinct random indices, sorted."""
    rng = host_rng('allocation', self.seed, rnd, client)
    return {
      axis: np.sort(rng.permutation(size)[: amounts[axis]])
      for axis, size in sorted(self.sizes.items())
    }


def build_heterofl(
  experiment: config.Experiment,
  sizes: Mapping[str, int],
  budgets: tuple[int, ...],
) -> HeteroFL:
  """Builds HeteroFL from an experiment."""
  options = experiment.width
  return HeteroFL(
    *common(experiment, sizes, budgets),
    scaler=options.scaler,
    masked_loss=options.masked_loss,
  )


def build_fedrolex(
  experiment: config.Experiment,
  sizes: Mapping[str, int],
  budgets: tuple[int, ...],
) -> FedRolex:
  """Builds FedRolex from an experiment."""
  return FedRolex(*common(experiment, sizes, budgets))


def build_federated_dropout(
  experiment: config.Experiment,
  sizes: Mapping[str, int],
  budgets: tuple[int, ...],
) -> FederatedDropout:
  """Builds Federated Dropout from an experiment."""
  return FederatedDropout(*common(experiment, sizes, budgets))


def common(
  experiment: config.Experiment,
  sizes: Mapping[str, int],
  budgets: tuple[int, ...],
) -> tuple[int, tuple[int, ...], int, dict[str, int], tuple[float, ...]]:
  """Returns what every method of this kind is made of."""
  options = experiment.width
  known = [
    a for a in ('embed', 'heads', 'qk_dim', 'v_dim', 'ffn') if a in sizes
  ]
  if unknown := set(options.axes) - set(known):
    raise ValueError(
      f'width.axes={options.axes}: {sorted(unknown)[0]!r} must be one of'
      f' {", ".join(known)}, the axes along which this model is cut.'
    )
  narrowed = {axis: sizes[axis] for axis in options.axes}
  depth = sizes['layer']
  return depth, budgets, experiment.seed, narrowed, options.rates

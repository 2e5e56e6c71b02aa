"""HeteroFL: nested prefixes of every width.

Diao, Ding, Tarokh, "HeteroFL: Computation and Communication Efficient
Federated Learning for Heterogeneous Clients", ICLR 2021, arXiv 2010.01264;
the authors' code is the repository of that title of github.com/diaoenmao
(fed.py, models/transformer.py, modules/modules.py `Scaler`).
"""

from collections.abc import Mapping, Sequence
import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from fedjax_tune.engine.algorithm import (
  Aggregator,
  Algorithm,
  Client,
  Context,
  Evaluation,
  LossAndSums,
  outputs,
)
from fedjax_tune.engine.client import Batch
from fedjax_tune.engine.slabs import Info
from fedjax_tune.methods.facts import Facts
from fedjax_tune.methods.width import rates
from fedjax_tune.models.foundation import Model
from fedjax_tune.selection import Selection
from fedjax_tune.typing import Allocation

# What a client is told: which classes it has, int32 [K].
_PRESENT = 'present'


def client(facts: Facts, widths: rates.Prefix) -> Client:
  """Returns the client that trains a scaled model on its own classes.

  With `width.scaler` the output of every embedding and linear map but the
  head's is divided by the rate in training. Here its parameters are divided
  instead, frozen ones and adapters too, which gives the same numbers. A word
  table that also predicts tokens divides the logits. With `width.masked_loss`
  logits of classes that a client lacks are 0 in training.

  Args:
    facts: What is known about the run.
    widths: What clients hold of each width.
  """
  options, task = facts.experiment.width, facts.task
  scaler, masked_loss = options.scaler, options.masked_loss

  def loss(
    model: Model, batch: Batch, context: Context, key: jax.Array
  ) -> LossAndSums:
    rate = widths.rate_of(context.sig)
    if scaler and rate != 1:
      model = _scaled(model, rate)
    scores = outputs(model, batch.inputs, context.held, batch.keys(key))
    if masked_loss and _PRESENT in context.info:
      scores = jnp.where(context.info[_PRESENT] > 0, scores, 0)
    return task.loss(scores, batch)

  def info(rnd: int, cohort: Sequence[int]) -> list[Info]:
    del rnd
    assert facts.present is not None
    return [{_PRESENT: facts.present(k).astype(np.int32)} for k in cohort]

  told = facts.present is not None and (masked_loss or options.head_by_class)
  return Client(loss, info=info if told else None, by_example=True)


def aggregator(facts: Facts) -> Aggregator:
  """Returns the mean over holders, with the head averaged class by class.

  With `width.head_by_class` the head's weights and bias of a class are averaged
  over the clients that have the class (`combine`, `label_split`); if no client
  of a round has it, they stay. Otherwise they are averaged over all clients, so
  that clients that never saw a class slow it down.
  """
  if not facts.experiment.width.head_by_class:
    return Aggregator()

  def where(held: Selection, info: Mapping[str, jax.Array]) -> Allocation:
    if _PRESENT not in info:
      return held
    present = jnp.asarray(info[_PRESENT])
    classes = jax.lax.broadcasted_iota(
      jnp.int32, present.shape, present.ndim - 1
    )
    # An index outside the axis puts nothing back.
    outside = present.shape[-1]
    return {**held, 'class': jnp.where(present > 0, classes, outside)}

  return Aggregator(where=where)


# What the outputs of linear maps and embeddings are linear in.
_SCALED = frozenset(
  {'kernel', 'bias', 'lora_b', 'prefix', 'position', 'word', 'type'}
  # Trained tokens stand beside those outputs.
  | {'prompt', 'key', 'value'}
)
# What classifies, or predicts tokens.
_HEADS = ('head', 'lm_head')


def _scaled(model: Model, rate: float) -> Model:
  """Returns the model with HeteroFL's Scaler after its linear maps."""
  graph, state = nnx.split(model)

  def divide(path, variable):
    *modules, name = path
    is_scaled = modules[0] not in _HEADS and 'norm' not in modules[-1]
    if not is_scaled or name not in _SCALED:
      return variable
    return variable.replace(variable[...] / rate)

  flat = [(path, divide(path, v)) for path, v in nnx.to_flat_state(state)]
  return nnx.merge(graph, nnx.from_flat_state(flat))


def smaller(widths: rates.Prefix) -> dict[str, dict[str, int]]:
  """Returns how much the model of each rate below 1 has of each width."""
  below = sorted({r for r in widths.rates if r < 1}, reverse=True)
  return {f'rate{rate:g}': widths.amounts(rate) for rate in below}


def build(facts: Facts) -> Algorithm:
  """Builds HeteroFL: scaled activations, masked cross entropy, head by class.

  Attention is sliced within each head, not across heads. The mean over holders
  is uniform (`server.weighting='uniform'`). Rates belong to clients, which is
  the authors' mode 'fix'; their mode 'dynamic' draws them in each round.

  The model of every rate is evaluated, as that is what its clients keep.
  """
  widths, whole = rates.Prefix(*rates.of(facts)), {'layer': facts.depth}
  models = {'full': Selection.of(whole)}
  for name, held in smaller(widths).items():
    models[name] = Selection.of({**whole, **held})
  return dataclasses.replace(
    rates.fedavg(facts, widths),
    client=client(facts, widths),
    aggregator=aggregator(facts),
    evaluation=Evaluation(facts.task, models),
  )

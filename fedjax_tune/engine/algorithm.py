"""A method has four parts: a rule, a client, an aggregator and an evaluation.

Each part is a small dataclass of functions and can be replaced separately, like
optax's transformations. Whatever a part leaves out is FedAvg's:

    Rule        on the host, in NumPy: which client holds what in a round
    Client      on the device: how one client trains, and what it sends
    Aggregator  on the device: what is summed, and what the server makes of it
    Evaluation  which models there are to evaluate, and how they predict
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
import dataclasses
import functools
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_tune import selection
from fedjax_tune.data.tasks import LossAndSums, Sums, Task
from fedjax_tune.engine.client import Batch
from fedjax_tune.engine.gradient import of
from fedjax_tune.engine.slabs import Info, Signature
from fedjax_tune.models.foundation import Model, Models, num_bytes
from fedjax_tune.selection import GroupSum, Selection
from fedjax_tune.typing import Allocation, AnyArray, Axes, Inputs, Tree


class Rule(Protocol):
  """Decides what each client holds in a round.

  What a client holds depends only on the seed, the round and the client, and on
  the cohort if clients have roles in it.
  """

  @property
  def axes(self) -> frozenset[str]:
    """The axes that it decides."""
    ...

  def draw(self, rnd: int, cohort: Sequence[int]) -> list[Selection]:
    """Returns what each client of a cohort holds; each amount is a program."""
    ...


class Context(NamedTuple):
  """What a client's program knows in addition to the parameters it trains.

  Attributes:
    sig: How much the client holds (static).
    held: What it holds.
    info: What else it is told, arrays by name.
    memory: What the server remembers.
    state: What the client remembers; () if the method keeps nothing.
    lr: The learning rate of the round, float32.
    rnd: The round, int32.
  """

  sig: Signature
  held: Selection
  info: Mapping[str, jax.Array]
  memory: Tree
  state: Tree
  lr: jax.Array
  rnd: jax.Array


class Sent(NamedTuple):
  """The result of a client's round.

  Attributes:
    tree: What is summed; it has the shapes of what the client trained, unless
      the aggregator's `spec` says otherwise.
    factor: Factor of the client's weight in the sums, a scalar.
    state: What the client remembers from now on.
  """

  tree: Tree
  factor: jax.Array
  state: Tree


class Update(NamedTuple):
  """What the server optimizer gets.

  Attributes:
    delta: Mean change, shaped like theta.
    covered: bool, broadcastable to theta; where False neither theta nor the
      server optimizer's state changes.
  """

  delta: Tree
  covered: Tree


# What was sent, summed, by the name of each group; its type is left open, since
# Python takes no mapping with keys of one type for one with any.
GroupSums = Mapping[Any, GroupSum]


def keep(held: Tree, context: Context, key: jax.Array) -> Tree:
  """Starts a client from what it holds."""
  del context, key
  return held


def see_all(local: Tree, context: Context) -> Tree:
  """Shows a model all of a client's parameters unchanged."""
  del context
  return local


def send_change(
  start: Tree, delta: Tree, steps: jax.Array, context: Context
) -> Sent:
  """Sends the change of what a client trained, at its full weight."""
  del start, steps
  return Sent(delta, jnp.ones(()), context.state)


def outputs(
  model: Model,
  inputs: Inputs,
  held: Allocation,
  key: jax.Array | None = None,
) -> jax.Array:
  """Returns what the task reads: [B, K], or [B, T, 2] for spans."""
  return model(inputs, layer_ids(held), key=key)


def layer_ids(held: Allocation) -> AnyArray:
  """Returns the ids of the held blocks, int [n]."""
  layers = held['layer']
  return np.arange(layers) if isinstance(layers, int) else layers


@dataclasses.dataclass(frozen=True)
class Client:
  """How one client trains, as pure functions of its own arrays.

  Attributes:
    loss: (model, batch, context, key) -> the mean loss, and metrics as sums: at
      least `loss`, `correct`, `count`. `key` is that of the step.
    init: (held, context, key) -> what training starts from, given the client's
      part of theta. `key` is used for nothing else.
    params: (local, context) -> the parameters that the model sees. Gradients
      flow through this function: a parameter whose gradient it stops does not
      train.
    transform: context -> a transformation of gradients before the client's
      optimizer, with a fresh state; None does nothing.
    around: The client's optimizer, `transform` included -> the optimizer to use
      instead; None leaves it as it is.
    finish: (start, delta, steps, context) -> what the client sends, given what
      it started from, how that changed, and the number of steps, float32.
    info: (round, cohort) -> what each client of the cohort is told, arrays by
      name, of the same shapes for all; on the host.
    state: client -> what it remembers before it first takes part, arrays of the
      same shapes for all; on the host. None remembers nothing.
    by_example: Whether the loss is exactly a mean over what its metric `count`
      counts. Then a batch may run in parts, each with the key of the step;
      models are given `batch.keys(key)`. See `gradient.in_parts`.
  """

  loss: Callable[[Model, Batch, Context, jax.Array], LossAndSums]
  init: Callable[[Tree, Context, jax.Array], Tree] = keep
  params: Callable[[Tree, Context], Tree] = see_all
  transform: Callable[[Context], optax.GradientTransformation] | None = None
  around: (
    Callable[[optax.GradientTransformation], optax.GradientTransformation]
    | None
  ) = None
  finish: Callable[[Tree, Tree, jax.Array, Context], Sent] = send_change
  info: Callable[[int, Sequence[int]], list[Info]] | None = None
  state: Callable[[int], Tree] | None = None
  by_example: bool = False

  def tell(self, rnd: int, cohort: Sequence[int]) -> list[Info]:
    """Returns what each client of a cohort is told."""
    if self.info is None:
      return [{} for _ in cohort]
    return self.info(rnd, cohort)


def fedavg_client(task: Task) -> Client:
  """Returns the client that minimises a task's loss."""

  def loss(
    model: Model, batch: Batch, context: Context, key: jax.Array
  ) -> LossAndSums:
    keys = batch.keys(key)
    return task.loss(outputs(model, batch.inputs, context.held, keys), batch)

  return Client(loss, by_example=True)


def remember_nothing(theta: Tree) -> Tree:
  """Returns the memory of a server that has none."""
  del theta
  return ()


def as_trained(theta: Tree, axes: Axes) -> tuple[Tree, Axes]:
  """Gives sums the shapes of what is trained."""
  return theta, axes


def where_held(held: Selection, info: Mapping[str, jax.Array]) -> Allocation:
  """Sums what a client sends where it holds it."""
  del info
  return held


def all_together(sig: Signature) -> Hashable:
  """Puts all clients into one sum."""
  del sig
  return 'all'


def average_held(
  theta: Tree, sums: GroupSums, memory: Tree
) -> tuple[Update, Tree]:
  """Averages each coordinate over the clients that hold it."""
  del theta
  return covered_mean(everyone(sums)), memory


def add_nothing(memory: Tree) -> Tree:
  """Leaves the frozen parameters as they are."""
  del memory
  return {}


@dataclasses.dataclass(frozen=True)
class Aggregator:
  """What is summed over clients, and what the server makes of the sums.

  Attributes:
    merge: (theta, sums by group, memory) -> the update, and the next memory.
    init: theta -> what the server remembers between rounds in addition to
      theta.
    spec: (theta, axes) -> the shapes of what is summed, and its axes.
    where: (held, info) -> the indices along each axis at which a client's
      update is summed, for one client or, with a leading axis, several. A part
      whose index is outside the axis enters neither the sums nor the weights
      that they are divided by.
    group: signature -> the name of the sum to which its clients are added.
    frozen_delta: memory -> what the server has added to frozen parameters in
      all rounds, as nested dicts with the changed leaves.
  """

  merge: Callable[[Tree, GroupSums, Tree], tuple[Update, Tree]] = average_held
  init: Callable[[Tree], Tree] = remember_nothing
  spec: Callable[[Tree, Axes], tuple[Tree, Axes]] = as_trained
  where: Callable[[Selection, Mapping[str, jax.Array]], Allocation] = where_held
  group: Callable[[Signature], Hashable] = all_together
  frozen_delta: Callable[[Tree], Tree] = add_nothing


def everyone(sums: GroupSums) -> GroupSum:
  """Returns the sum over all groups."""
  return jax.tree.map(lambda *xs: sum(xs), *sums.values())


def covered_mean(total: GroupSum) -> Update:
  """Averages each coordinate over its holders; coordinates without any stay."""
  covered = jax.tree.map(lambda d: d != 0, total.den)
  return Update(selection.coverage_mean(total), covered)


def predict_outputs(
  name: str, model: Model, held: Selection, inputs: Inputs
) -> jax.Array:
  """Predicts with the model's own outputs."""
  del name
  return outputs(model, inputs, held)


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Which models a run is judged by.

  Attributes:
    task: What the models' outputs mean.
    models: What each model holds, by its name; the first is *the* model.
    predict: (name, model, held, inputs) -> outputs.
    headline: How much each model counts in the headline number; {} takes only
      the first.
    subnetworks: Parts of *the* model that were trained to work alone.
    personal: (name of its model, theta, what a client remembers) -> the
      parameters of the client's own model. The headline number is then the
      score of these models on their clients' own data, and `models` are not
      evaluated. None means that there are no such models.
  """

  task: Task
  models: Mapping[str, Selection]
  predict: Callable[[str, Model, Selection, Inputs], jax.Array] = (
    predict_outputs
  )
  headline: Mapping[str, float] = dataclasses.field(default_factory=dict)
  subnetworks: tuple[Selection, ...] = ()
  personal: Callable[[str, Tree, Tree], Tree] | None = None

  @property
  def weights(self) -> Mapping[str, float]:
    """How much each model counts in the headline number."""
    return self.headline or {next(iter(self.models)): 1.0}


class Traffic(NamedTuple):
  """Bytes that one client moves in one round."""

  uplink: int
  downlink: int


# (signature, those of the cohort, shapes of what a signature holds) -> bytes.
CountTraffic = Callable[
  [Signature, Sequence[Signature], Callable[[Signature], Tree]], Traffic
]


def both_ways(count: Callable[[Tree], int]) -> CountTraffic:
  """Counts bytes of what a client holds of theta, once down and once up."""

  def traffic(
    sig: Signature,
    cohort: Sequence[Signature],
    held: Callable[[Signature], Tree],
  ) -> Traffic:
    del cohort
    size = count(held(sig))
    return Traffic(size, size)

  return traffic


theta_both_ways = both_ways(num_bytes)


def one_model(client: int) -> str:
  """Gives every client the same model."""
  del client
  return ''


class Alone(NamedTuple):
  """A plain model that a run ends with, without anything that the method added.

  Attributes:
    theta: Trained parameters in the model's own structure, without the method's
      additional classifiers, blocks or factors.
    held: How much the model has of each axis.
    tier: The model that it was made from, if a method has several.
    about: Sentences that describe it to a user, if its name is not enough.
  """

  theta: Tree
  held: Allocation
  tier: str = ''
  about: str = ''


# (theta, what each client remembers by its id) -> the models, by name.
Ending = Callable[[Tree, Mapping[int, Tree]], Mapping[str, Alone]]
# (signature, base, context, local, batch, key) -> metrics, and the gradient
StepGradient = Callable[
  [Signature, Tree, Context, Tree, Batch, jax.Array], tuple[Sums, Tree]
]


@dataclasses.dataclass(frozen=True)
class Algorithm:
  """A federated method on a model.

  Attributes:
    model: The model at the start, with the parameters that the method trains.
    rule: What clients hold.
    client: How they train.
    aggregator: How the server averages.
    evaluation: How the result is evaluated.
    reorder: (theta, axes) -> a function that reorders trees shaped like theta
      before the next round, or None.
    eligible: round -> which clients may take part, bool [clients]; None lets
      everyone.
    tier: client -> the name of its model; '' if all clients have the same.
    traffic: Counts what a client sends and receives in a round.
    ending: Splits the trained parameters into plain models; None if they are
      already one model of the usual structure, *the* model.
  """

  model: Models
  rule: Rule
  client: Client
  aggregator: Aggregator
  evaluation: Evaluation
  reorder: Callable[[Tree, Axes], Callable[[Tree], Tree] | None] | None = None
  eligible: Callable[[int], np.ndarray] | None = None
  tier: Callable[[int], str] = one_model
  traffic: CountTraffic = theta_both_ways
  ending: Ending | None = None

  @functools.cached_property
  def gradient(self) -> StepGradient:
    """The gradient of a local step.

    It takes a signature (static), the frozen parameters, a context without the
    signature, what trains, a batch and the step's key. It is traced once for
    each signature and batch shape; the slab's program and the count of its cost
    share the trace.
    """
    return jax.jit(self.differentiate, static_argnums=0, inline=True)

  def differentiate(
    self,
    sig: Signature,
    base: Tree,
    context: Context,
    local: Tree,
    batch: Batch,
    key: jax.Array,
  ) -> tuple[Sums, Tree]:
    """The function that `gradient` traces, also for frozen `divided.Stack`s."""
    context = context._replace(sig=sig)

    def objective(local, batch, key):
      seen = self.client.params(local, context)
      assembled = self.model.assemble(base, seen, context.held)
      return self.client.loss(assembled, batch, context, key)

    return of(objective)(local, batch, key)

  def able(self, rnd: int, clients: int) -> np.ndarray:
    """Says which clients may take part, bool [clients]."""
    if self.eligible is None:
      return np.ones(clients, bool)
    return self.eligible(rnd)

  def alone(
    self, theta: Tree, clients: Mapping[int, Tree]
  ) -> Mapping[str, Alone]:
    """Returns the models that a run ends with, by name; '' if there is one.

    Args:
      theta: Trained parameters.
      clients: What each client remembers, of those that ever took part.
    """
    if self.ending is not None:
      return self.ending(theta, clients)
    held = next(iter(self.evaluation.models.values()))
    return {'': Alone(theta, held)}

  @property
  def task(self) -> Task:
    """What is learned."""
    return self.evaluation.task

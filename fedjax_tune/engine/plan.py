"""Host planning: cohort, allocation and batches of a round, in NumPy.

A plan is a function of (seed, round, client id) alone, so it can be made
while the device computes the round before.
"""

import collections
from collections.abc import Callable, Iterator, Mapping
import concurrent.futures
import dataclasses
import functools
from typing import NamedTuple, Protocol

import jax
import numpy as np

from fedjax_tune import config
from fedjax_tune.data.shares import Shares
from fedjax_tune.engine import batches as batching
from fedjax_tune.engine.algorithm import Algorithm, layer_ids
from fedjax_tune.engine.client import Batch
from fedjax_tune.engine.cohort import sample_cohort
from fedjax_tune.engine.randomness import host_rng
from fedjax_tune.engine.slabs import InfoShapes, Signature, Slab, cut_slabs
from fedjax_tune.engine.step import Own
from fedjax_tune.selection import Selection
from fedjax_tune.typing import Inputs


class Examples(Protocol):
  """What the planner needs of a data set."""

  @property
  def labels(self) -> np.ndarray:
    """Labels [N] or, of text spans, [N, 2]."""
    ...

  def view(self, reader: int, /) -> 'Examples':
    """Returns the examples as a tokenizer has them; 0 is the first."""
    ...

  @property
  def lengths(self) -> np.ndarray | None:
    """Tokens of each text int [N]; None of images."""
    ...

  def read(self, indices: np.ndarray, length: int, /) -> Inputs:
    """Returns what the model reads, leaves [n, ...]."""
    ...


class Member(NamedTuple):
  """A client of a round's cohort.

  Attributes:
    client: Its id.
    sig: How much it holds.
  """

  client: int
  sig: Signature


class Work(NamedTuple):
  """A slab with its arrays on the device.

  Attributes:
    slab: The slab.
    own: Its arrays, but for what clients remember, which the round before may
      still change.
  """

  slab: Slab
  own: Own


class RoundPlan(NamedTuple):
  """One round, ready to run.

  Attributes:
    rnd: The round.
    members: The cohort.
    works: The slabs.
    client_steps: Local steps of all clients together.
    owners: For each layer how many clients hold it, int [L].
  """

  rnd: int
  members: list[Member]
  works: list[Work]
  client_steps: int
  owners: np.ndarray


@dataclasses.dataclass(frozen=True)
class Planner:
  """Plans rounds.

  Attributes:
    experiment: The configuration.
    algorithm: Decides who takes part, who holds what, and is told what.
    examples: Training data.
    indices: For each client the positions of its examples.
    domains: Domain of each client, int [clients].
    readers: For each tier which view of the examples it reads.
  """

  experiment: config.Experiment
  algorithm: Algorithm
  examples: Examples
  indices: Shares
  domains: np.ndarray
  readers: Mapping[str, int] = dataclasses.field(default_factory=dict)

  @functools.cached_property
  def steps(self) -> np.ndarray:
    """Local steps of each client, int [clients]."""
    return batching.local_steps(self.experiment.local, self.indices.sizes)

  @functools.cached_property
  def rounds(self) -> list[list[Member]]:
    """The members of every round."""
    return [self._cohort(rnd)[0] for rnd in range(self.experiment.rounds)]

  @functools.cached_property
  def widths(self) -> dict[Signature, int]:
    """For each signature that will occur the clients per slab.

    `engine.slab`, or what a round brings on average: wider slabs would be
    padded, narrower ones are more calls.
    """
    counts = [collections.Counter(m.sig for m in r) for r in self.rounds]
    total: collections.Counter = sum(counts, collections.Counter())
    present = collections.Counter(sig for count in counts for sig in count)
    fixed = self.experiment.engine.slab
    return {s: fixed or round(n / present[s]) for s, n in total.items()}

  def plan(self, rnd: int) -> RoundPlan:
    """Plans a round and puts its arrays on the device."""
    members, held = self._cohort(rnd)
    uniform = self.experiment.server.weighting == 'uniform'
    weights = [1 if uniform else len(self.indices[m.client]) for m in members]
    clients, sigs = zip(*members, strict=True)
    infos = self.algorithm.client.tell(rnd, clients)
    slabs = cut_slabs(clients, sigs, held, infos, weights, self.widths)
    layers = np.concatenate([layer_ids(row) for row in held])
    return RoundPlan(
      rnd,
      members,
      [self._place(slab, rnd) for slab in slabs],
      int(sum(self.steps[k] for k in clients)),
      np.bincount(layers, minlength=self.algorithm.model.depth),
    )

  @functools.cached_property
  def info_shapes(self) -> InfoShapes:
    """The shapes of what one client is told."""
    (info,) = self.algorithm.client.tell(0, [0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), info)

  def _cohort(self, rnd: int) -> tuple[list[Member], list[Selection]]:
    """Returns who takes part in a round, and what each holds."""
    e = self.experiment
    cohort = sample_cohort(
      e.clients,
      self.domains,
      self.algorithm.able(rnd, len(self.domains)),
      e.seed,
      rnd,
    )
    held = self.algorithm.rule.draw(rnd, cohort)
    lengths = [self._length(k, rnd) for k in cohort]
    sigs = map(Signature.of, held, lengths)
    return list(map(Member, cohort, sigs)), held

  def _length(self, client: int, rnd: int) -> int:
    """Returns the least length that holds all that the client will read."""
    lengths = self._seen_by(client).lengths
    if lengths is None:
      return 0
    drawn = lengths[self._draw(client, rnd)[0]]
    return batching.bucket(self.experiment.data.lengths, drawn)

  def _place(self, slab: Slab, rnd: int) -> Work:
    examples = self._seen_by(int(slab.ids[0]))
    read = functools.partial(self._batches, examples, rnd, slab.sig.length)
    clients = [read(int(k)) for k in slab.ids]
    batches = jax.tree.map(lambda *parts: np.stack(parts), *clients)
    own = Own(slab.held, slab.info, (), slab.weight, slab.ids, batches)
    return Work(slab, jax.device_put(own))

  def _draw(self, client: int, rnd: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws a client's examples: their positions and which are real [S, B]."""
    cfg = self.experiment.local
    shape = (int(self.steps.max()), cfg.batch_size)
    rows, valid = np.zeros(shape, int), np.zeros(shape, bool)
    if client >= 0:
      rng = host_rng('batches', self.experiment.seed, rnd, client)
      steps = int(self.steps[client])
      size = len(self.indices[client])
      rows[:steps], valid[:steps] = batching.draw_batches(cfg, size, steps, rng)
    return self.indices[max(client, 0)][rows], valid

  def _seen_by(self, client: int) -> Examples:
    """Returns the examples as the client's model reads them."""
    return self.examples.view(self.readers.get(self.algorithm.tier(client), 0))

  def _batches(
    self, examples: Examples, rnd: int, length: int, client: int
  ) -> Batch:
    """Reads a client's batches [S, B, ...], padded to the longest client's."""
    rows, valid = self._draw(client, rnd)
    inputs = examples.read(rows.reshape(-1), length)
    unflatten = lambda x: x.reshape(*rows.shape, *x.shape[1:])
    return Batch(jax.tree.map(unflatten, inputs), examples.labels[rows], valid)


def prefetch(
  plan: Callable[[int], RoundPlan], rounds: range
) -> Iterator[RoundPlan]:
  """Yields the plans in order, each made while the one before is in use."""
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    pending = [pool.submit(plan, rnd) for rnd in rounds[:1]]
    for rnd in rounds:
      ready = pending.pop().result()
      if rnd + 1 in rounds:
        pending.append(pool.submit(plan, rnd + 1))
      yield ready

"""Host planning: cohort, allocation and batches of a round, in NumPy.

A plan is a function of (seed, round, client id) alone, so it can be made
while the device computes the round before.
"""

from collections.abc import Callable, Iterator
import concurrent.futures
import dataclasses
import functools
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from fedjax_tune import config
from fedjax_tune.engine import batches as batching
from fedjax_tune.engine.client import Batch
from fedjax_tune.engine.cohort import expected_share, sample_cohort
from fedjax_tune.engine.group import Signature, Slab, cut_slabs
from fedjax_tune.randomness import host_rng


class Examples(Protocol):
  """What the planner needs of a data set."""

  @property
  def labels(self) -> np.ndarray:
    """Labels int [N]."""
    ...

  def read(self, indices: np.ndarray, /) -> np.ndarray:
    """Returns images uint8 [n, h, w, 3]."""
    ...


class Work(NamedTuple):
  """A slab with its arrays on the device."""

  slab: Slab
  alloc: dict[str, jax.Array]
  weight: jax.Array
  ids: jax.Array
  batches: Batch


class RoundPlan(NamedTuple):
  """One round, ready to run.

  Attributes:
    rnd: The round.
    cohort: Client ids.
    works: The slabs.
    client_steps: Local steps of all clients together.
    owners: For each layer how many clients hold it, int [L].
  """

  rnd: int
  cohort: list[int]
  works: list[Work]
  client_steps: int
  owners: np.ndarray


@dataclasses.dataclass(frozen=True)
class Planner:
  """Plans rounds.

  Attributes:
    experiment: The configuration.
    method: Decides signatures and allocations.
    examples: Training data.
    indices: For each client the positions of its examples.
    domains: Domain of each client, int [clients].
  """

  experiment: config.Experiment
  method: Any
  examples: Examples
  indices: tuple[np.ndarray, ...]
  domains: np.ndarray

  @functools.cached_property
  def steps(self) -> np.ndarray:
    """Local steps of each client, int [clients]."""
    sizes = [len(i) for i in self.indices]
    return batching.local_steps(self.experiment.local, sizes)

  def widths(self) -> dict[Signature, int]:
    """Returns for each signature the clients per slab.

    `engine.slab`, or what a round is expected to bring: wider slabs would be
    padded, narrower ones are more calls.
    """
    share = expected_share(
      self.experiment.clients, self.domains, self.method.eligible()
    )
    expected: dict[Signature, float] = {}
    for client in np.flatnonzero(share):
      sig = self.method.signature(int(client))
      expected[sig] = expected.get(sig, 0) + share[client]
    fixed = self.experiment.engine.slab
    return {s: fixed or max(1, round(n)) for s, n in expected.items()}

  def plan(self, rnd: int) -> RoundPlan:
    """Plans a round and puts its arrays on the device."""
    e = self.experiment
    cohort = sample_cohort(
      e.clients, self.domains, self.method.eligible(), e.seed, rnd
    )
    rows = self.method.allocate(rnd, cohort)
    uniform = e.server.weighting == 'uniform'
    weights = [1 if uniform else len(self.indices[k]) for k in cohort]
    sigs = [self.method.signature(k) for k in cohort]
    slabs = cut_slabs(cohort, sigs, rows, weights, self.widths())
    layers = np.concatenate([row['layer'] for row in rows])
    return RoundPlan(
      rnd,
      cohort,
      [self._place(slab, rnd) for slab in slabs],
      int(sum(self.steps[k] for k in cohort)),
      np.bincount(layers, minlength=self.method.depth),
    )

  def _place(self, slab: Slab, rnd: int) -> Work:
    clients = [self._client_batches(int(k), rnd) for k in slab.ids]
    batches = Batch(*(np.stack(part) for part in zip(*clients, strict=True)))
    arrays = (slab.alloc, slab.weight, slab.ids, batches)
    return Work(slab, *jax.device_put(arrays))

  def _client_batches(self, client: int, rnd: int) -> Batch:
    """Reads a client's batches [S, B, ...], padded to the longest client's."""
    cfg = self.experiment.local
    shape = (int(self.steps.max()), cfg.batch_size)
    rows, valid = np.zeros(shape, int), np.zeros(shape, bool)
    if client >= 0:
      rng = host_rng('batches', self.experiment.seed, rnd, client)
      steps = int(self.steps[client])
      size = len(self.indices[client])
      rows[:steps], valid[:steps] = batching.draw_batches(cfg, size, steps, rng)
    rows = self.indices[max(client, 0)][rows]
    images = self.examples.read(rows.reshape(-1))
    images = images.reshape(*shape, *images.shape[1:])
    return Batch(images, self.examples.labels[rows].astype(np.int32), valid)


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

"""Host planning: cohort, allocation and batches of a round, in NumPy.

A plan is a function of (seed, round, client id) alone, so it can be made
while the device computes the round before.
"""

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
import concurrent.futures
import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import numpy as np

from fedjax_tune import config
from fedjax_tune.data.shares import Shares
from fedjax_tune.engine.algorithm import Algorithm, layer_ids
from fedjax_tune.engine.cohort import Cohort, Member, sample_cohort
from fedjax_tune.engine.feed import Draw, Examples, Feed
from fedjax_tune.engine.randomness import host_rng
from fedjax_tune.engine.slabs import (
  InfoShapes,
  Signature,
  Slab,
  cut_slabs,
  deal,
)
from fedjax_tune.engine.step import Own
from fedjax_tune.selection import Selection

# How many clients are planned before the first round, to see what they hold.
_FORESEEN = 100_000
# How many clients, and rounds, tell how many of a federation hold how much.
_ASKED, _ASKED_ROUNDS = 10_000, 20


class Work(NamedTuple):
  """A slab with its arrays on the device.

  Attributes:
    slab: The slab.
    own: The slab's arrays, except what clients remember, which the round before
      may still change.
  """

  slab: Slab
  own: Own


class RoundPlan(NamedTuple):
  """One round, ready to run.

  Attributes:
    rnd: The round.
    members: The cohort.
    slabs: Its slabs.
    works: The slabs that this host trains.
    client_steps: Local steps of all clients together.
    owners: For each layer how many clients hold it, int [L].
  """

  rnd: int
  members: list[Member]
  slabs: list[Slab]
  works: list[Work]
  client_steps: int
  owners: np.ndarray


@dataclasses.dataclass(frozen=True)
class Planner:
  """Plans rounds.

  The cost of planning a round depends on its cohort, not on the number of
  clients or rounds, except for a few passes of NumPy over arrays of all
  clients.

  Attributes:
    experiment: The configuration.
    algorithm: Decides which clients take part, what they hold and what they are
      told.
    examples: Training data.
    indices: For each client the positions of its examples.
    domains: Domain of each client, int [clients].
    readers: For each tier which view of the examples it reads.
    host: The index of this host, which reads only the examples of its slabs.
    hosts: Number of hosts.
    devices: Number of devices of a host, if slabs must occupy all; else 1.
  """

  experiment: config.Experiment
  algorithm: Algorithm
  examples: Examples
  indices: Shares
  domains: np.ndarray
  readers: Mapping[str, int] = dataclasses.field(default_factory=dict)
  host: int = 0
  hosts: int = 1
  devices: int = 1

  @functools.cached_property
  def feed(self) -> Feed:
    """What clients read."""
    return Feed(
      self.experiment,
      self.algorithm,
      self.examples,
      self.indices,
      self.readers,
    )

  @functools.cached_property
  def rounds(self) -> list[list[Member]]:
    """The members of every round that is `foreseen`."""
    return [self._members(rnd) for rnd in self.foreseen]

  @functools.cached_property
  def foreseen(self) -> list[int]:
    """The rounds whose members are drawn before the run.

    These are all rounds, unless they have more than 100,000 members in total.
    Then they are evenly spread rounds with that many members, because drawing
    all would take too long.
    """
    num, cfg = self.experiment.rounds, self.experiment.clients
    cohort = cfg.cohort_size
    if cfg.cohort != 'uniform':
      cohort = len(np.unique(self.domains))
    seen = min(num, max(1, _FORESEEN // min(cohort, len(self.domains))))
    return [i * num // seen for i in range(seen)]

  def _members(self, rnd: int) -> list[Member]:
    cohort = self._sample(rnd)
    draw = functools.cache(self.feed.draws(rnd))
    sigs, _, parts = self._hold(rnd, cohort, draw)
    return list(map(Member, cohort, sigs, parts))

  def _sample(self, rnd: int) -> list[int]:
    """Returns the clients that take part in a round."""
    e, eligible = self.experiment, self.algorithm.eligible
    able = None if eligible is None else eligible(rnd)
    return sample_cohort(e.clients, self.domains, able, e.seed, rnd)

  @functools.cached_property
  def widths(self) -> dict[Signature, int]:
    """For each signature of `rounds` the clients per slab.

    This is `engine.slab`, or a host's share of the clients that a round has on
    average: wider slabs would be padded, narrower ones need more calls. A
    signature that is in none of `rounds` is rare, and gets slabs of
    `engine.slab` or as few clients as possible when it appears.
    """
    counts = [collections.Counter(m.sig for m in r) for r in self.rounds]
    total: collections.Counter = sum(counts, collections.Counter())
    present = collections.Counter(sig for count in counts for sig in count)
    fixed = self.experiment.engine.slab
    mean = {sig: round(n / present[sig]) for sig, n in total.items()}
    part = lambda n: math.ceil(n / self.hosts / self.devices) * self.devices
    return {sig: fixed or part(n) for sig, n in mean.items()}

  @functools.cached_property
  def holders(self) -> dict[Signature, float]:
    """How many clients of the federation hold each signature.

    It counts all clients that may take part by the last round, whether they are
    drawn or not. A client that holds different amounts in different rounds
    counts for each by its share of rounds. If there are more than 10,000
    clients, that many are drawn at random and stand for all.
    """
    e, num = self.experiment, len(self.domains)
    clients = np.flatnonzero(self.algorithm.able(e.rounds - 1, num))
    able = len(clients)
    if able > _ASKED:
      rng = host_rng('holders', e.seed, 0)
      clients = np.sort(rng.choice(clients, _ASKED, replace=False))
    asked = min(e.rounds, _ASKED_ROUNDS, _ASKED // max(1, len(clients)))
    # As many at a time as take part in a round: some rules share out among them.
    size = max(1, len(self._sample(e.rounds - 1)))
    found: collections.Counter[Signature] = collections.Counter()
    for rnd in (i * e.rounds // asked for i in range(asked)):
      draw = functools.cache(self.feed.draws(rnd))
      for start in range(0, len(clients), size):
        some = clients[start : start + size].tolist()
        found.update(self._select(rnd, some, draw)[0])
    share = able / max(1, found.total())
    return {sig: share * n for sig, n in found.items()}

  def plan(self, rnd: int) -> RoundPlan:
    """Plans a round and puts its arrays on the device."""
    draw = functools.cache(self.feed.draws(rnd))
    cohort = self._gather(rnd, self._sample(rnd), draw)
    rare = self.experiment.engine.slab or self.devices
    widths = {sig: self.widths.get(sig, rare) for sig in set(cohort.sigs)}
    slabs = self._cut(cohort, widths)
    if self.hosts > 1:
      slabs = deal(slabs, list(map(self._work, slabs)), self.hosts)
    layers = np.concatenate([layer_ids(row) for row in cohort.held])
    return RoundPlan(
      rnd,
      cohort.members,
      slabs,
      [self._place(slab, draw) for slab in slabs if slab.host == self.host],
      int(self.feed.steps[cohort.clients].sum()),
      np.bincount(layers, minlength=self.algorithm.model.depth),
    )

  def gather(self, rnd: int, clients: Sequence[int]) -> Cohort:
    """Returns what these clients would hold and be told in a round."""
    return self._gather(rnd, clients, self.feed.draws(rnd))

  def works(self, rnd: int, cohort: Cohort, width: int) -> Iterator[Work]:
    """Yields slabs of a cohort, each moved to the device when it is needed."""
    draw = self.feed.draws(rnd)
    for slab in self._cut(cohort, dict.fromkeys(cohort.sigs, width)):
      yield self._place(slab, draw)

  @functools.cached_property
  def info_shapes(self) -> InfoShapes:
    """The shapes of what one client is told."""
    (info,) = self.algorithm.client.tell(0, [0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), info)

  def _gather(self, rnd: int, clients: Sequence[int], draw: Draw) -> Cohort:
    sigs, held, parts = self._hold(rnd, clients, draw)
    infos = self.algorithm.client.tell(rnd, clients)
    return Cohort(list(clients), sigs, held, infos, parts)

  def _hold(
    self, rnd: int, clients: Sequence[int], draw: Draw
  ) -> tuple[list[Signature], list[Selection], list[tuple[int, ...]]]:
    """Returns how much each client holds, what, and its `Member.parts`."""
    sigs, held, texts = self._select(rnd, clients, draw)
    # Thousands of equal ones would take room and time.
    known: dict[Signature, Signature] = {}
    shared = [known.setdefault(sig, sig) for sig in sigs]
    return shared, held, self.feed.count_parts(clients, texts, draw)

  def _select(
    self, rnd: int, clients: Sequence[int], draw: Draw
  ) -> tuple[Iterator[Signature], list[Selection], list[np.ndarray | None]]:
    """Returns how much each client holds, what, and the tokens of its texts."""
    held = self.algorithm.rule.draw(rnd, clients)
    texts = [self.feed.tokens(k, draw) for k in clients]
    sigs = map(Signature.of, held, map(self.feed.length, clients, texts))
    return sigs, held, texts

  def _cut(self, cohort: Cohort, widths: Mapping[Signature, int]) -> list[Slab]:
    weights = self.feed.sizes[cohort.clients]
    if self.experiment.server.weighting == 'uniform':
      weights = np.ones_like(weights)
    clients, sigs, held, infos, _ = cohort
    return cut_slabs(clients, sigs, held, infos, weights.tolist(), widths)

  def _work(self, slab: Slab) -> int:
    """Returns a slab's rough cost: its clients' steps times layers."""
    steps = self.feed.steps[slab.ids[slab.ids >= 0]]
    return int(steps.sum()) * (slab.sig.axes.get('layer') or 1)

  def _place(self, slab: Slab, draw: Draw) -> Work:
    batches, parts = self.feed.batches(slab.ids, slab.sig.length, draw)
    own = Own(slab.held, slab.info, (), slab.weight, slab.ids, batches, parts)
    return Work(slab, jax.device_put(own))


def prefetch(
  plan: Callable[[int], RoundPlan], rounds: range
) -> Iterator[tuple[RoundPlan, Callable[[], None]]]:
  """Yields the plans in order, each with a function that starts the next one.

  The caller calls this function when there is room for another round's arrays.
  """
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    pending: list[concurrent.futures.Future[RoundPlan]] = []

    def begin(rnd: int) -> None:
      if rnd in rounds and not pending:
        pending.append(pool.submit(plan, rnd))

    for rnd in rounds:
      begin(rnd)
      yield pending.pop().result(), functools.partial(begin, rnd + 1)

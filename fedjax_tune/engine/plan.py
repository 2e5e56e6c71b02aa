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
from fedjax_tune.engine.schedule import resolve
from fedjax_tune.engine.slabs import (
  Info,
  InfoShapes,
  Signature,
  Slab,
  cut_slabs,
  deal,
)
from fedjax_tune.engine.step import Own
from fedjax_tune.selection import Selection
from fedjax_tune.typing import Inputs

# How many clients are planned before the first round, to see what they hold.
_FORESEEN = 100_000
# How many clients, and rounds, tell how many of a federation hold how much.
_ASKED, _ASKED_ROUNDS = 10_000, 20

# client -> the positions of its examples in a round, and which are real [S, B].
Draw = Callable[[int], tuple[np.ndarray, np.ndarray]]


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
    parts: Of each of the planner's `lengths`, how many parts its batches have.
  """

  client: int
  sig: Signature
  parts: tuple[int, ...] = ()


class Cohort(NamedTuple):
  """Clients of a round, one after another.

  Attributes:
    clients: Their ids.
    sigs: How much each holds.
    held: What each holds.
    infos: What each is told besides.
    parts: See `Member`.
  """

  clients: list[int]
  sigs: list[Signature]
  held: list[Selection]
  infos: list[Info]
  parts: list[tuple[int, ...]]

  @property
  def members(self) -> list[Member]:
    """Who is in it, and how much each holds."""
    return list(map(Member, self.clients, self.sigs, self.parts))

  def take(self, some: Sequence[int]) -> 'Cohort':
    """Returns the clients at some positions, with what they hold here."""
    return Cohort(
      [self.clients[i] for i in some],
      [self.sigs[i] for i in some],
      [self.held[i] for i in some],
      [self.infos[i] for i in some],
      [self.parts[i] for i in some],
    )


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
    slabs: Its slabs.
    works: Those of them that this host trains.
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

  What a round takes depends on its cohort, not on how many clients or rounds
  there are, but for a few passes of NumPy over numbers of the clients.

  Attributes:
    experiment: The configuration.
    algorithm: Decides who takes part, who holds what, and is told what.
    examples: Training data.
    indices: For each client the positions of its examples.
    domains: Domain of each client, int [clients].
    readers: For each tier which view of the examples it reads.
    host: The number of this host; it reads the examples of its slabs alone.
    hosts: How many there are.
    devices: Of a host, if slabs must occupy all; else 1.
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
  def steps(self) -> np.ndarray:
    """Local steps of each client, int [clients]."""
    return batching.local_steps(self.experiment.local, self.sizes)

  @functools.cached_property
  def sizes(self) -> np.ndarray:
    """The number of examples of each client, int [clients]."""
    return self.indices.sizes

  @functools.cached_property
  def lengths(self) -> tuple[int, ...]:
    """Tokens to which parts of batches are padded; () pads whole batches.

    Batches of texts run in parts where clients run one by one, and where that
    changes nothing but rounding: the loss must be a mean over examples.
    """
    e = self.experiment
    mode = resolve(e.engine.mode, jax.default_backend())
    by_example = self.algorithm.client.by_example
    longest = max(self._longest.values())
    found = tuple(n for n in e.data.lengths if n <= longest)
    return found if by_example and mode == 'map' and len(found) > 1 else ()

  @functools.cached_property
  def _longest(self) -> dict[int, int]:
    """For each view of the examples the length that holds every text."""
    readers = {0, *self.readers.values()}
    views = {r: self.examples.view(r).lengths for r in readers}
    lengths = self.experiment.data.lengths
    return {
      reader: 0 if of is None else batching.bucket(lengths, of)
      for reader, of in views.items()
    }

  @functools.cached_property
  def rounds(self) -> list[list[Member]]:
    """The members of every round that is `foreseen`."""
    return [self._members(rnd) for rnd in self.foreseen]

  @functools.cached_property
  def foreseen(self) -> list[int]:
    """The rounds whose members are drawn before the run: all of them.

    Of a run in which more than 100,000 clients take part, rounds spread evenly
    that have as many: who holds what in all of them would take longer to draw
    than it is worth.
    """
    num, cfg = self.experiment.rounds, self.experiment.clients
    cohort = cfg.cohort_size
    if cfg.cohort != 'uniform':
      cohort = len(np.unique(self.domains))
    seen = min(num, max(1, _FORESEEN // min(cohort, len(self.domains))))
    return [i * num // seen for i in range(seen)]

  def _members(self, rnd: int) -> list[Member]:
    cohort = self._sample(rnd)
    draw = functools.cache(functools.partial(self._draw, rnd))
    sigs, _, parts = self._hold(rnd, cohort, draw)
    return list(map(Member, cohort, sigs, parts))

  def _sample(self, rnd: int) -> list[int]:
    """Returns who takes part in a round."""
    e, eligible = self.experiment, self.algorithm.eligible
    able = None if eligible is None else eligible(rnd)
    return sample_cohort(e.clients, self.domains, able, e.seed, rnd)

  @functools.cached_property
  def widths(self) -> dict[Signature, int]:
    """For each signature of `rounds` the clients per slab.

    `engine.slab`, or a host's part of what a round brings on average: wider
    slabs would be padded, narrower ones are more calls. A signature that
    `rounds` lack is rare, and has slabs of `engine.slab` or as few clients as
    can be, whenever it is met.
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

    Those count that may take part by the last round, whether they are drawn or
    not. Who holds now more and now less counts for each by its share of rounds.
    Of more than 10,000 clients as many, drawn at random, stand for all.
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
      draw = functools.cache(functools.partial(self._draw, rnd))
      for start in range(0, len(clients), size):
        some = clients[start : start + size].tolist()
        found.update(self._select(rnd, some, draw)[0])
    share = able / max(1, found.total())
    return {sig: share * n for sig, n in found.items()}

  def plan(self, rnd: int) -> RoundPlan:
    """Plans a round and puts its arrays on the device."""
    draw = functools.cache(functools.partial(self._draw, rnd))
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
      int(self.steps[cohort.clients].sum()),
      np.bincount(layers, minlength=self.algorithm.model.depth),
    )

  def gather(self, rnd: int, clients: Sequence[int]) -> Cohort:
    """Returns what these clients would hold and be told in a round."""
    return self._gather(rnd, clients, functools.partial(self._draw, rnd))

  def works(self, rnd: int, cohort: Cohort, width: int) -> Iterator[Work]:
    """Yields slabs of a cohort, each on the device when it is asked for."""
    draw = functools.partial(self._draw, rnd)
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
    parts: list[tuple[int, ...]] = [()] * len(clients)
    if self.lengths:
      parts = self._count_parts(texts, [draw(k)[1] for k in clients])
    return shared, held, parts

  def _select(
    self, rnd: int, clients: Sequence[int], draw: Draw
  ) -> tuple[Iterator[Signature], list[Selection], list[np.ndarray | None]]:
    """Returns how much each client holds, what, and the tokens of its texts."""
    held = self.algorithm.rule.draw(rnd, clients)
    texts = [self._tokens(k, draw) for k in clients]
    sigs = map(Signature.of, held, map(self._length, clients, texts))
    return sigs, held, texts

  def _cut(self, cohort: Cohort, widths: Mapping[Signature, int]) -> list[Slab]:
    weights = self.sizes[cohort.clients]
    if self.experiment.server.weighting == 'uniform':
      weights = np.ones_like(weights)
    clients, sigs, held, infos, _ = cohort
    return cut_slabs(clients, sigs, held, infos, weights.tolist(), widths)

  def _tokens(self, client: int, draw: Draw) -> np.ndarray | None:
    """Returns the tokens of each text that a client reads, int [S, B]."""
    lengths = self._seen_by(client).lengths
    return None if lengths is None else lengths[draw(client)[0]]

  def _length(self, client: int, tokens: np.ndarray | None) -> int:
    """Returns how long a client's texts are as arrays.

    Batches that run whole are as long as their longest text. Where they run in
    parts all have one length, so that one program serves every client.
    """
    if tokens is None:
      return 0
    if self.lengths:
      return self._longest[self._reader(client)]
    return batching.bucket(self.experiment.data.lengths, tokens)

  def _count_parts(
    self, texts: Sequence[np.ndarray | None], valid: Sequence[np.ndarray]
  ) -> list[tuple[int, ...]]:
    """Returns `Member.parts` of clients, whose batches run in parts."""
    known = [tokens for tokens in texts if tokens is not None]
    found = batching.parts(
      self.lengths, np.concatenate(known), np.concatenate(valid)
    )
    buckets = found.bucket.reshape(len(texts), -1, 1)
    numbers = np.arange(len(self.lengths)) + 1
    counts = np.sum(buckets == numbers, axis=1)
    return [tuple(row) for row in counts.tolist()]

  def _work(self, slab: Slab) -> int:
    """Returns roughly what a slab takes: its clients' steps times layers."""
    steps = self.steps[slab.ids[slab.ids >= 0]]
    return int(steps.sum()) * (slab.sig.axes.get('layer') or 1)

  def _place(self, slab: Slab, draw: Draw) -> Work:
    examples = self._seen_by(int(slab.ids[0]))
    drawn = zip(*(draw(int(k)) for k in slab.ids), strict=True)
    rows, valid = map(np.stack, drawn)
    inputs = examples.read(rows.reshape(-1), slab.sig.length)
    unflatten = lambda x: x.reshape(*rows.shape, *x.shape[1:])
    batches = Batch(
      jax.tree.map(unflatten, inputs),
      examples.labels[rows],
      valid,
      batching.row_numbers(examples.lengths, rows.shape),
    )
    parts = None
    if self.lengths and examples.lengths is not None:
      flat = rows.reshape(-1, rows.shape[-1])
      found = batching.parts(
        self.lengths, examples.lengths[flat], valid.reshape(flat.shape)
      )
      steps = lambda x: x.reshape(*rows.shape[:2], *x.shape[1:])
      parts = jax.tree.map(steps, found)
    own = Own(slab.held, slab.info, (), slab.weight, slab.ids, batches, parts)
    return Work(slab, jax.device_put(own))

  @functools.cached_property
  def most_steps(self) -> int:
    """Local steps of the client that takes most."""
    return int(self.steps.max())

  def _draw(self, rnd: int, client: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws a client's examples, for as many steps as the most of any client.

    Args:
      rnd: The round.
      client: Its number; -1 draws none.
    """
    cfg = self.experiment.local
    shape = (self.most_steps, cfg.batch_size)
    rows, valid = np.zeros(shape, int), np.zeros(shape, bool)
    if client >= 0:
      rng = host_rng('batches', self.experiment.seed, rnd, client)
      steps = int(self.steps[client])
      size = int(self.sizes[client])
      rows[:steps], valid[:steps] = batching.draw_batches(cfg, size, steps, rng)
    return self.indices[max(client, 0)][rows], valid

  def _seen_by(self, client: int) -> Examples:
    """Returns the examples as the client's model reads them."""
    return self.examples.view(self._reader(client))

  def _reader(self, client: int) -> int:
    """Returns the number of the view that the client's model reads."""
    return self.readers.get(self.algorithm.tier(client), 0)


def prefetch(
  plan: Callable[[int], RoundPlan], rounds: range
) -> Iterator[tuple[RoundPlan, Callable[[], None]]]:
  """Yields the plans in order, each with what begins to make the next one.

  Whoever calls it says when there is room for the arrays of one more round.
  """
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    pending: list[concurrent.futures.Future[RoundPlan]] = []

    def begin(rnd: int) -> None:
      if rnd in rounds and not pending:
        pending.append(pool.submit(plan, rnd))

    for rnd in rounds:
      begin(rnd)
      yield pending.pop().result(), functools.partial(begin, rnd + 1)

"""Evaluates models for each of some clients, on the client's own examples."""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools
from typing import NamedTuple

import jax
import numpy as np
import optax

from fedjax_tune.data.corpus import Corpus
from fedjax_tune.engine import algorithm as parts
from fedjax_tune.engine import evaluate, personal, store
from fedjax_tune.engine.client import RateSchedule
from fedjax_tune.engine.cohort import Cohort
from fedjax_tune.engine.plan import Planner
from fedjax_tune.engine.predicted import Predicted, side_by_side
from fedjax_tune.engine.server import ServerState
from fedjax_tune.engine.slabs import Signature
from fedjax_tune.engine.step import Own, Shared, build_begin, build_train
from fedjax_tune.selection import Selection
from fedjax_tune.typing import Tree

# Examples at a time; fewer where every token has logits over the vocabulary.
_BATCH, _TOKENS_BATCH = 128, 16
# (signature, shared, several clients') -> what their models see of theta [C].
_Program = Callable[[Signature, Shared, Own], Tree]


class Scores(NamedTuple):
  """The task's primary metric for each client, float [clients].

  A score is NaN if there is no such model or no example, or if outputs are not
  finite.

  Attributes:
    server: Score of the server's model, or of that of the client's tier.
    own: Score of the model with which the client would begin a round: its part
      of the server's model, or the model that it keeps.
    tuned: Score of that model after local steps.
  """

  server: np.ndarray
  own: np.ndarray
  tuned: np.ndarray


class Subjects(NamedTuple):
  """Clients, and the examples by which they are judged.

  Attributes:
    rnd: The round whose cohort they would be.
    cohort: The clients.
    rows: For each client the positions of its examples.
  """

  rnd: int
  cohort: Cohort
  rows: Sequence[np.ndarray]

  def take(self, some: Sequence[int]) -> 'Subjects':
    """Returns the subjects at some positions."""
    rows = [self.rows[i] for i in some]
    return self._replace(cohort=self.cohort.take(some), rows=rows)


@dataclasses.dataclass(frozen=True, eq=False)
class EachClient:
  """Judges models for clients, some at a time.

  Attributes:
    algorithm: The method.
    planner: Draws what clients train on.
    optimizer: The clients' optimizer, for learning rate 1.
    schedule: How the rate falls within a client's round.
    corpora: Tier -> the examples by which its clients are judged, as its model
      reads them.
    lengths: Tokens to which texts are padded.
    width: Clients at a time.
    check: Called now and then; raises an error if the work must end.
  """

  algorithm: parts.Algorithm
  planner: Planner
  optimizer: optax.GradientTransformation
  schedule: RateSchedule | None
  corpora: Callable[[str], Corpus]
  lengths: Sequence[int]
  width: int
  check: Callable[[], None] = lambda: None

  def judge(
    self, shared: Shared, state: ServerState, subjects: Subjects
  ) -> Scores:
    """Judges the models of clients.

    Args:
      shared: What the clients of the next round would be given.
      state: The server's state.
      subjects: The clients, as they would be in that round.
    """
    num = len(subjects.rows)
    some = [i for i in range(num) if len(subjects.rows[i])]
    judged = subjects.take(some)
    scores = Scores(*(np.full(num, np.nan) for _ in Scores._fields))
    server = self._judge_server(shared, judged)
    scores.server[some] = server
    scores.own[some] = self._judge_own(shared, state, judged, server)
    for i, found in self._predict(self._tune, shared, state, judged):
      scores.tuned[some[i]] = self._score(judged, i, found)
    return scores

  def _judge_server(self, shared: Shared, subjects: Subjects) -> np.ndarray:
    """Judges the server's models; each example is read once."""
    evaluation = self.algorithm.evaluation
    scores = np.full(len(subjects.rows), np.nan)
    if evaluation.personal:
      return scores
    predict = jax.jit(
      evaluate.build_predict(self.algorithm.model, evaluation), static_argnums=0
    )
    names = [self._name(k) for k in subjects.cohort.clients]
    for name in dict.fromkeys(names):
      members = [i for i, own in enumerate(names) if own == name]
      rows = np.unique(np.concatenate([subjects.rows[i] for i in members]))

      def say(batch, name=name):
        self.check()
        return predict((name,), shared.base, shared.theta, batch)[name]

      corpus = self._corpus(subjects, members[0])
      size = self._batch_size(_BATCH)
      found = Predicted.of(corpus, rows, self.lengths, size, say)
      for i in members:
        scores[i] = self._score(subjects, i, found)
    return scores

  def _judge_own(
    self,
    shared: Shared,
    state: ServerState,
    subjects: Subjects,
    server: np.ndarray,
  ) -> np.ndarray:
    """Judges the models that clients begin with; equal ones are judged once."""
    client, scores = self.algorithm.client, server.copy()
    plain = (
      client.init is parts.keep
      and client.params is parts.see_all
      and client.state is None
    )
    groups: dict[object, list[int]] = {}
    for i, (k, held) in enumerate(
      zip(subjects.cohort.clients, subjects.cohort.held, strict=True)
    ):
      models, name = self.algorithm.evaluation.models, self._name(k)
      if plain and self._key(held) == self._key(models[name]):
        continue  # The server's, which was judged.
      groups.setdefault((name, self._key(held)) if plain else i, []).append(i)
    each = list(groups.values())
    first = subjects.take([members[0] for members in each])
    rows = [
      np.unique(np.concatenate([subjects.rows[i] for i in members]))
      for members in each
    ]
    first = first._replace(rows=rows)
    for at, found in self._predict(self._start, shared, state, first):
      for i in each[at]:
        scores[i] = self._score(subjects, i, found)
    return scores

  def _predict(
    self,
    program: _Program,
    shared: Shared,
    state: ServerState,
    subjects: Subjects,
  ) -> Iterator[tuple[int, Predicted]]:
    """Yields each client's predictions for its rows, in any order."""
    if not subjects.rows:
      return
    cohort, remember = subjects.cohort, self.algorithm.client.state
    places = {k: i for i, k in enumerate(cohort.clients)}
    mean = float(np.mean([len(rows) for rows in subjects.rows]))
    size = self._batch_size(8 * -(-int(np.ceil(mean)) // 8))
    for work in self.planner.works(subjects.rnd, cohort, self.width):
      self.check()
      ids = work.slab.ids
      own = work.own._replace(
        state=store.gather(state.clients, ids, remember),
        parts=None,  # Clients side by side run their batches whole.
      )
      seen = program(work.slab.sig, shared, own)
      # Padding reads what the first client reads.
      at = [places[int(k)] if k >= 0 else places[int(ids[0])] for k in ids]
      name, corpus = self._name(int(ids[0])), self._corpus(subjects, at[0])
      order: list[list[np.ndarray]] = [[] for _ in at]
      outputs: list[list[dict[str, np.ndarray]]] = [[] for _ in at]
      rows = [subjects.rows[i] for i in at]
      for indices, batch in side_by_side(corpus, rows, self.lengths, size):
        told = self._outputs(name, shared.base, seen, own.held, batch)
        told = jax.device_get(told)
        for c, index in enumerate(indices):
          order[c].append(index)
          outputs[c].append({k: v[c, : len(index)] for k, v in told.items()})
      for c in np.flatnonzero(ids >= 0):
        yield at[c], Predicted.join(order[c], outputs[c])

  @functools.cached_property
  def _start(self) -> _Program:
    """What clients begin a round with."""
    begin = build_begin(self.algorithm)

    def one(sig, shared, own):
      context, start = begin(sig, shared, own)
      return self.algorithm.client.params(start, context)

    program = self._for_each(one)
    return lambda sig, shared, own: program(
      sig, shared, own._replace(batches=())
    )

  @functools.cached_property
  def _tune(self) -> _Program:
    """What they have after their local steps."""
    train = build_train(self.algorithm, self.optimizer, self.schedule)

    def one(sig, shared, own):
      done = train(sig, shared, own)
      end = jax.tree.map(lambda w, d: w + d, done.start, done.delta)
      return self.algorithm.client.params(end, done.context)

    return self._for_each(one)

  def _for_each(self, one: _Program) -> _Program:
    def program(sig, shared, own):
      return _each(lambda client: one(sig, shared, client), own)

    return jax.jit(program, static_argnums=0)

  @functools.cached_property
  def _outputs(self) -> Callable[..., dict[str, jax.Array]]:
    """(name, base, seen [C], held [C], batch [C, B]) -> predictions [C, B]."""

    def outputs(name, base, seen, held, batch):
      return _each(
        lambda own: personal.predict_held(self.algorithm, name, base, *own),
        (seen, held, batch),
      )

    return jax.jit(outputs, static_argnums=0)

  @functools.cached_property
  def _sizes(self) -> dict[str, int]:
    """Size of each axis of what trains."""
    model, sizes = self.algorithm.model, {}
    note = lambda leaf, names: sizes.update(zip(names, leaf.shape, strict=True))
    jax.tree.map(note, model.theta, model.axes)
    return sizes

  def _key(self, held: Selection) -> tuple[object, ...]:
    """Returns a key of a selection, in which whole axes make no difference."""
    cut = {a: n for a, n in held.prefix.items() if n != self._sizes.get(a)}
    own = {axis: np.asarray(at).tobytes() for axis, at in held.indices.items()}
    return tuple(sorted(own.items())), tuple(sorted(cut.items()))

  def _name(self, client: int) -> str:
    """Names the evaluation of the client's tier, or the first."""
    models, tier = self.algorithm.evaluation.models, self.algorithm.tier(client)
    return tier if tier in models else next(iter(models))

  def _corpus(self, subjects: Subjects, at: int) -> Corpus:
    return self.corpora(self.algorithm.tier(subjects.cohort.clients[at]))

  def _score(self, subjects: Subjects, at: int, found: Predicted) -> float:
    return found.judge(self._corpus(subjects, at), subjects.rows[at])

  def _batch_size(self, wanted: int) -> int:
    tokens = self.algorithm.task.kind == 'next_token'
    return min(wanted, _TOKENS_BATCH if tokens else _BATCH)


def _each(one: Callable[[Tree], Tree], clients: Tree) -> Tree:
  """Maps a function over a leading axis [C]; one client needs no vmap."""
  if jax.tree.leaves(clients)[0].shape[0] > 1:
    return jax.vmap(one)(clients)
  single = one(jax.tree.map(lambda x: x[0], clients))
  return jax.tree.map(lambda x: x[None], single)
